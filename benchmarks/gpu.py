"""What a GPU does for craftbox: whether it is right and how fast it is, in at most eight minutes.

It needs this file, a wheel of craftbox with the extras client and server, and one GPU; the models'
weights are pocket's, which come along, or random. Each section is a process of its own with a bound
on its time: one that fails is told in a line, and the others go on. The JSON is written after each.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --dry-run        # on the CPU, small, within a minute

Event time is the GPU's from the first to the last of a call, busy time that of its kernels and
copies. Launches are those of kernels, copies and graphs. On the CPU there is none of these.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import io
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn import attention, functional

from craft_client.api import Client
from craft_client.network import http_options
from craft_client.predictions import prediction_call
from craft_client.presets import common_nouns
from craft_server.engine import Engine, ModelLoadError, ModelSpec, Prompts
from craft_server.engine.text import CHUNK_TOKENS, TextTower
from craft_server.engine.vision import EagerVision
from craft_shared.wire import Context, PredictionRequest

SECONDS = 480  # for all
GENERATIONS, POPULATION = 200, 41  # of the paper's run: with the plain prompt 8,201 queries
CONTEXT = Context(init="a photo of a", dim=512, seed=1, scale=1.0)
SHARED_TOKENS = 5  # the start and these words
TEMPLATE = "a photo of a {}."
LAUNCHES = (
    *("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch"),
    *("cudaMemcpyAsync", "cudaMemsetAsync"),
)
KINDS = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")

Line = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much is measured, and where."""

    device: str = "cuda"
    model: str = "RN50"
    prompts: tuple[int, ...] = (1, 41, 256)
    classes: tuple[int, ...] = (47, 1000)
    photographs: int = 512
    batches: tuple[int, ...] = (1, 8, 32, 128, 256)
    uploaded: int = 1024
    rounds: int = 20
    others: int = 15
    generations: int = 20
    shots: int = 16
    precision: str = "auto"  # as servers have it
    compared: tuple[str, ...] = ("float32", "float16", "bfloat16")


Section = Callable[[Size], Iterator[Line]]
DRY = Size(
    *("cpu", "pocket", (1, 3), (4, 10), 8, (1, 4), 8, 3, 3, 2, 1),
    precision="float32",  # which loads fastest
    compared=("float16",),
)


@dataclass(frozen=True)
class Aim:
    """What a number should be: at most `most`, at least `least`."""

    name: str
    most: float | None = None
    least: float | None = None

    def verdict(self, found: float | None) -> str:
        if found is None:
            return "not measured"
        met = found <= self.most if self.most is not None else found >= (self.least or 0)
        return "met" if met else "not met"


INEXACT = Aim("inexact arithmetic that is allowed", most=0)
TOP1 = Aim("float16's top-1 answers that are float32's, %", least=99)
ALONE = Aim("answers to one call, asked again and again", most=1)
BESIDE = Aim("answers to it, beside other callers too", most=1)
UPLOAD = Aim("uploading, times what decoding alone takes", most=1.25)
FAILURES = Aim("failures that are not answered as docs/maintaining/engine.md says", most=0)
WHOLE_RUN = Aim("8,201 queries over HTTP, s", most=60)
IN_TIME = Aim("this script, s", most=SECONDS)
AIMS = (INEXACT, TOP1, ALONE, BESIDE, UPLOAD, FAILURES, WHOLE_RUN, IN_TIME)


def found(aim: Aim, number: float) -> Line:
    """A line of a section that no table shows."""
    return {"of_aim": aim.name, "found": number}


# --- what sections share ------------------------------------------------------------------------


@contextmanager
def loaded(
    size: Size, model: str = "", precision: str = "", device: str = "", **options: Any
) -> Iterator[Engine]:
    spec = ModelSpec(
        model or size.model,
        device=device or size.device,
        precision=precision or size.precision,  # type: ignore[arg-type] # one of them
    )
    engine = Engine.load(spec, **options)
    try:
        yield engine
    finally:
        engine.close()


def photographs(count: int, side: int = 256) -> list[bytes]:
    """JPEG files, no two alike: cuts of scikit-learn's two photographs."""
    rng, scenes = np.random.default_rng(1), load_sample_images().images
    files = []
    for number in range(count):
        scene = scenes[number % len(scenes)]
        size = int(rng.integers(96, min(scene.shape[:2])))
        top, left = (int(rng.integers(0, length - size + 1)) for length in scene.shape[:2])
        cut = Image.fromarray(scene[top : top + size, left : left + size])
        file = io.BytesIO()
        cut.resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def codes_of(count: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, CONTEXT.dim), dtype=np.float32)


