"""Measures a model on this machine: how fast its towers are, and what memory it takes.

The engine is asked as the server asks it, on a CPU; times are medians. On a machine that has other
work to do, `shared` measures in processor time, which that work does not take: what keeps cores
busy by itself would take as much of the clock's time on a machine of its own.
"""

from __future__ import annotations

import asyncio
import io
import platform
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from craft_server.decoding.pixels import decode
from craft_server.engine import Engine, ModelSpec, Prompts
from craft_server.engine.engine import MOST_THREADS, TOKENS_PER_TASK
from craft_server.engine.hosted import preprocessing_of
from craft_server.engine.text import packs
from craft_server.plan.costs import Architecture, Machine, ModelCost, Precision, TextRates
from craft_server.plan.runs import PLAIN, Texts, multiply_adds
from craft_shared.wire import Context

# Names of one word and of two, as classes have them.
# fmt: off
NAMES = (
    "apple", "bicycle", "bookshelf", "bridge", "butterfly", "camera", "candle", "castle",
    "cathedral", "chair", "clock", "coffee mug", "computer keyboard", "cow", "crab", "daisy",
    "desk lamp", "dolphin", "elephant", "envelope", "fire engine", "flamingo", "football",
    "fountain", "garden hose", "goldfish", "grand piano", "hammer", "harbour", "hedgehog",
    "helicopter", "kettle", "ladder", "lighthouse", "lion", "mailbox", "motorcycle", "mushroom",
    "owl", "parachute", "pineapple", "rowing boat", "sailing ship", "snowman", "starfish",
    "tennis racket", "umbrella", "windmill",
)
# fmt: on
_DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_DIM = 512
_PACKS_PER_CORE = 2
_PRODUCT_SIDE = 1024
_MOST_PIXELS = 50_000_000


def measure_model(
    name: str, pretrained: str | None, precision: Precision, *, shared: bool = False
) -> ModelCost:
    """Loads and measures a model in a process of its own; takes about a minute.

    Raises:
        ModelLoadError: it cannot be loaded.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure_here, name, pretrained, precision, shared).result()


def measure_machine(*, shared: bool = False) -> Machine:
    """This machine's name, cores and rates of a large matrix product."""
    cores = torch.get_num_threads()
    rates = {precision: _product_rate(dtype, cores, shared) for precision, dtype in _DTYPES.items()}
    return Machine(name=f"{cores} cores of {_processor()}", cores=cores, product_rates=rates)


def picture(side: int, seed: int = 0) -> bytes:
    """A JPEG file of smooth noise."""
    rng = np.random.default_rng(seed)
    noise = Image.fromarray(rng.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8))
    file = io.BytesIO()
    noise.resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def context(dim: int, seed: int) -> Context:
    """The search space of codes that move the plain prompt."""
    return Context(init=PLAIN, dim=dim, seed=seed, scale=3.0)


