"""The most probable classes: which numbers of each distribution `top_k` leaves in an answer.

It knows their order; it does not know where log-probabilities come from, nor what is charged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from craft_server.api.answer import DType
from craft_server.problems import invalid_field
from craft_shared.codec import Tensors


def check_top_k(top_k: int | None, classes: int) -> None:
    """Raises ProblemError if there are fewer classes than are asked for."""
    if top_k is not None and top_k > classes:
        raise invalid_field(
            "top_k",
            f"{top_k}; there are {classes} classes",
            f"Ask for at most {classes}, or leave top_k out for all of them.",
        )


def most_probable(log_probs: NDArray[Any], top_k: int) -> Tensors:
    """The `top_k` largest numbers along the last axis, largest first, and whose they are.

    Of equal numbers the one of the lower index comes first.
    """
    order = np.argsort(-log_probs, axis=-1, kind="stable")[..., :top_k]
    return {
        "log_probs": np.take_along_axis(log_probs, order, axis=-1),
        "top_classes": order.astype(np.int32),
    }


async def most_probable_of_parts(
    parts: AsyncIterator[tuple[slice, slice, NDArray[np.float32]]],
    *,
    prompts: int,
    images: int,
    top_k: int,
    dtype: DType,
) -> Tensors:
    """`most_probable` of scores that come in parts and are never held as a whole.

    Args:
        parts: prompts, images and log-probabilities, as `Engine.score_parts` yields them.
        prompts: how many there are.
        images: how many there are.
        top_k: how many classes to leave.
        dtype: of the answer. Numbers are rounded first, so that those which the whole answer shows
            as equal count as equal.
    """
    shape = (prompts, images, top_k)
    found: Tensors = {
        "log_probs": np.empty(shape, dtype),
        "top_classes": np.empty(shape, np.int32),
    }
    async for some_prompts, some_images, part in parts:
        best = await asyncio.to_thread(
            lambda scores: most_probable(scores.astype(dtype), top_k), part
        )
        for name, tensor in best.items():
            found[name][some_prompts, some_images] = tensor
    return found