def decoded(engine: Engine, files: Sequence[bytes]) -> list[Tensor]:
    images = asyncio.run(engine.decode_images(files, max_pixels=10**8))
    return [image for image in images if isinstance(image, Tensor)]


def timed(size: Size, call: Callable[[], object], times: int = 5) -> Line:
    """Medians in ms, by the clock and by the GPU's events, after one call that does not count."""
    call()
    wall, events = [], []
    for _ in range(times):
        if size.device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
        began = time.perf_counter()
        call()
        if size.device == "cuda":
            end.record()
            torch.cuda.synchronize()
            events.append(begin.elapsed_time(end))
        wall.append(1000 * (time.perf_counter() - began))
    return {
        "wall_ms": statistics.median(wall),
        "event_ms": statistics.median(events) if events else None,
    }


def profiled(size: Size, call: Callable[[], object]) -> Line:
    """How long the GPU is busy with a call, in ms, and how much is launched."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if size.device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        call()
    if size.device == "cpu":
        return {"busy_ms": None, "launches": None}
    events = profile.events() or []
    on_gpu = [one for one in events if one.device_type == torch.autograd.DeviceType.CUDA]
    return {
        "busy_ms": sum(one.time_range.elapsed_us() for one in on_gpu) / 1000,
        "launches": sum(one.name.startswith(LAUNCHES) for one in events),
    }


def program(command: str, *arguments: object) -> list[str]:
    """`craft` or `craft-server`, or `failing-server`, by this interpreter."""
    package = {"craft": "craft_client.cli", "craft-server": "craft_server.cli"}.get(command)
    start = f"from {package} import app; app()" if package else "import gpu; gpu.serve_failing()"
    return [sys.executable, "-c", start, *map(str, arguments)]


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[bytes]
    env: Mapping[str, str]  # in which `craft` finds it

    @property
    def url(self) -> str:
        return self.env["CRAFT_URL"]

    @property
    def key(self) -> str:
        return self.env["CRAFT_API_KEY"]

    def get(self, path: str) -> httpx.Response | None:
        """None where nobody answers."""
        key = {"Authorization": f"Bearer {self.key}"}
        try:
            return httpx.get(self.url + path, headers=key, timeout=60)
        except httpx.TransportError:
            return None

    def metric(self, name: str) -> float:
        """Of all labels together."""
        text = answer.text if (answer := self.get("/metrics")) is not None else ""
        return sum(map(float, re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)))


@contextmanager
def serving(size: Size, command: str = "craft-server", **settings: str) -> Iterator[Server]:
    """A server, and a key that may also read its metrics."""
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "CRAFT_DATA_DIR": folder, **settings}
        made = program("craft-server", "keys", "create", "--owner", "gpu", "--json")
        made += ["--scope", "predict", "--scope", "admin"]
        created = subprocess.run(made, env=env, check=True, stdout=subprocess.PIPE)
        port = free_port()
        env["CRAFT_API_KEY"] = json.loads(created.stdout)["key"]
        env["CRAFT_URL"] = f"http://127.0.0.1:{port}"
        options = ("--model", size.model, "--device", size.device, "--port", port)
        options += ("--precision", size.precision)
        with Path(folder, "server.log").open("wb") as log:
            process = subprocess.Popen(
                program(command, "serve", *options), env=env, stdout=log, stderr=log
            )
        server = Server(process, env)
        try:
            while (ready := server.get("/readyz")) is None or not ready.is_success:
                if process.poll() is not None:
                    said = Path(folder, "server.log").read_text().strip().splitlines()
                    raise RuntimeError(f"the server ended at once: {said[-1:]}")
                time.sleep(0.1)
            yield server
        finally:
            process.terminate()
            process.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


# --- sections -----------------------------------------------------------------------------------


def flags(size: Size) -> Iterator[Line]:
    """What is set once a model is loaded, and what it takes of the GPU's memory."""
    if size.device == "cuda":
        card = torch.cuda.get_device_properties()
        yield {
            "card": card.name,
            "memory_gib": card.total_memory / 2**30,
            "cuda": torch.version.cuda,
        }
    for precision in size.compared:
        began = time.perf_counter()
        with loaded(size, precision=precision) as engine:
            took = time.perf_counter() - began
            memory = asyncio.run(engine.state()).device_memory
            mib = {f"{name}_mib": memory.get(name, 0) / 2**20 for name in ("allocated", "peak")}
            yield {"precision": precision, "load_s": took, **mib}
        del engine
        gc.collect()
        if size.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
    matmul = torch.backends.cuda.matmul
    inexact = {
        "cuDNN's attention": torch.backends.cuda.cudnn_sdp_enabled(),
        "TF32 in convolutions": torch.backends.cudnn.allow_tf32,
        "TF32 in products": matmul.allow_tf32,
        "float16 sums": matmul.allow_fp16_reduced_precision_reduction,
        "bfloat16 sums": matmul.allow_bf16_reduced_precision_reduction,
    }
    for name, allowed in inexact.items():
        yield {"flag": name, "allowed": bool(allowed)}
    if size.device == "cuda":
        yield found(INEXACT, sum(map(bool, inexact.values())))


