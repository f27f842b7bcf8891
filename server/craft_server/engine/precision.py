"""Which precision a tower computes in: half where it is faster by far and agrees.

Both ways read the same probe images and texts, and their log-probabilities are compared. The towers
are not timed: what the clock chose between near ones could differ between two starts, or between
two replicas, and with it the last bits of answers.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Precision = Literal["auto", "fastest", "float32", "float16", "bfloat16"]

# Of the mean difference of log-probabilities, as a share of their spread over the classes; of its
# greatest, ten times as much.
MOST_DEVIATION = 0.01
# A compiled tower of single precision rounds in another order, and does nothing else.
MOST_ROUNDING = 1e-4
_GREATEST_TO_MEAN = 10.0
# Where log-probabilities hardly differ between classes, as with random weights, a natural unit.
_LEAST_SPREAD = 1.0

PROBE_TEMPLATE = "a photo of a {}."
# fmt: off
PROBE_NOUNS = (
    "cat", "dog", "car", "house", "tree", "flower", "boat", "person", "bird", "fish", "loaf",
    "chair", "cup", "shoe", "clock", "bridge", "train", "hat", "horse", "mountain", "river", "book",
    "bottle", "guitar", "leaf", "stone", "cloud", "road", "bicycle", "apple", "lamp", "knife",
)
# fmt: on
PROBE_IMAGES = 8
# The least of so many times of a product, in half precision and in single.
_ROUNDS = 15
# Seen: 0.15 with AMX, 0.5 with AVX512-BF16 of AMD, 0.9 to 2 with Intel's AVX512-BF16 and -FP16.
_MOST_TIME = 0.75
# Smooth noise: so many values a side, between which it is interpolated.
_PROBE_SIDE = 14


def dtypes_to_try(precision: Precision, device: torch.device) -> Sequence[torch.dtype]:
    """In this order; the first one that agrees is taken, and single precision always does."""
    if precision not in ("auto", "fastest"):
        return [getattr(torch, precision)]
    if device.type == "cuda":
        return [torch.float16, torch.bfloat16, torch.float32]
    # float16 is eight times closer to single precision than bfloat16. Where both have matrix units
    # they are as fast as each other, otherwise bfloat16 is faster.
    units = cpu_units()
    order = [torch.float16] if "amx_fp16" in units else []
    if units & {"amx_bf16", "avx512_bf16"}:
        order.append(torch.bfloat16)
    if "avx512_fp16" in units and torch.float16 not in order:
        order.append(torch.float16)
    return [*filter(multiplies_faster, order), torch.float32]


@cache
def multiplies_faster(dtype: torch.dtype) -> bool:
    """Whether the processor multiplies matrices faster by far in that precision than in single."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: dict[torch.dtype, list[float]] = {dtype: [], torch.float32: []}
    sides = {
        kind: (torch.ones(1024, 512).to(kind), torch.ones(512, 512).to(kind)) for kind in times
    }
    for _ in range(_ROUNDS):
        for kind, taken in times.items():
            x, weight = sides[kind]
            began = time.thread_time()
            functional.linear(x, weight)
            taken.append(time.thread_time() - began)
    torch.set_num_threads(threads)
    return min(times[dtype]) <= _MOST_TIME * min(times[torch.float32])


@cache
def cpu_units() -> frozenset[str]:
    """The processor's units by the kernel's names, such as `amx_bf16`; empty if not told."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n")
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


def with_modules(module: nn.Module, **others: nn.Module | None) -> Any:
    """The module with others in the place of some of its own; both share all else."""
    changed = copy.copy(module)
    changed._modules = {**module._modules, **others}
    return changed


def probe_images(height: int, width: int) -> Tensor:
    """Smooth noise as if preprocessed, float32 [PROBE_IMAGES, 3, height, width]."""
    noise = np.random.default_rng(0).standard_normal((PROBE_IMAGES, 3, _PROBE_SIDE, _PROBE_SIDE))
    return functional.interpolate(
        torch.from_numpy(noise.astype(np.float32)), (height, width), mode="bicubic"
    )


@dataclass(frozen=True)
class Reference:
    """The probes' unit features in single precision."""

    images: Tensor  # [N, width]
    texts: Tensor  # [C, width]
    logit_scale: float

    def agrees(
        self,
        *,
        images: Tensor | None = None,
        texts: Tensor | None = None,
        most: float = MOST_DEVIATION,
    ) -> bool:
        """Whether log-probabilities with these features in place of the reference's are close.

        So close that any two classes keep their order if they are further apart than twice the
        greatest difference. False for features that are not finite.
        """
        expected = self._log_probs(self.images, self.texts)
        found = self._log_probs(
            self.images if images is None else images, self.texts if texts is None else texts
        )
        spread = max(_LEAST_SPREAD, float(expected.std(dim=-1).mean()))
        difference = (found - expected).abs() / spread
        return bool(difference.mean() <= most and difference.max() <= _GREATEST_TO_MEAN * most)

    def _log_probs(self, images: Tensor, texts: Tensor) -> Tensor:
        return (self.logit_scale * images @ texts.T).log_softmax(dim=-1)
