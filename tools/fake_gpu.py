"""A GPU that is not there: tensors that have a shape, a dtype and a device, and no data.

PyTorch's `FakeTensorMode` refuses what a GPU would: operands on two devices, or of two dtypes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from craft_server.engine import Engine, ModelFacts, ModelSpec, hosted
from craft_server.engine.engine import TOKENS_PER_TASK
from craft_server.engine.models import load_model
from craft_server.engine.precision import Precision
from craft_server.engine.tokens import Tokenizer
from craft_server.engine.worker import Task

GPU = torch.device("cuda", 0)


class Here:
    """A worker that does everything at once, where the fake GPU is."""

    async def run(  # noqa: D102 - as `Worker.run`
        self, kind: Any, tasks: Sequence[Task[Any]], *, tenant: str = ""
    ) -> list[Any]:
        return [result for task in tasks for result in kind([task.payload])]

    def close(self) -> None:  # noqa: D102 - as `Worker.close`
        pass


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Where the answers to what nobody can know are: finite, yes; on the way home: zeros."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    empty, tensor, read_tokenizer = torch.empty, torch.tensor, hosted._tokenizer

    def numpy(tensor: FakeTensor) -> NDArray[Any]:
        assert tensor.device.type == "cpu", "a tensor on the GPU has no numbers here"
        return np.zeros(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    def unpinned(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return empty(*args, **kwargs)  # only a driver pins

    monkeypatch.setattr(FakeTensor, "numpy", numpy, raising=False)
    monkeypatch.setattr(FakeTensor, "__bool__", lambda _: True, raising=False)
    monkeypatch.setattr(FakeTensor, "__float__", lambda _: 1.0, raising=False)

    def made(make: Callable[..., torch.Tensor], data: Any, **kwargs: Any) -> torch.Tensor:
        device = kwargs.pop("device", "cpu")
        with unset_fake_temporarily():
            real = make(data, **kwargs)
        return mode.from_tensor(real).to(device)

    def tokenizer(facts: ModelFacts) -> Tokenizer:
        with unset_fake_temporarily(), monkeypatch.context() as real:
            real.setattr(torch, "tensor", tensor)
            return read_tokenizer(facts)

    monkeypatch.setattr(hosted, "_tokenizer", tokenizer)
    monkeypatch.setitem(TOKENS_PER_TASK, "cuda", 256)  # which many texts take long to fill
    monkeypatch.setattr(torch, "empty", unpinned)
    # Otherwise PyTorch remembers the values of the smallest, and moves them to a real device.
    monkeypatch.setattr(torch, "from_numpy", partial(made, torch.from_numpy))
    monkeypatch.setattr(torch, "tensor", partial(made, tensor))
    monkeypatch.setattr(nn.Module, "_apply", _apply)
    with mode:
        yield mode


def engine_on(mode: FakeTensorMode, name: str, precision: Precision) -> Engine:
    """The model's engine on the fake GPU, in whose mode this is called."""
    with unset_fake_temporarily():
        model = load_model(ModelSpec(name, device="cpu"))
    move(mode, model.module, GPU)
    worker: Any = Here()
    there = replace(model, device=GPU)
    return Engine(there, precision, worker, 1, text_features_bytes=2**20)


def move(mode: FakeTensorMode, module: nn.Module, device: torch.device) -> None:
    """Puts fake weights on the device in the places of a module's own."""
    _apply(module, lambda weight: mode.from_tensor(weight.detach()).to(device))


def _apply(module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """As `Module._apply`, which exchanges what lies behind weights; with fake ones it cannot."""
    for part in module.modules():
        for key, weight in part._parameters.items():
            if weight is not None:
                part._parameters[key] = nn.Parameter(change(weight), requires_grad=False)
        for key, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[key] = change(buffer)
    return module
