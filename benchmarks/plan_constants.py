"""Measures what a plan adds up: models, the service around them, and the client's own work.

The models with random weights, on which speed does not depend. The service: a craft-server process
with pocket, asked over HTTP by the client's own classes; what the model was busy is taken off. The
client: the paper's loop with a black box that answers at once, the closed form at several shapes (a
fit of least squares on what it computes), and the command on a handful of pictures.

    python benchmarks/plan_constants.py --out server/craft_server/plan/constants.json
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from craft_client.api import Client
from craft_client.blackbox import Question
from craft_client.cli.session import check_files
from craft_client.data import Sample
from craft_client.journal import Journal
from craft_client.losses import cross_entropy, divergence
from craft_client.presets import common_nouns, recipe_settings
from craft_client.recipes.craftbox import fit
from craft_client.remote import RemoteBlackBox
from craft_client.tune import run_document, tune
from craft_server.plan.costs import Architecture, ClientCost, Constants, ModelCost, ServiceCost
from craft_server.plan.measure import context, measure_machine, measure_model, memory, picture
from craft_server.plan.runs import HIDDEN_UNITS, fit_work
from craft_server.settings import DEFAULT_LIMITS
from craft_shared.head import log_softmax
from serving import BIN, command, server_process
from tuning_run import Instant, busy_seconds, make_pictures
from white_box import in_own_process

MODELS = ("pocket", "RN50", "ViT-B-32", "ViT-B-16")
SIDE = 256


def database_bytes(folder: Path) -> int:
    """Of the server's database, once what waits in its log is in it."""
    (file,) = folder.glob("*.db")
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return file.stat().st_size


def forget_peak(process: int) -> int:
    """Lets a process's `VmHWM` count anew; its memory now."""
    Path(f"/proc/{process}/clear_refs").write_text("5")
    return memory("VmRSS", str(process))


def admin_key(env: dict[str, str]) -> str:
    """A key that may read `/metrics`."""
    made = command(env, "craft-server", "keys", "create", "--owner", "operator", "--scope", "admin")
    key: str = made["key"]
    return key


def measure_service(pocket: ModelCost) -> tuple[ServiceCost, dict[str, float]]:
    """What surrounds the model, and what of it is the client's."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "server").mkdir()
        with server_process("pocket", folder / "server") as (env, process):
            admin = admin_key(env)
            base = memory("VmRSS", str(process)) - pocket.loaded_bytes
            starts = [_start(env, admin, folder) for _ in range(3)]
            with Client(env["CRAFT_URL"], env["CRAFT_API_KEY"]) as client:
                upload = _upload(client, env, admin, process, folder / "server", pocket)
                request, row = _requests(client, env, admin, folder / "server")
                answer, copies, client_copies = _answers(client, env, admin, process)
    service = ServiceCost(
        request_seconds=request,
        answer_byte_seconds=answer,
        base_bytes=max(0.0, base),
        answer_copies=copies,
        call_row_bytes=row,
        **upload,
    )
    seconds, resident = (statistics.median(values) for values in zip(*starts, strict=True))
    of_client = {
        "start_seconds": max(0.0, seconds),
        "base_bytes": resident,
        "answer_copies": client_copies,
    }
    return service, of_client


def _start(env: dict[str, str], admin: str, folder: Path) -> tuple[float, float]:
    """Seconds of `craft tune` on eight pictures, without the model's share; its memory."""
    data = folder / "few"
    if not data.exists():
        make_pictures(data, ["cat", "dog", "cow", "owl"], 2)
    before = busy_seconds(env, admin)
    with tempfile.TemporaryDirectory() as runs:
        options = ("--data", data, "--shots", 2, "--run", Path(runs) / "run")
        _, seconds, resident = tuned(env, *options)
    after = busy_seconds(env, admin)
    return seconds - sum(after[name] - before[name] for name in after), resident


def tuned(env: dict[str, str], *options: object) -> tuple[dict[str, Any], float, int]:
    """`craft tune` with --json: its document, its seconds, and the most memory that it took."""
    began = time.perf_counter()
    arguments = [str(BIN / "craft"), "tune", *map(str, options), "--json"]
    peak = 0
    with subprocess.Popen(arguments, env=env, stdout=subprocess.PIPE) as process:
        # Of a child's `ru_maxrss` its parent's memory is a part.
        while process.poll() is None:
            peak = max(peak, memory("VmHWM", str(process.pid)))
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        assert process.stdout is not None
        document = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"craft tune ended with exit status {process.returncode}")
    return json.loads(document), seconds, peak


