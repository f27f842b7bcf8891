"""Contexts: from codes to prompt embeddings, p = p0 + A z (CraFT, section 3.1).

p0 and A live in the model's private space and never leave the server.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from craft_server.byte_cache import ByteCache
from craft_server.engine.padded_text import PaddedTextTower
from craft_server.engine.text import TextTower
from craft_server.engine.tokens import Tokenizer
from craft_server.engine.worker import Steps, at_once
from craft_shared.wire import Context

# The standard deviations of A's entries in the authors' released code.
ABSOLUTE_STD: dict[str, float] = {
    "paper": 0.2,
    "paper-wide": 1.0,
    # Of PyTorch's default start of a layer with 512 inputs, which its ImageNet script keeps.
    "paper-imagenet": (3 * 512) ** -0.5,
}
# Words of init times dim; their projection takes 128 MiB for a tower 512 wide. A bound on its size
# itself would depend on the width, and tell it to whoever is refused.
MAX_WORDS_TIMES_DIM = 2**16
# One of four words and dim 512 takes 4 MiB for a tower 512 wide.
PROJECTIONS_BYTES = 256 * 2**20
# Whatever the width, so many of the largest that are allowed are remembered.
_LARGEST_KEPT = 2
# Half precision ends at 65504, and the layers add to what they are given.
MAX_EMBEDDING = 30_000.0
# A tenth of a second.
_PAIRS_AT_ONCE = 2**20


class ContextSpace:
    """The contexts of one model; thread-safe.

    `sigma` is the standard deviation of the model's token embeddings.
    """

    def __init__(self, tower: TextTower | PaddedTextTower, tokenizer: Tokenizer) -> None:
        self._tower = tower
        self._tokenizer = tokenizer
        self.sigma = tower.spread(tokenizer.vocabulary)
        largest = MAX_WORDS_TIMES_DIM * tower.width * np.float32().nbytes
        self._projections: ByteCache[tuple[object, ...], Tensor] = ByteCache(
            max(PROJECTIONS_BYTES, _LARGEST_KEPT * largest)
        )

    def draw(self, context: Context, *, tenant: str = "") -> Steps[None]:
        """Draws the projection of a context, which takes up to seconds, unless it is remembered."""
        words = len(self._tokenizer.of(tenant).words(context.init))
        of = (words, context.dim, context.seed, context.scale)
        if self._projections.get((tenant, *of)) is None:
            drawn = yield from self._draw_projection(*of)
            self._projections.put((tenant, *of), drawn)

    def embeddings(
        self, context: Context, codes: NDArray[np.float32], *, tenant: str = ""
    ) -> Tensor:
        """Prompt embeddings of codes [K, dim]: float32 [K, words of init, width].

        The projection should be drawn by now. Each tenant's are remembered apart, so that nobody
        can tell by the clock which seeds others use.
        """
        words = self._tokenizer.of(tenant).words(context.init)
        p0 = self._tower.embed(torch.tensor(words)).float()
        A = self._projection(tenant, len(words), context)
        moved = torch.from_numpy(codes).to(A.device) @ A.T
        return (p0 + moved.view(len(codes), *p0.shape)).clamp(-MAX_EMBEDDING, MAX_EMBEDDING)

    def _projection(self, tenant: str, words: int, context: Context) -> Tensor:
        of = (words, context.dim, context.seed, context.scale)
        kept = self._projections.get((tenant, *of))
        # It is not kept if others have needed its place meanwhile.
        drawn = at_once(self._draw_projection(*of)) if kept is None else kept
        A = drawn.to(self._tower.device)
        if A is not kept:
            self._projections.put((tenant, *of), A)
        return A

    def _draw_projection(
        self, words: int, dim: int, seed: int, scale: float | str
    ) -> Steps[Tensor]:
        """In main memory: whoever draws has nothing to do with the device."""
        by_name = ABSOLUTE_STD.get(scale) if isinstance(scale, str) else None
        std = float(scale) * self.sigma / math.sqrt(dim) if by_name is None else by_name
        A = yield from standard_normal(seed, words * self._tower.width * dim)
        A *= np.float32(std)
        return torch.from_numpy(A.reshape(-1, dim))


def standard_normal(seed: int, count: int) -> Steps[NDArray[np.float32]]:
    """Numbers that depend on nothing but the seed (and float32 rounding).

    Words of the counter-based generator Philox4x64-10 (Salmon et al., SC 2011) keyed by the seed,
    through the Box-Muller transform: unlike those of `numpy.random.Generator`, whose distributions
    may change between numpy's versions.
    """
    words = np.random.Philox(key=seed)
    numbers = np.empty(count + count % 2, dtype=np.float32)
    for begin in range(0, len(numbers), 2 * _PAIRS_AT_ONCE):
        part = numbers[begin : begin + 2 * _PAIRS_AT_ONCE]
        raw = words.random_raw(len(part))
        # The 53 high bits, moved half a step off zero, so that the logarithm exists.
        uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        radius = np.sqrt(-2.0 * np.log(uniform[0::2]))
        angle = 2.0 * np.pi * uniform[1::2]
        part[0::2] = radius * np.cos(angle)
        part[1::2] = radius * np.sin(angle)
        yield
    return numbers[:count]