def precision(size: Size) -> Iterator[Line]:
    """pocket on the GPU beside float32 on the CPU: log-probabilities and top-1 answers."""
    classes = common_nouns()[: size.classes[0]]
    prompts = Prompts((TEMPLATE,), CONTEXT, codes_of(7, 1))
    answers: dict[tuple[str, str], NDArray[np.float32]] = {}
    images: list[Tensor] = []
    cases = [("cpu", "float32"), *((size.device, name) for name in size.compared)]
    for device, name in cases:
        try:
            with loaded(size, "pocket", name, device) as engine:
                images = images or decoded(engine, photographs(size.photographs))
                x = asyncio.run(engine.encode_images(images))
                t = asyncio.run(engine.encode_prompts(prompts, classes))
                answers[device, name] = asyncio.run(engine.score(x, t))
        except ModelLoadError as error:
            yield {"device": device, "precision": name, "refused": str(error)}
            continue
        exact, these = answers["cpu", "float32"], answers[device, name]
        off = np.abs(these - exact)
        equal = 100 * float((these.argmax(-1) == exact.argmax(-1)).mean())
        yield {
            "device": device,
            "precision": name,
            "log_probs_off_mean": float(off.mean()),
            "log_probs_off_most": float(off.max()),
            "top1_equal_percent": equal,
        }
    single, half = (answers.get((size.device, name)) for name in ("float32", "float16"))
    if single is not None and half is not None:
        yield found(TOP1, 100 * float((single.argmax(-1) == half.argmax(-1)).mean()))


def kinds(size: Size) -> Iterator[Line]:
    """Kinds of attention by shape: eight heads of 64, as RN50's text tower has them."""
    device, dtype = torch.device(size.device), torch.float16
    if size.device == "cpu":
        dtype = torch.float32
    keys = SHARED_TOKENS + CHUNK_TOKENS
    seen = torch.ones(CHUNK_TOKENS, keys, dtype=torch.bool, device=device).tril(SHARED_TOKENS)
    for prompts in size.prompts:
        for classes in size.classes:
            chunks = -(-classes * 3 // CHUNK_TOKENS)
            shapes = {
                "a chunk": (prompts, CHUNK_TOKENS, keys, seen),
                "all chunks": (prompts * chunks, CHUNK_TOKENS, keys, seen),
                "whole texts": (prompts * classes, 77, 77, None),
            }
            for what, (batch, asking, asked, mask) in shapes.items():
                line: Line = {"attention": what, "prompts": prompts, "classes": classes}
                for kind in KINDS:
                    one = [kind, batch, asking, asked, mask, device, dtype]
                    line[kind.lower().removesuffix("_attention")] = _attention_ms(size, *one)
                yield line


def _attention_ms(
    size: Size,
    kind: str,
    batch: int,
    asking: int,
    asked: int,
    mask: Tensor | None,
    device: torch.device,
    dtype: torch.dtype,
) -> float | str:
    """Of one call in one layer."""
    try:
        q = torch.randn(batch, 8, asking, 64, device=device, dtype=dtype)
        k, v = torch.randn(2, batch, 8, asked, 64, device=device, dtype=dtype)
        with attention.sdpa_kernel(getattr(attention.SDPBackend, kind)), torch.inference_mode():
            took = timed(
                size,
                lambda: functional.scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, is_causal=mask is None
                ),
            )
    except torch.OutOfMemoryError:
        return "out of memory"
    except RuntimeError:
        return "refused"
    return float(took["event_ms"] or took["wall_ms"])


