"""What answers show: scores in parts give what the whole gives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from craft_server.api.answers import answer_of_parts
from craft_server.noise import Noise
from craft_server.policy import answerable
from craft_shared.head import log_softmax
from craft_shared.wire import Output

SCORES = log_softmax(np.random.default_rng(0).normal(-3, 2, (3, 5, 8)).astype(np.float32))
EVERY = slice(None)

Parts = AsyncIterator[tuple[slice, slice, np.ndarray[Any, np.dtype[np.float32]]]]


async def parts_of(scores: np.ndarray[Any, np.dtype[np.float32]]) -> Parts:
    for prompts in (slice(0, 2), slice(2, 4)):
        for images in (slice(0, 3), slice(3, 6)):
            yield prompts, images, scores[prompts, images]


@pytest.mark.parametrize(
    "output",
    [
        Output(level="label"),
        Output(level="top_k", k=4),
        Output(level="top_k", k=20, decimals=1),
        Output(level="probs", decimals=2),
        Output(level="log_probs", decimals=1, noise=0.5),
        Output(noise=0.5),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_parts_give_what_the_whole_gives(output: Output, dtype: Any) -> None:
    # In half precision these are equal, and in the wrong order before they are rounded.
    scores = SCORES.copy()
    scores[..., 4], scores[..., 2] = -0.1, -0.1 - 1e-6
    noise = None
    if output.noise:
        texts = [[f"{p} {c}".encode() for c in range(8)] for p in range(3)]
        pictures = [str(n).encode() for n in range(5)]
        noise = Noise.of(b"secret", "ann", output.noise, images=pictures, texts=texts)
    whole = answerable(scores, output, None if noise is None else noise.at(EVERY, EVERY), dtype)
    parts = asyncio.run(
        answer_of_parts(parts_of(scores), output, noise, prompts=3, images=5, dtype=dtype)
    )
    assert parts.keys() == whole.keys()
    for name, tensor in whole.items():
        assert parts[name].dtype == tensor.dtype
        np.testing.assert_array_equal(parts[name], tensor)
