"""What a prediction is charged, and how many calls it takes within a server's limits.

The server charges by this count, the client announces it, and `craft-server plan` adds it up.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from craft_shared.units import Units
from craft_shared.wire import Limits


def prediction_units(
    prompts: int, images: int, *, texts: int = 0, sent: int = 0, calls: int = 1
) -> Units:
    """What calls are charged that together score each of the prompts once on each of the images.

    Args:
        prompts: of each call.
        images: of all calls together.
        texts: that each prompt scores and the text encoder reads; an adapter's are read already.
        sent: images that come with the calls and go through the image encoder.
        calls: how many there are.
    """
    return Units(
        queries=calls * prompts,
        predictions=prompts * images,
        images=sent,
        texts=calls * prompts * texts,
        requests=calls,
    )


def blocks(total: int, size: int) -> list[range]:
    """All of them in order, so many at a time."""
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def calls(
    prompts: int, images: int, row_bytes: int, limits: Limits
) -> Iterator[tuple[range, range]]:
    """Cuts prompts x images into the (prompts, images) of each call.

    Args:
        prompts: how many there are.
        images: how many there are.
        row_bytes: of the answer, for one prompt and one image.
        limits: of the server.
    """
    images_at_once = max(1, limits.answer_bytes // row_bytes)
    prompts_at_once = limits.answer_bytes // (row_bytes * max(1, images))
    prompts_at_once = min(limits.prompts_per_call, max(1, prompts_at_once))
    return itertools.product(blocks(prompts, prompts_at_once), blocks(images, images_at_once))


def units_of_calls(prompts: int, images: int, texts: int, row_bytes: int, limits: Limits) -> Units:
    """What scoring so many prompts is charged, in as many calls as the limits make of it."""
    each = (
        prediction_units(len(some_prompts), len(some_images), texts=texts)
        for some_prompts, some_images in calls(prompts, images, row_bytes, limits)
    )
    return sum(each, Units())
