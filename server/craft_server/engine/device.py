"""The device that a model runs on: how it is set up, what it has run out of, and when it is lost.

Errors that say so are PyTorch's: of one kind or another, or known by their words alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import structlog
import torch
from prometheus_client import Counter
from torch import Tensor

from craft_server.engine.models import first_line
from craft_server.engine.worker import Overloaded
from craft_server.telemetry import REGISTRY

# In lower case. The allocations of cuBLAS and cuDNN fail in words of their own.
_OUT_OF_MEMORY = ("out of memory", "_status_alloc_failed", "can't allocate memory")
# A kernel that cannot be launched so leaves the device as it was (CUDA Runtime API, cudaError_t).
_PASSING = ("invalid argument", "invalid configuration argument", "too many resources requested")
_LOST = ("cuda error", "cudnn_status_execution_failed", "cublas_status_execution_failed")

_TIMES_OUT_OF_MEMORY = Counter(
    "craft_engine_out_of_memory",
    "How often the device had too little memory for what was tried at once.",
    registry=REGISTRY,
)

log = structlog.get_logger(__name__)

W = TypeVar("W")
# Work in two parts, and the axis along which their answers are joined; None if it has no parts.
Halves = Callable[[W], tuple[W, W, int] | None]


class DeviceLost(SystemExit):
    """The device computes nothing any more in this process; it ends the thread that sees it."""


def set_up(device: torch.device) -> None:
    """Sets what PyTorch leaves to the process: on a GPU arithmetic is as exact as its precision."""
    if device.type != "cuda":
        return
    # It makes a plan for each new shape, and texts come in many.
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cudnn.allow_tf32 = False
    matmul = torch.backends.cuda.matmul
    matmul.allow_tf32 = False
    matmul.allow_fp16_reduced_precision_reduction = False
    matmul.allow_bf16_reduced_precision_reduction = False


def card_of(device: torch.device) -> str | None:
    """The name of a GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def memory_of(device: torch.device) -> dict[str, int]:
    """Bytes of a GPU's memory that this process has: in use, set aside, and in use at most so far.

    Of a CPU nothing: the process's memory says it.
    """
    if device.type != "cuda":
        return {}
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "peak": torch.cuda.max_memory_allocated(device),
    }


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less work at a time might succeed."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _says(error, _OUT_OF_MEMORY)


def is_lost(error: BaseException) -> bool:
    """Whether everything that follows on this device will fail in this process."""
    if is_out_of_memory(error) or _says(error, _PASSING):
        return False
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and _says(error, _LOST)
    )


def in_halves(do: Callable[[W], Tensor], work: W, halves: Halves[W]) -> Tensor:
    """What `do` makes of some work; where memory runs out, of its halves, down to the smallest.

    Work is cut for no other reason, since how it is cut changes the last bits of an answer.

    Raises:
        Overloaded: there is no memory even for the smallest part.
        DeviceLost: the device has failed.
    """
    try:
        return do(work)
    except (RuntimeError, MemoryError) as error:
        if is_lost(error):
            log.critical("the device is lost: this process ends", error=first_line(error))
            raise DeviceLost(first_line(error)) from None
        if not is_out_of_memory(error):
            raise
        log.warning("out of memory", error=first_line(error))
    # The error is gone by now, and with it all that the failed attempt held.
    _TIMES_OUT_OF_MEMORY.inc()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # PyTorch's
        torch.cuda.empty_cache()
    parts = halves(work)
    if parts is None:
        raise Overloaded("the device has too little memory for the smallest piece of work")
    *pair, axis = parts
    return torch.cat([in_halves(do, part, halves) for part in pair], axis)


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    message = str(error).lower()
    return any(some in message for some in words)