def memory(name: str, process: str = "self") -> int:
    """Bytes of `VmRSS` or `VmHWM` of a process; 0 where /proc does not tell."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def _measure_here(
    name: str, pretrained: str | None, precision: Precision, shared: bool
) -> ModelCost:
    architecture = Architecture.of(name)
    spec = ModelSpec(name, pretrained, device="cpu", precision=precision)
    with closing(Engine.load(spec)) as engine, asyncio.Runner() as runner:
        loaded = memory("VmRSS")
        cores = min(torch.get_num_threads(), MOST_THREADS)
        busy = _Stopwatch(cores if shared else None)
        rates = _text_rates(engine, architecture, runner, cores, busy)
        tensors = [torch.randn(3, engine.image_size, engine.image_size) for _ in range(16 * cores)]
        images = busy.median(lambda: runner.run(engine.encode_images(tensors)), 3)
        alone = _Stopwatch(1 if shared else None)
        small, large = (_decoding(engine, picture(side), cores, busy) for side in (256, 1024))
        slope = max(0.0, (large - small) / (1024**2 - 256**2))
        row, score = _score_seconds(engine, architecture.features, runner, alone)
        return ModelCost(
            precision=precision,
            texts=rates,
            image_core_seconds=images / len(tensors) * cores,
            decode_core_seconds=max(0.0, small - slope * 256**2),
            decode_pixel_core_seconds=slope,
            score_row_seconds=row,
            score_seconds=score,
            loaded_bytes=loaded,
            peak_bytes=memory("VmHWM"),
        )


def _text_rates(
    engine: Engine,
    architecture: Architecture,
    runner: asyncio.Runner,
    cores: int,
    busy: _Stopwatch,
) -> TextRates:
    texts = Texts.of_names(architecture.name, NAMES)
    space = context(_DIM, seed=1)
    rng = np.random.default_rng(1)
    bound = TOKENS_PER_TASK["cpu"]

    def work(prompts: int) -> float:
        cut = packs(texts.sequences, prompts=prompts, max_tokens=bound)
        return sum(multiply_adds(architecture, pack) for pack in cut)

    def ask(prompts: int) -> None:
        # New codes each time, so that nothing is remembered.
        codes = rng.standard_normal((prompts, _DIM), dtype=np.float32)
        runner.run(engine.encode_prompts(Prompts((), space, codes), NAMES))

    many = _PACKS_PER_CORE * cores * (bound // texts.tokens)
    ask(1)
    # Threads that share a product wait busily for each other, so that processor time says nothing.
    clock = _Stopwatch(None)
    alone = (
        clock.median(lambda: ask(1), 9) if busy.cores is None else clock.least(lambda: ask(1), 25)
    )
    ask(cores)
    together = busy.median(lambda: ask(many), 3)
    return TextRates(
        packed_per_core=work(many) / together / cores, shared_per_core=work(1) / alone / cores
    )


def _decoding(engine: Engine, file: bytes, cores: int, busy: _Stopwatch) -> float:
    """Seconds of a core for an image, while all cores decode, as the server's processes do."""
    files = [file] * 16 * cores
    view, to_tensor = preprocessing_of(engine.facts.preprocess_cfg)

    def decode_one(file: bytes) -> None:
        to_tensor(np.array(view.of(decode(file, max_pixels=_MOST_PIXELS))))

    with ThreadPoolExecutor(cores, initializer=partial(torch.set_num_threads, 1)) as decoders:

        def decode_all() -> None:
            list(decoders.map(decode_one, files))

        decode_all()
        return busy.median(decode_all, 3) / len(files) * cores


def _score_seconds(
    engine: Engine, features: int, runner: asyncio.Runner, alone: _Stopwatch
) -> tuple[float, float]:
    """For an image under a prompt, and for each class of it."""

    def a_row(prompts: int, images: int, classes: int) -> float:
        x, t = _units(images, features), _units(prompts, classes, features)
        seconds = alone.median(lambda: runner.run(engine.score(x, t, "float16")), 5)
        return seconds / (prompts * images)

    few, many = a_row(32, 512, 48), a_row(8, 512, 1000)
    each = max(0.0, (many - few) / (1000 - 48))
    return max(0.0, few - 48 * each), each


def _units(*shape: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(2).standard_normal(shape, dtype=np.float32)
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return unit


def _product_rate(dtype: torch.dtype, cores: int, shared: bool) -> float:
    left, right = (torch.randn(_PRODUCT_SIDE, _PRODUCT_SIDE).to(dtype) for _ in range(2))
    torch.set_num_threads(1 if shared else cores)
    left @ right
    seconds = _Stopwatch(1 if shared else None).median(lambda: left @ right, 51)
    torch.set_num_threads(cores)
    return _PRODUCT_SIDE**3 / seconds * (cores if shared else 1)


@dataclass(frozen=True)
class _Stopwatch:
    """Seconds of calls: by the clock, or of processor time that so many cores share evenly."""

    cores: int | None

    def median(self, function: Callable[[], object], repetitions: int) -> float:
        """Of a call."""
        return statistics.median(self._each(function, repetitions))

    def least(self, function: Callable[[], object], repetitions: int) -> float:
        """Of the call that was disturbed least."""
        return min(self._each(function, repetitions))

    def _each(self, function: Callable[[], object], repetitions: int) -> list[float]:
        now = time.perf_counter if self.cores is None else time.process_time
        times = []
        for _ in range(repetitions):
            began = now()
            function()
            times.append((now() - began) / (self.cores or 1))
        return times


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine() or "an unknown processor"