def texts(size: Size) -> Iterator[Line]:
    """The text engine, with codes that nobody has asked before."""
    asked = 0
    with loaded(size) as engine:
        for classes in size.classes:
            names = common_nouns()[:classes]
            for prompts in size.prompts:

                def ask(prompts: int = prompts, names: Sequence[str] = names) -> None:
                    nonlocal asked
                    asked += 1
                    codes = Prompts((), CONTEXT, codes_of(prompts, asked))
                    asyncio.run(engine.encode_prompts(codes, names))

                yield {
                    "precision": engine.facts.texts_in,
                    "prompts": prompts,
                    "classes": classes,
                    **timed(size, ask),
                    **profiled(size, ask),
                }


def repeated(size: Size) -> Iterator[Line]:
    """The same call again and again, alone and beside others: how many answers it gets."""
    names = common_nouns()[: size.classes[0]]
    # Nothing is remembered.
    with loaded(size, text_features_bytes=0) as engine:
        images = decoded(engine, photographs(32 if size.device == "cuda" else 4))

        async def call(who: int, prompts: int) -> list[bytes]:
            asked = Prompts((TEMPLATE,), CONTEXT, codes_of(prompts, who))
            tenant = str(who)
            x = await engine.encode_images(images[who % 3 :], tenant=tenant)
            t = await engine.encode_prompts(asked, names, tenant=tenant)
            scores = await engine.score(x, t, tenant=tenant)
            return [x.tobytes(), t.tobytes(), scores.tobytes()]

        async def beside() -> list[bytes]:
            others = (call(1 + other, 1 + other % 7) for other in range(size.others))
            mine, *_ = await asyncio.gather(call(0, max(size.prompts[:2])), *others)
            return mine

        alone = [asyncio.run(call(0, max(size.prompts[:2]))) for _ in range(size.rounds)]
        among = [asyncio.run(beside()) for _ in range(size.rounds)]
    counts = {}
    for part, what in enumerate(("images", "texts", "log-probabilities")):
        ours = {answer[part] for answer in alone}
        every = ours | {answer[part] for answer in among}
        counts[what] = len(ours), len(every)
        yield {"answers": what, "alone": len(ours), "beside_others_too": len(every)}
    yield found(ALONE, max(ours for ours, _ in counts.values()))
    yield found(BESIDE, max(every for _, every in counts.values()))


def images(size: Size) -> Iterator[Line]:
    """Image batches, once decoded."""
    with loaded(size) as engine:
        pixels = decoded(engine, photographs(max(size.batches)))
        for batch in size.batches:
            took = timed(size, lambda some=pixels[:batch]: asyncio.run(engine.encode_images(some)))  # type: ignore[misc]
            rate = 1000 * batch / took["wall_ms"]
            yield {"batch": batch, **took, "images_a_second": rate}


def failures(size: Size) -> Iterator[Line]:
    """Out of memory for some work and for all, and a failed assertion, through a server."""
    with tempfile.TemporaryDirectory() as folder:
        flag = Path(folder, "failure")
        flag.write_text("")
        paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        settings = {"FAILURE": str(flag), "PYTHONPATH": paths, "CRAFT_DRAIN_SECONDS": "0"}
        wrong = 0
        with serving(size, "failing-server", **settings) as server:
            files = photographs(1)
            for number, (kind, status) in enumerate(
                (("", 200), ("some", 200), ("all", 503), ("", 200), ("assertion", 503))
            ):
                before = server.metric("craft_engine_out_of_memory_total")
                flag.write_text(kind)
                answer = _ask(server, size, number, files)
                line: Line = {
                    "failure": kind or "none",
                    "status": answer.status_code,
                    "retry_after": answer.headers.get("Retry-After"),
                }
                if kind == "assertion":
                    line["ended_with"] = server.process.wait(30)
                    right = line["ended_with"] == 1
                else:
                    ready = server.get("/readyz")
                    line["ready"] = ready.status_code if ready is not None else None
                    more = server.metric("craft_engine_out_of_memory_total") - before
                    line["times_out_of_memory"] = more
                    right = line["ready"] == 200 and (more > 0) == (kind in ("some", "all"))
                right = right and line["status"] == status
                right = right and (line["retry_after"] is not None) == (status == 503)
                wrong += not right
                yield {**line, "as_documented": right}
        yield found(FAILURES, wrong)


