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
    prompts: int, images: int, row_bytes: int, limits: Limits, *, most_images: int | None = None
) -> Iterator[tuple[range, range]]:
    """Cuts prompts x images into the (prompts, images) of each call.

    Args:
        prompts: how many there are.
        images: how many there are.
        row_bytes: of the answer, for one prompt and one image.
        limits: of the server.
        most_images: that one call may bring, where they come with it.
    """
    images_at_once = max(1, min(limits.answer_bytes // row_bytes, most_images or images))
    in_a_call = images if most_images is None else min(images, images_at_once)
    prompts_at_once = limits.answer_bytes // (row_bytes * max(1, in_a_call))
    prompts_at_once = min(limits.prompts_per_call, max(1, prompts_at_once))
    return itertools.product(blocks(prompts, prompts_at_once), blocks(images, images_at_once))


def units_of_calls(
    prompts: int,
    images: int,
    texts: int,
    row_bytes: int,
    limits: Limits,
    *,
    most_images: int | None = None,
) -> Units:
    """What scoring so many prompts is charged, in as many calls as the limits make of it.

    `most_images` is how many one call may bring, where they come with it; see `calls`.
    """
    cut = calls(prompts, images, row_bytes, limits, most_images=most_images)
    each = (
        prediction_units(
            len(some_prompts),
            len(some_images),
            texts=texts,
            sent=0 if most_images is None else len(some_images),
        )
        for some_prompts, some_images in cut
    )
    return sum(each, Units())