def _upload(
    client: Client,
    env: dict[str, str],
    admin: str,
    process: int,
    data: Path,
    pocket: ModelCost,
) -> dict[str, float]:
    files = [picture(SIDE, seed) for seed in range(256)]
    before, stored = busy_seconds(env, admin), database_bytes(data)
    resident, began = forget_peak(process), time.perf_counter()
    client.upload_images(client.create_image_set("pocket"), files)
    seconds = time.perf_counter() - began
    cores = os.cpu_count() or 1
    busy = (busy_seconds(env, admin)["images"] - before["images"]) / cores
    decoding = pocket.decode_core_seconds + SIDE**2 * pocket.decode_pixel_core_seconds
    peak = memory("VmHWM", str(process)) - resident
    tensors = len(files) * (4 * 3 * 224**2 + len(files[0]))
    known = tensors + pocket.peak_bytes - pocket.loaded_bytes
    stored = database_bytes(data) - stored
    return {
        "picture_seconds": max(0.0, (seconds - busy) / len(files) - decoding / cores),
        "upload_bytes": max(0.0, (peak - known) / len(files)),
        "picture_row_bytes": max(0.0, stored / len(files) - 4 * 512),
    }


def _requests(client: Client, env: dict[str, str], admin: str, data: Path) -> tuple[float, float]:
    """Seconds, and bytes of the database, of a call that asks little."""
    calls, rng = 60, np.random.default_rng(1)
    image_set = client.upload_images(
        client.create_image_set("pocket"), [picture(64, seed) for seed in range(16)]
    )
    black_box = RemoteBlackBox(client, image_set, ["cat", "dog", "cow", "owl"], run="requests")
    space = context(512, seed=1)

    def ask(name: str) -> None:
        codes = rng.standard_normal((1, 512), dtype=np.float32)
        black_box.acknowledge(black_box.score(context=space, codes=codes, name=name))

    ask("first")
    before, stored, began = busy_seconds(env, admin), database_bytes(data), time.perf_counter()
    for number in range(calls):
        ask(f"{number}")
    seconds = time.perf_counter() - began
    after = busy_seconds(env, admin)
    busy = sum(after[name] - before[name] for name in after)
    return (seconds - busy) / calls, (database_bytes(data) - stored) / calls


def _answers(
    client: Client, env: dict[str, str], admin: str, process: int
) -> tuple[float, float, float]:
    """Seconds for each byte of a large answer whose texts are remembered; both sides' copies."""
    files = [picture(SIDE, seed) for seed in range(256)]
    image_set = client.upload_images(client.create_image_set("pocket"), files)
    black_box = RemoteBlackBox(client, image_set, list(common_nouns())[:1000], run="answers")
    space = context(512, seed=1)
    codes = np.random.default_rng(1).standard_normal((32, 512), dtype=np.float32)
    black_box.acknowledge(black_box.score(context=space, codes=codes, name="first"))
    size = black_box.answer_bytes(Question(len(codes)))
    each, copies, client_copies = [], [], []
    for number in range(3):
        before, resident = busy_seconds(env, admin)["scores"], forget_peak(process)
        own = forget_peak(os.getpid())
        began = time.perf_counter()
        scores = black_box.score(context=space, codes=codes, name=f"again-{number}")
        seconds = time.perf_counter() - began
        black_box.acknowledge(scores)
        client_copies.append((memory("VmHWM") - own - scores.log_probs.nbytes) / size)
        del scores
        each.append((seconds - busy_seconds(env, admin)["scores"] + before) / size)
        copies.append((memory("VmHWM", str(process)) - resident) / size)
    return statistics.median(each), max(copies), max(client_copies)


def measure_client(of_command: dict[str, float]) -> ClientCost:
    """The client's own work; `of_command` as `measure_service` tells."""
    parts = in_own_process(_generations)
    ridge = in_own_process(_ridge)
    return ClientCost(**of_command, **parts, **ridge, **_ridge_memory())


def _generations() -> dict[str, Any]:
    """Seconds of generations whose answers are there at once, and of checking a picture."""
    paper = _generation(shots=2, classes=4, generations=60)
    paper_large = _generation(shots=16, classes=100, generations=12)
    passes = 2 * 40 + 6
    work = passes * (1600 * 100 - 8 * 4) * HIDDEN_UNITS
    with tempfile.TemporaryDirectory() as folder:
        make_pictures(Path(folder), ["cat", "dog"], 100)
        samples = [Sample(path, 0) for path in Path(folder).rglob("*.jpg")]
        began = time.perf_counter()
        check_files([sample.path for sample in samples], DEFAULT_LIMITS)
        checking = (time.perf_counter() - began) / len(samples)
    return {
        "paper_generation_seconds": paper,
        "paper_multiply_add_seconds": max(0.0, paper_large - paper) / work,
        "score_seconds": _loss_seconds(),
        "picture_seconds": checking,
    }


def _loss_seconds() -> float:
    """Of a population's losses, for each log-probability."""
    rng = np.random.default_rng(1)
    scores = log_softmax(rng.standard_normal((40, 800, 100), dtype=np.float32))
    labels = np.arange(800) % 100
    began = time.perf_counter()
    for _ in range(5):
        assert np.isfinite(scores).all()
        cross_entropy(scores, labels)
        divergence(scores[0], scores)
    return (time.perf_counter() - began) / 5 / scores.size


