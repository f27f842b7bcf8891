"""What a whole run of the paper's recipe takes over HTTP, and where the time goes.

A craft-server process with RN50 (random weights: speed does not depend on them), 47 classes of 16
pictures, and the craft command in a process of its own. Runs of few and of more generations are
timed; a generation is the difference, divided, so that starting and uploading are not in it. A
whole run is 200 generations and one plain prompt. The server's own measurements say how long the
model has kept the cores busy; what remains of the time of all of them is HTTP, metering, encoding
of answers and the client. The first run uploads the pictures, the others send pictures that the
server knows. At last the client's own work, CMA-ES, head and journal, by itself: the same
generations on answers that are there at once.

    python benchmarks/tuning_run.py --json benchmarks/results/tuning_run.json
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from craft_client.blackbox import Question, Scores
from craft_client.journal import Journal
from craft_client.presets import recipe_settings
from craft_client.settings import TuneSettings
from craft_client.tune import run_document, tune
from craft_server.engine.engine import MOST_THREADS
from craft_shared.head import log_softmax
from craft_shared.units import Units
from craft_shared.wire import EVERYTHING, Budget, Output
from options import save
from serving import command, serving

# The classes of the Describable Textures Dataset.
DTD = (Path(__file__).parent / "dtd_classes.txt").read_text().split()
GENERATIONS = 200


def make_pictures(folder: Path, classes: list[str], shots: int) -> None:
    """Folders of classes with smooth noise."""
    rng = np.random.default_rng(1)
    for name in classes:
        (folder / "train" / name).mkdir(parents=True)
        for number in range(shots):
            noise = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            picture = noise.resize((256, 256), Image.Resampling.BICUBIC)
            picture.save(folder / "train" / name / f"{number}.jpg")


@dataclass(frozen=True)
class Instant:
    """A black box that answers every question at once, with the same random numbers."""

    scores: NDArray[np.float32]
    classes: Sequence[str]
    model: str = "instant"
    revision: str = "0"
    output: Output = EVERYTHING
    prompt_limit: int | None = None
    image_size: int = 224

    def score(self, *, templates: Any = (), codes: Any = None, **_: Any) -> Scores:
        """Random log-probabilities, [P, N, C]."""
        prompts = len(templates) + (0 if codes is None else len(codes))
        return Scores(self.scores[:prompts], self.units(Question(prompts)))

    def acknowledge(self, scores: Scores) -> None:
        """Nobody keeps them."""

    def units(self, question: Question) -> Units:
        """A query a prompt."""
        return Units(queries=question.prompts, requests=1)

    def budgets(self) -> Sequence[Budget]:
        """None."""
        return ()


def client_seconds(shots: int, generations: int) -> float:
    """Seconds a generation of the client's own work."""
    pictures = shots * len(DTD)
    rng = np.random.default_rng(1)
    shape = (TuneSettings().population, pictures, len(DTD))
    black_box = Instant(log_softmax(rng.standard_normal(shape, dtype=np.float32)), DTD)
    labels = np.repeat(np.arange(len(DTD)), shots)
    settings = recipe_settings("paper", "dtd", shots, classes=DTD, budget=1 + 41 * generations)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal.create(Path(folder) / "run", run_document(black_box, labels, settings))
        began = time.perf_counter()
        tune(black_box, labels, settings, journal)
        return (time.perf_counter() - began) / generations


def metric(env: dict[str, str], admin: str, name: str) -> dict[str, float]:
    """What the server's `/metrics` say under a name, by label."""
    answer = httpx.get(f"{env['CRAFT_URL']}/metrics", headers={"Authorization": f"Bearer {admin}"})
    answer.raise_for_status()
    return {
        "".join(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name == name
    }


def busy_seconds(env: dict[str, str], admin: str) -> dict[str, float]:
    """How long texts, images and scores have kept the server's cores busy."""
    return metric(env, admin, "craft_engine_busy_seconds_total")


def run(
    env: dict[str, str], admin: str, data: Path, shots: int, generations: int
) -> dict[str, Any]:
    """One `craft tune --recipe paper`: wall, client's CPU and model's seconds, and images."""
    budget = 1 + 41 * generations
    before, cpu = busy_seconds(env, admin), children_cpu()
    with tempfile.TemporaryDirectory() as folder:
        tuned = command(
            env, "craft", "tune", "--data", data, "--shots", shots, "--recipe", "paper",
            "--budget", budget, "--run", Path(folder) / "run",
        )  # fmt: skip
    after = busy_seconds(env, admin)
    return {
        "generations": generations,
        "queries": tuned["charged"]["queries"],
        "images": tuned["charged"]["images"],
        "seconds": tuned["seconds"],
        "client_cpu": children_cpu() - cpu,
        "model": {name: after[name] - before[name] for name in after},
    }


def children_cpu() -> float:
    """CPU seconds of processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def a_generation(few: dict[str, Any], more: dict[str, Any]) -> dict[str, float]:
    """What one generation takes, in seconds, by what it is spent on."""
    generations = more["generations"] - few["generations"]
    cores = min(os.cpu_count() or 1, MOST_THREADS)
    return {
        **{name: (more[name] - few[name]) / generations for name in ("seconds", "client_cpu")},
        **{
            name: (more["model"][name] - few["model"][name]) / generations / cores
            for name in more["model"]
        },
    }


def print_table(result: dict[str, Any]) -> None:
    """Where a generation goes."""
    one = result["generation"]
    rest = one["seconds"] - one["texts"] - one["scores"] - one["images"]
    print("| a generation of 41 prompts | ms | share |")
    print("|---|---|---|")
    for name, seconds in (
        ("in all", one["seconds"]),
        ("the model: texts", one["texts"]),
        ("the model: scores", one["scores"]),
        ("the model: images", one["images"]),
        ("HTTP, metering, client", rest),
        ("of it CMA-ES, head and journal", result["client_seconds"]),
    ):
        print(f"| {name} | {1000 * seconds:,.1f} | {seconds / one['seconds']:.1%} |")
    print(
        f"\nA whole run of {GENERATIONS} generations: {result['whole_run_seconds']:,.0f} s. "
        f"Known pictures: {result['more']['images']:.0f} images charged, "
        f"{result['more']['model']['images']:.2f} s in the image encoder."
    )


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="RN50")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--generations", type=int, nargs=2, default=[2, 12])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_pictures(folder / "pictures", DTD, args.shots)
        (folder / "server").mkdir()
        with serving(args.model, folder / "server") as env:
            made = ("keys", "create", "--owner", "operator", "--scope", "admin")
            admin = command(env, "craft-server", *made)["key"]
            first, few, more = (
                run(env, admin, folder / "pictures", args.shots, generations)
                for generations in (1, *args.generations)
            )
    one = a_generation(few, more)
    result = {
        "model": args.model,
        "classes": len(DTD),
        "shots": args.shots,
        "cpus": os.cpu_count(),
        "first": first,
        "few": few,
        "more": more,
        "generation": one,
        "client_seconds": client_seconds(args.shots, args.generations[1]),
        "whole_run_seconds": GENERATIONS * one["seconds"],
    }
    save(result, args.json)
    print_table(result)


if __name__ == "__main__":
    main()
