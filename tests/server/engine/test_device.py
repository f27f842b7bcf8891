"""A device that fails: memory that runs out, a device that is lost, numbers that are none.

The errors are PyTorch's own, raised on a CPU in a tower's place.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import structlog
import torch
from numpy.typing import NDArray

from craft_server.engine import (
    Engine,
    ModelLoadError,
    ModelSpec,
    NotFinite,
    Overloaded,
    Prompts,
    WorkerDied,
    device,
)
from craft_server.engine import engine as module
from craft_server.engine.text import TextTower
from craft_server.engine.worker import Task, Worker
from craft_server.processes import supervisor
from craft_shared.wire import Context

CLASSES = ["cat", "golden retriever", "hot-air balloon", "dog"]
CODES = np.random.default_rng(3).standard_normal((5, 16), dtype=np.float32)
PROMPTS = Prompts(("a photo of a {}.",), Context(dim=16), CODES)
OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    MemoryError(),
]
LOST = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
]


@pytest.fixture
def engine(tiny_engine: Engine) -> Iterator[Engine]:
    """One that a test may break."""
    engine = Engine.load(ModelSpec(name=tiny_engine.name, device="cpu", precision="float32"))
    yield engine
    engine.close()


def texts(engine: Engine, prompts: Prompts = PROMPTS) -> NDArray[np.float32]:
    return asyncio.run(engine.encode_prompts(prompts, CLASSES))


def images(engine: Engine, count: int = 6) -> NDArray[np.float32]:
    side = engine.image_size
    return asyncio.run(engine.encode_images(list(torch.randn(count, 3, side, side).sin())))


class Small:
    """A tower on a device with memory for so many texts at a time."""

    def __init__(self, tower: Any, most: int, error: Exception) -> None:
        self._tower, self._most, self._error = tower, most, error
        self.alive: list[int] = []  # how many failed attempts hold memory, at each attempt
        self._held: list[weakref.ref[Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tower, name)

    def encode(self, batch: Sequence[Any]) -> Any:
        self.alive.append(sum(held() is not None for held in self._held))
        activations = torch.zeros(8)
        self._held.append(weakref.ref(activations))
        found = self._tower.encode(batch)
        if found.shape[0] * found.shape[1] > self._most:
            raise type(self._error)(*self._error.args)
        return found


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_texts_are_read_in_halves_where_memory_runs_out(engine: Engine, error: Exception) -> None:
    whole = texts(engine)
    small: Any = Small(engine._tower, 3, error)
    engine._tower = small
    engine.text_features.discard(lambda _: True)
    before = device._TIMES_OUT_OF_MEMORY._value.get()
    gc.disable()
    try:
        assert np.allclose(texts(engine), whole, atol=1e-5)
    finally:
        gc.enable()
    assert len(small.alive) > 8
    assert set(small.alive) == {0}, "a failed attempt still holds its tensors"
    assert device._TIMES_OUT_OF_MEMORY._value.get() > before


def test_what_memory_never_suffices_for_is_refused_as_overload(engine: Engine) -> None:
    small: Any = Small(engine._tower, 0, OUT_OF_MEMORY[0])
    engine._tower = small
    with pytest.raises(Overloaded, match="too little memory"):
        texts(engine)
    assert engine.alive
    engine._tower = small._tower
    assert np.isfinite(texts(engine)).all()


def test_images_and_scores_are_done_in_halves_where_memory_runs_out(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x = images(engine)
    t = texts(engine)
    scores = asyncio.run(engine.score(x, t))
    encode, softmax = engine._vision.encode, Tensor_log_softmax

    def one_image(some: Sequence[torch.Tensor]) -> NDArray[np.float32]:
        if len(some) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return encode(some)

    def one_row(logits: torch.Tensor, dim: int) -> torch.Tensor:
        if logits.shape[:2] != (1, 1):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return softmax(logits, dim)

    monkeypatch.setattr(engine._vision, "encode", one_image)
    torch.manual_seed(0)
    assert np.allclose(images(engine), x, atol=1e-5)
    monkeypatch.setattr(torch.Tensor, "log_softmax", one_row)
    assert np.allclose(asyncio.run(engine.score(x, t)), scores, atol=1e-5)


Tensor_log_softmax = torch.Tensor.log_softmax


def test_tasks_that_failed_together_hold_nothing_while_they_are_done_again() -> None:
    held: list[weakref.ref[Any]] = []
    seen = []

    def kind(batch: Sequence[int]) -> list[int]:
        seen.append((len(batch), sum(one() is not None for one in held)))
        activations = torch.zeros(8)
        held.append(weakref.ref(activations))
        raise RuntimeError("no")

    worker = Worker("test")
    gc.disable()
    try:
        gate: list[Any] = worker.submit(lambda batch: [_sleep() for _ in batch], [Task(0, 0.0)])
        futures = [worker.submit(kind, [Task(i, 0.2, merges=True)])[0] for i in range(3)]
        errors = [future.exception(10) for future in (*gate, *futures)]
    finally:
        gc.enable()
        worker.close()
    assert [type(error) for error in errors] == [type(None), *[RuntimeError] * 3]
    assert seen == [(3, 0), (1, 0), (1, 0), (1, 0)]
    assert not any(one() is not None for one in held)


def _sleep() -> None:
    import time

    time.sleep(0.2)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", LOST, ids=repr)
def test_a_lost_device_ends_the_engine_and_says_so_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    dead = []
    engine.when_dead(lambda: dead.append(engine.alive))
    monkeypatch.setattr(engine._tower, "encode", fail)
    with structlog.testing.capture_logs() as logs, pytest.raises(WorkerDied):
        texts(engine, Prompts(("a {}.",), None, np.zeros((0, 0), np.float32)))
    assert not engine.alive
    engine._worker._threads[0].join(10)
    assert dead == [False]
    assert [line["log_level"] for line in logs if "lost" in line["event"]] == ["critical"]
    with pytest.raises(WorkerDied):
        images(engine)


def test_an_error_that_leaves_the_device_as_it_was_is_its_callers_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:

    def fail(*_: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: invalid configuration argument")

    monkeypatch.setattr(engine._tower, "encode", fail)
    plain = Prompts(("a {}.",), None, np.zeros((0, 0), np.float32))
    with pytest.raises(RuntimeError, match="invalid configuration"):
        texts(engine, plain)
    assert engine.alive
    monkeypatch.undo()
    assert np.isfinite(texts(engine, plain)).all()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_whose_reader_has_ended_is_not_alive(engine: Engine) -> None:
    dead = []
    engine.when_dead(lambda: dead.append(True))

    def end() -> Iterator[None]:
        raise SystemExit
        yield

    with pytest.raises(WorkerDied):
        asyncio.run(engine._read(end(), ""))  # type: ignore[arg-type]
    assert not engine.alive
    for thread in engine._reader._threads:
        thread.join(10)
    assert dead == [True]


def test_an_engine_that_is_closed_has_not_died(tiny_engine: Engine) -> None:
    engine = Engine.load(ModelSpec(name=tiny_engine.name, device="cpu", precision="float32"))
    dead = []
    engine.when_dead(lambda: dead.append(True))
    engine.close()
    assert dead == []


class Overflowing:
    """A tower in float16 whose second row is not finite."""

    def __init__(self, tower: Any) -> None:
        self._tower = tower

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tower, name)

    def encode(self, batch: Sequence[Any]) -> Any:
        found = self._tower.encode(batch)
        rows = found if isinstance(found, np.ndarray) else found[0]
        rows += 0.25  # so that it can be told from single precision
        rows[1] = float("nan")
        return found


def test_what_overflows_in_float16_is_read_in_float32(engine: Engine) -> None:
    plain = Prompts(("a photo of a {}.",), None, np.zeros((0, 0), np.float32))
    torch.manual_seed(0)
    exact = texts(engine, plain)[0], images(engine, 3)
    engine._exact_tower, engine._exact_vision = engine._tower, engine._vision
    engine._tower = Overflowing(engine._tower)  # type: ignore[assignment]
    engine._vision = Overflowing(engine._vision)  # type: ignore[assignment]
    engine.text_features.discard(lambda _: True)
    torch.manual_seed(0)
    for found, expected in zip((texts(engine, plain)[0], images(engine, 3)), exact, strict=True):
        anew = [np.array_equal(*rows) for rows in zip(found, expected, strict=True)]
        assert sum(anew) == 1
        kept = ~np.array(anew)
        assert np.allclose(found[kept], expected[kept] + 0.25)


def test_features_that_are_not_finite_are_refused_and_remembered_nowhere(engine: Engine) -> None:
    plain = Prompts(("a photo of a {}.",), None, np.zeros((0, 0), np.float32))
    tower, vision = engine._tower, engine._vision
    engine._tower = Overflowing(tower)  # type: ignore[assignment]
    engine._vision = Overflowing(vision)  # type: ignore[assignment]
    with pytest.raises(NotFinite):
        texts(engine, plain)
    with pytest.raises(NotFinite):
        images(engine, 3)
    engine._tower, engine._vision = tower, vision
    assert np.isfinite(texts(engine, plain)).all()
    with pytest.raises(NotFinite):
        asyncio.run(
            engine.score(np.full((1, 32), np.nan, np.float32), np.ones((1, 2, 32), np.float32))
        )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "does not fit the memory of device 'cpu'"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "does not fit the memory"),
        (torch.AcceleratorError("CUDA error: no kernel image"), "device 'cpu' has failed: CUDA"),
    ],
    ids=repr,
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("where", ["load_model", "towers_of", "warm-up"])
def test_a_device_that_fails_at_load_is_told_in_one_line(
    tiny_engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    message: str,
    where: str,
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    if where == "warm-up":
        monkeypatch.setattr(Engine, "_read_texts", fail)
    else:
        monkeypatch.setattr(module, where, fail)
    with pytest.raises(ModelLoadError) as caught:
        Engine.load(ModelSpec(name=tiny_engine.name, device="cpu", precision="float32"))
    assert message.partition(": CUDA")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_gpu_is_warmed_up_with_as_much_as_it_reads_at_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: dict[str, int] = {}
    of_texts, of_images = engine._read_texts, engine._read_images

    def note_texts(some: Any) -> Any:
        read["tokens"] = some.pack.tokens
        return of_texts(some)

    def note_images(some: Any) -> Any:
        read["images"] = len(some)
        return of_images(some)

    monkeypatch.setattr(engine, "_read_texts", note_texts)
    monkeypatch.setattr(engine, "_read_images", note_images)
    monkeypatch.setattr(engine, "_device", SimpleNamespace(type="cuda"))
    engine._warm_up()
    assert engine._tokens_per_task - 16 < read["tokens"] <= engine._tokens_per_task + 16
    assert read["images"] == engine._vision.images_per_task


def test_arithmetic_on_a_gpu_is_as_exact_as_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    flags = ("allow_tf32", "allow_fp16_reduced_precision_reduction")
    before = [getattr(matmul, flag) for flag in flags], cudnn.allow_tf32
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        matmul.allow_tf32 = cudnn.allow_tf32 = True
        matmul.allow_fp16_reduced_precision_reduction = True
        matmul.allow_bf16_reduced_precision_reduction = True
        device.set_up(torch.device("cuda", 0))
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert not matmul.allow_tf32
        assert not cudnn.allow_tf32
        assert not matmul.allow_fp16_reduced_precision_reduction
        assert not matmul.allow_bf16_reduced_precision_reduction
    finally:
        for flag, value in zip(flags, before[0], strict=True):
            setattr(matmul, flag, value)
        cudnn.allow_tf32 = before[1]


def test_the_log_says_where_a_model_runs_and_that_auto_found_no_gpu(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with structlog.testing.capture_logs() as logs:
        Engine.load(ModelSpec(name=tiny_engine.name, precision="float32")).close()
    events = {line["event"]: line for line in logs}
    assert "no GPU can be used: the model runs on the CPU" in events
    loaded = events["model loaded"]
    assert (loaded["device"], loaded["card"]) == ("cpu", None)
    assert (loaded["images_in"], loaded["texts_in"]) == ("float32", "float32")


def test_memory_of_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("memory_allocated", "memory_reserved", "max_memory_allocated")):
        monkeypatch.setattr(torch.cuda, name, lambda _device, value=number: value)
    assert device.memory_of(torch.device("cuda", 0)) == {"allocated": 0, "reserved": 1, "peak": 2}
    assert device.memory_of(torch.device("cpu")) == {}


def test_an_engine_in_half_precision_keeps_single_precision_for_float16_alone(
    tiny_engine: Engine,
) -> None:
    for precision, kept in {"float16": True, "bfloat16": False, "float32": False}.items():
        spec: Any = ModelSpec(name=tiny_engine.name, device="cpu", precision=precision)  # type: ignore[arg-type]
        engine = Engine.load(spec)
        assert (engine.facts.images_in, engine.facts.texts_in) == (precision, precision)
        assert (engine._exact_vision is not None, isinstance(engine._exact_tower, TextTower)) == (
            kept,
            kept,
        )
        engine.close()


WATCHED = """
import os, sys, torch
called = []
for of, name in [(torch.cuda, "is_available"), (torch.cuda, "device_count"),
                 (torch.cuda, "_lazy_init"), (torch._C, "_cuda_getDeviceCount")]:
    setattr(of, name, lambda *_, name=name, **__: called.append(name) or 0)
for module in sys.argv[1:]:
    __import__(module)
child = os.fork()
if not child:
    os._exit(torch._C._cuda_isInBadFork())
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the child may not use CUDA"
assert not torch.cuda.is_initialized()
assert not called, called
"""


def test_no_process_uses_cuda_before_it_is_forked() -> None:
    """A forked child of a process that has used CUDA cannot use it."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *supervisor._COMMON_MODULES, "craft_server.cli"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