def _generation(*, shots: int, classes: int, generations: int) -> float:
    """Mean seconds of one of the paper's."""
    names = [f"class {number}" for number in range(classes)]
    labels = np.repeat(np.arange(classes), shots)
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((40, len(labels), classes), dtype=np.float32)
    black_box = Instant(log_softmax(scores), names)
    budget = 1 + 41 * generations
    settings = recipe_settings("paper", "benchmark", shots, classes=names, budget=budget)
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal.create(Path(folder) / "run", run_document(black_box, labels, settings))
        tune(black_box, labels, settings, journal, lambda _: ends.append(time.perf_counter()))
    # The first report is of the plain prompt, the last of the end.
    return statistics.mean(np.diff(ends)[:generations])


def _ridge() -> dict[str, Any]:
    """The closed form's seconds, by least squares of relative errors."""
    shapes = [(50, 200, 50), (306, 200, 50), (306, 800, 50), (1100, 1600, 100), (1000, 1000, 500)]
    shapes += [(1600, 400, 100), (1600, 700, 50), (3200, 1500, 100)]
    work, seconds = [], []
    for shape in shapes:
        inputs, pictures, classes = shape
        seconds.append(_fit(*shape)["seconds"])
        work.append([*fit_work(pictures, inputs, classes)])
    product, cube, calibration = _fitted(work, seconds)
    return {
        "ridge_product_seconds": product,
        "ridge_cube_seconds": cube,
        "ridge_calibration_seconds": calibration,
    }


def _ridge_memory() -> dict[str, Any]:
    """The closed form's memory, by least squares; each shape in a process of its own."""
    shapes = [(3200, 1500, 100), (20, 2000, 20), (2000, 1000, 500), (6400, 800, 200)]
    used = [in_own_process(_fit, *shape)["bytes"] for shape in shapes]
    held = [[4 * n * d, 8 * n * min(n, d), 8 * n * c] for d, n, c in shapes]
    inputs, gram, target = _fitted(held, used)
    return {"fit_copies": inputs, "gram_copies": gram, "target_copies": target}


def _fit(inputs: int, pictures: int, classes: int) -> dict[str, Any]:
    """Seconds and memory of one fit; the scores are counted, since a run holds them too."""
    rng = np.random.default_rng(1)
    labels = np.arange(pictures) % classes
    noise = rng.standard_normal((1, pictures, inputs), dtype=np.float32)
    scores = log_softmax(noise + 3 * np.eye(classes, inputs, dtype=np.float32)[labels])
    del noise
    resident, began = forget_peak(os.getpid()), time.perf_counter()
    fit(scores, labels, np.arange(pictures))
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "bytes": memory("VmHWM") - resident + scores.nbytes}


def _fitted(parts: list[list[int]], totals: list[float]) -> list[float]:
    """Weights >= 0 of the parts whose sums are the totals, as well as that goes."""
    total = np.array(totals)
    weights, _ = nnls(np.array(parts) / total[:, None], np.ones(len(parts)))
    found: list[float] = weights.tolist()
    return found


def measure(models: Sequence[str], *, shared: bool) -> Constants:
    """All constants of this machine.

    The service and the client are measured by the clock even where the machine is shared: what
    else it does makes them longer, so that the least of several measurements is the best.
    """
    costs = {}
    for name in models:
        costs[name] = measure_model(name, None, "float32", shared=shared)
        print(f"{name}: {costs[name]}", file=sys.stderr)
    service, of_command = measure_service(costs["pocket"])
    return Constants(
        machine=measure_machine(shared=shared),
        models=least_disturbed(costs) if shared else costs,
        service=service,
        client=measure_client(of_command),
    )


def least_disturbed(costs: dict[str, ModelCost]) -> dict[str, ModelCost]:
    """Models whose text towers are of one shape get the fastest one's rate of a shared pack.

    All cores have to be free at once for it, which on a shared machine is a matter of luck.
    """

    def shape(name: str) -> tuple[int, int]:
        found = Architecture.of(name)
        return found.text_width, found.text_layers

    def best(name: str) -> ModelCost:
        alike = [cost for other, cost in costs.items() if shape(other) == shape(name)]
        rate = max(cost.texts.shared_per_core for cost in alike)
        texts = costs[name].texts.model_copy(update={"shared_per_core": rate})
        return costs[name].model_copy(update={"texts": texts})

    return {name: best(name) for name in costs}


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument(
        "--shared", action="store_true", help="the machine has other work: use processor time"
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    models = ["pocket", *(name for name in args.models if name != "pocket")]
    measure(models, shared=args.shared).save(args.out)


if __name__ == "__main__":
    main()
