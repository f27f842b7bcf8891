"""CUDA graphs: what a GPU was told to do once for tensors of some shapes, it does again at a word.

Where a pack is small a GPU waits for the processor, which launches a score of kernels a layer. A
run asks for the same classes under as many prompts again and again: the second time the kernels are
recorded, and from then on launched together. A recording serves if it gives the same bits as the
kernels one by one, also for an input that it was not made with.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import structlog
import torch
from cachetools import LRUCache
from torch import Tensor

from craft_server.engine.models import first_line

# What lies between input and answer is in one place for all recordings.
MOST_RECORDINGS = 8
MOST_SEEN = 256

log = structlog.get_logger(__name__)

Function = Callable[[Tensor], Tensor]
# Makes a recording of a function, for inputs like this one.
Record = Callable[[Function, Tensor], Function]


class Recordings:
    """Recordings of functions of one tensor; for one thread."""

    def __init__(self, record: Record) -> None:
        self._record: Record | None = record
        self._seen: LRUCache[Hashable, bool] = LRUCache(MOST_SEEN)
        # A recording reads what its function does where it lies, which the function keeps.
        self._kept: LRUCache[Hashable, tuple[Function, Function]] = LRUCache(MOST_RECORDINGS)

    def run(self, key: Hashable, function: Function, x: Tensor) -> Tensor:
        """`function(x)`, bit for bit.

        Args:
            key: what the function reads besides, and the shape of its input.
            function: it does the same things whatever the values are.
            x: its input.
        """
        if key in self._kept:
            recording, _ = self._kept[key]
            return recording(x)
        found = function(x)
        if self._record is not None and key in self._seen:
            try:
                recording, other = self._record(function, x), x.roll(1, -1)
                # By their bits, since what is not a number does not equal itself.
                if not torch.equal(_bits(recording(other)), _bits(function(other))):
                    raise RuntimeError("the answers of one differ")
                self._kept[key] = recording, function
            except torch.OutOfMemoryError:
                log.info("no memory for another CUDA graph")
            except RuntimeError as error:
                self._record = None
                self._kept.clear()
                log.warning("CUDA graphs are not used", reason=first_line(error))
        self._seen[key] = True
        return found


def _bits(features: Tensor) -> Tensor:
    return features.contiguous().view(torch.uint8)


def cuda_graphs() -> Record:
    """Records as CUDA graphs, which share their memory."""
    pool: Any = torch.cuda.graph_pool_handle()

    def record(function: Function, x: Tensor) -> Function:
        graph, given, stream = torch.cuda.CUDAGraph(), x.clone(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                answer = function(given)
        finally:
            torch.cuda.set_stream(stream)  # which a capture that fails does not do

        def replay(x: Tensor) -> Tensor:
            given.copy_(x)
            graph.replay()
            return answer.clone()

        return replay

    return record