def _ask(server: Server, size: Size, number: int, files: list[bytes]) -> httpx.Response:
    """Once, what nobody has asked before."""
    prompts = max(size.prompts[:2])
    classes = list(common_nouns()[: size.classes[-1]])
    request = PredictionRequest(model=size.model, classes=classes, context=CONTEXT)
    call, _ = prediction_call(request, codes_of(prompts, number), files, None, None)
    with httpx.Client(
        **http_options(server.url, server.key, run=None, user=None, timeout=120)
    ) as http:
        return http.send(http.build_request(**call.request()))


def serve_failing() -> None:
    """`craft-server`, whose text tower fails as the file says that FAILURE names."""
    from craft_server.cli import app

    flag, held = Path(os.environ["FAILURE"]), list[Tensor]()

    def failing(tower: type, *, fails: bool) -> None:
        encode = tower.encode  # type: ignore[attr-defined]

        def encoding(self: Any, read: Any) -> Any:
            kind = flag.read_text()
            if fails or not kind:
                fail = _fail_on_gpu if torch.cuda.is_initialized() else _fail_in_words
                fail(kind, read, held)
            return encode(self, read)

        tower.encode = encoding  # type: ignore[attr-defined]

    failing(TextTower, fails=True)
    failing(EagerVision, fails=False)
    app()


def _fail_on_gpu(kind: str, _: Any, held: list[Tensor]) -> None:
    """In earnest: memory is bounded and filled, and an index is out of bounds."""
    if kind == "assertion":
        torch.zeros(1, device="cuda")[torch.ones(1, dtype=torch.long, device="cuda")].cpu()
    if not kind:
        held.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)
        return
    torch.cuda.empty_cache()
    bound = torch.cuda.memory_reserved() + (2**28 if kind == "some" else 0)
    total = torch.cuda.get_device_properties().total_memory
    torch.cuda.set_per_process_memory_fraction(bound / total)
    for size in (2**20, 2**14, 2**9) if kind == "all" else ():
        with suppress(torch.OutOfMemoryError):
            while True:
                held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))


def _fail_in_words(kind: str, read: Any, _: list[Tensor]) -> None:
    if kind == "all" or (kind == "some" and len(read.pack.prompts) > 1):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    if kind == "assertion":
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")


def over_http(size: Size) -> Iterator[Line]:
    """Uploading beside decoding alone, and the paper's recipe by `craft tune`."""
    files = photographs(size.uploaded)
    with loaded(size) as engine:
        decoded(engine, files[:4])
        began = time.perf_counter()
        decoded(engine, files)
        decoding = time.perf_counter() - began
    with serving(size) as server:
        with Client(server.url, server.key) as client:
            client.upload_images(client.create_image_set(size.model), photographs(4, side=64))
            image_set = client.create_image_set(size.model)
            began = time.perf_counter()
            client.upload_images(image_set, files)
            uploading = time.perf_counter() - began
        yield {"images": len(files), "decoding_alone_s": decoding, "uploading_s": uploading}
        yield found(UPLOAD, uploading / decoding)
        yield from _whole_run(server, size)


def _whole_run(server: Server, size: Size) -> Iterator[Line]:
    """Some generations, and from them a whole run."""
    with tempfile.TemporaryDirectory() as folder:
        names = common_nouns()[: size.classes[0]]
        files = iter(photographs(size.shots * len(names)))
        data = Path(folder, "data")
        for name in names:
            (data / "train" / name).mkdir(parents=True)
            for number in range(size.shots):
                (data / "train" / name / f"{number}.jpg").write_bytes(next(files))
        runs = []
        # The first one uploads the images, and its time is what a whole run begins with.
        for number, generations in enumerate((1, 1, 1 + size.generations)):
            busy, began = server.metric("craft_engine_busy_seconds_total"), time.perf_counter()
            budget = 1 + POPULATION * generations
            options = ("--recipe", "paper", "--shots", size.shots, "--budget", budget)
            run = ("--run", Path(folder, f"run-{number}"), "--json")
            command = program("craft", "tune", "--data", data, *options, *run)
            done = subprocess.run(command, env=server.env, stdout=subprocess.PIPE, check=True)
            seconds = time.perf_counter() - began
            busy = server.metric("craft_engine_busy_seconds_total") - busy
            runs.append((seconds, busy))
            spent = json.loads(done.stdout)["charged"]["queries"]
            yield {"generations": generations, "queries": spent, "s": seconds, "model_s": busy}
    generation, model = (
        (more - one) / size.generations for _, one, more in zip(*runs, strict=True)
    )
    whole = runs[0][0] + (GENERATIONS - 1) * generation
    yield {
        "generation_ms": 1000 * generation,
        "of_it_the_model_ms": 1000 * model,
        "whole_run_s": whole,
    }
    if generation > 0:  # of few small generations the first run's start may be all that is seen
        yield found(WHOLE_RUN, whole)


