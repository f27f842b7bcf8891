"""The most probable classes of scores, as wholes and in parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from craft_server.api.top_classes import most_probable, most_probable_of_parts

SCORES = np.random.default_rng(0).normal(-3, 2, (3, 5, 8)).astype(np.float32)

Parts = AsyncIterator[tuple[slice, slice, np.ndarray[Any, np.dtype[np.float32]]]]


async def parts_of(scores: np.ndarray[Any, np.dtype[np.float32]]) -> Parts:
    for prompts in (slice(0, 2), slice(2, 4)):
        for images in (slice(0, 3), slice(3, 6)):
            yield prompts, images, scores[prompts, images]


def test_the_largest_numbers_come_in_descending_order_with_their_indices() -> None:
    best = most_probable(SCORES, 3)
    assert best["log_probs"].shape == best["top_classes"].shape == (3, 5, 3)
    assert best["top_classes"].dtype == np.int32
    np.testing.assert_array_equal(best["log_probs"], np.sort(SCORES)[..., :-4:-1])
    np.testing.assert_array_equal(
        best["log_probs"], np.take_along_axis(SCORES, best["top_classes"], -1)
    )


def test_of_equal_numbers_the_lower_index_comes_first() -> None:
    tied = np.array([-2, -1, -2, -1, -1], np.float32).repeat(20)
    best = most_probable(tied, 70)
    order = [*range(20, 40), *range(60, 100), *range(10)]
    assert best["top_classes"].tolist() == order


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_parts_give_what_the_rounded_whole_gives(dtype: Any) -> None:
    # In half precision these are equal, and in the wrong order before they are rounded.
    scores = SCORES.copy()
    scores[..., 4], scores[..., 2] = -0.1, -0.1 - 1e-6
    whole = most_probable(scores.astype(dtype), 4)
    parts = asyncio.run(
        most_probable_of_parts(parts_of(scores), prompts=3, images=5, top_k=4, dtype=dtype)
    )
    assert parts["log_probs"].dtype == dtype
    for name, tensor in whole.items():
        np.testing.assert_array_equal(parts[name], tensor)
    assert (whole["top_classes"][0, 0, 0] == 4) == (dtype == "float32")