# Seconds at most.
SECTIONS: dict[str, tuple[Section, int]] = {
    "flags": (flags, 45),
    "precision": (precision, 55),
    "kinds": (kinds, 35),
    "texts": (texts, 75),
    "repeated": (repeated, 55),
    "images": (images, 35),
    "failures": (failures, 65),
    "over HTTP": (over_http, 105),
}


# --- how they are run ---------------------------------------------------------------------------


def _section(section: Section, size: Size, pipe: Any) -> None:
    """What a section's process does; whatever it starts has its group."""
    os.setsid()
    os.dup2(2, 1)  # what others print is no part of the tables
    try:
        for line in section(size):
            pipe.send(line)
        pipe.send("")
    except BaseException as error:  # a lost device ends by SystemExit
        pipe.send(f"{type(error).__name__}: {error}".partition("\n")[0])


def measure(section: Section, size: Size, seconds: float) -> Line:
    """A section's lines, and why it failed where it did, within its time."""
    began, lines = time.monotonic(), list[Line]()
    failed: str | None = f"not within {seconds:.0f} s"
    receiving, sending = _context.Pipe(duplex=False)
    process = _context.Process(target=_section, args=(section, size, sending))
    process.start()
    sending.close()
    try:
        while receiving.poll(max(0.0, seconds - (time.monotonic() - began))):
            sent = receiving.recv()
            if isinstance(sent, str):
                failed = sent or None
                break
            lines.append(sent)
    except EOFError:
        process.join()
        failed = f"its process ended, exit code {process.exitcode}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
    return {"seconds": time.monotonic() - began, "failed": failed, "lines": lines}


# Sections begin with all that is slow to import. This process itself never asks for the GPU, which
# its children could not use then.
_context = get_context("fork")


def print_tables(lines: Sequence[Line]) -> None:
    """Markdown: lines of the same columns beneath each other."""
    head: list[str] = []
    for line in lines:
        if "of_aim" in line:
            continue
        if list(line) != head:
            head = list(line)
            print(f"\n| {' | '.join(name.replace('_', ' ') for name in head)} |")
            print("|" + "---|" * len(head))
        print(f"| {' | '.join(map(_shown, line.values()))} |")


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def aims(sections: Mapping[str, Line], seconds: float | None) -> list[Line]:
    """Each aim with what was found."""
    told = {
        line["of_aim"]: line["found"]
        for section in sections.values()
        for line in section["lines"]
        if "of_aim" in line
    }
    told[IN_TIME.name] = seconds
    return [
        {
            "what": aim.name,
            "aim": f"at most {aim.most:g}" if aim.most is not None else f"at least {aim.least:g}",
            "found": told.get(aim.name),
            "verdict": aim.verdict(told.get(aim.name)),
        }
        for aim in AIMS
    ]


def main() -> None:
    """Measures, prints and writes after each section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, and small")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    size = DRY if arguments.dry_run else Size()
    look = "import torch; raise SystemExit(not torch.cuda.is_available())"
    if size.device == "cuda" and subprocess.run([sys.executable, "-c", look]).returncode:
        raise SystemExit("There is no GPU that PyTorch can use here; --dry-run needs none.")
    began, sections = time.monotonic(), dict[str, Line]()
    report: Line = {
        "dry_run": arguments.dry_run,
        "torch": torch.__version__,
        "cpus": os.cpu_count(),
        "model": size.model,
        "sections": sections,
    }
    for name, (section, seconds) in SECTIONS.items():
        # A machine without a GPU may have anything to do beside.
        sections[name] = measure(section, size, 4 * seconds if arguments.dry_run else seconds)
        report["aims"] = aims(sections, time.monotonic() - began)
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1) + "\n")
        print(f"\n## {name} ({sections[name]['seconds']:.0f} s)")
        print_tables(sections[name]["lines"])
        if sections[name]["failed"]:
            print(f"\nfailed: {sections[name]['failed']}")
        sys.stdout.flush()
    print("\n## aims" + (", of a dry run: they say nothing of a GPU" if arguments.dry_run else ""))
    print_tables(report["aims"])


if __name__ == "__main__":
    main()
