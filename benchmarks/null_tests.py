"""Whether what a run reports as held out is chance where there is nothing to learn.

Whole runs (`craft_client.tune`) against a model made of random numbers: pictures of noise, the same
with each picture twice, and pictures in clusters of which the labels know nothing; with every
recipe, access mode and output level, and with few and many shots. Over all draws together the
accuracies that are reported should lie within the 99 % interval of chance.

    python benchmarks/null_tests.py --draws 50 --json benchmarks/results/null_tests.json
"""

from __future__ import annotations

import argparse
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from craft_client.blackbox import Question, Scores
from craft_client.journal import Journal
from craft_client.settings import TuneSettings
from craft_client.tune import run_document, tune
from craft_shared.head import log_softmax
from craft_shared.output import scores_of, shown
from craft_shared.wire import EVERYTHING, Context, Output
from in_process import InProcess
from options import save

Kind = Literal["noise", "copies", "clusters"]

WIDTH = 32
SCALE = 8.0  # of scores: their standard deviation within a picture is about one and a half
STEP = 0.3  # by which a code moves a text
CLUSTERS = 4
Z99 = 2.576

TEXTS = tuple(f"thing {number}" for number in range(300))
STRICT = {"random_codes": 31, "dim": 8}
OPTIONS: dict[str, dict[str, Any]] = {
    "default: 300 texts": {"texts": TEXTS},
    "32 texts kept": {"texts": TEXTS, "keep_texts": 32},
    "strict": STRICT,
    "the plain prompt alone": {**STRICT, "random_codes": 0},
    "recipe paper": {"recipe": "paper", "dim": 8, "population": 8, "budget": 64, "hidden": 16},
    **{
        f"recipe {name}": {"recipe": name, "dim": 8, "population": 8, "budget": 64}
        for name in ("bbt", "random", "spsa")
    },
}
LEVELS = {
    "labels alone": Output(level="label"),
    "the best two": Output(level="top_k", k=2),
    "probabilities of 2 decimals": Output(level="probs", decimals=2),
}
# Classes and shots.
TASKS = ((2, 16), (3, 2), (3, 4), (3, 8), (5, 8), (10, 16))
TASK = (3, 8)


@dataclass
class NoiseBox(InProcess):
    """A model that scores random pictures, features [N, WIDTH], by random texts."""

    images: NDArray[Any]
    classes: Sequence[str]
    seed: int  # of the texts
    output: Output = EVERYTHING

    def score(
        self,
        *,
        templates: Sequence[str] = (),
        context: Context | None = None,
        codes: NDArray[np.float32] | None = None,
        texts: Sequence[str] = (),
        **_: Any,
    ) -> Scores:
        """See `BlackBox`. A code moves each text in a direction of its own."""
        scored = [*self.classes, *texts]
        plain = np.stack([self._direction(text, 1)[0] for text in scored])
        prompts = [plain for _ in templates]
        for code in () if codes is None else codes:
            moves = np.stack([code @ self._direction(text, len(code)) for text in scored])
            prompts.append(plain + STEP * moves)
        features = np.stack(prompts)
        features /= np.linalg.norm(features, axis=-1, keepdims=True)
        scores = SCALE * np.einsum("nw,ptw->pnt", self.images, features)
        log_probs = log_softmax(scores.astype(np.float32))
        if self.output.whole:
            log_probs = log_probs.astype(np.float16).astype(np.float32)
        seen = scores_of(shown(log_probs, self.output), self.output, len(scored))
        return Scores(seen, self.units(Question(len(prompts), len(texts))))

    def _direction(self, text: str, rows: int) -> NDArray[np.float64]:
        generator = np.random.default_rng([self.seed, rows, zlib.crc32(text.encode())])
        return generator.normal(size=(rows, WIDTH))


def pictures(
    draw: int, kind: Kind, classes: int, shots: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], list[str]]:
    """Features [N, WIDTH], labels that know nothing of them [N], and names of files' contents."""
    generator = np.random.default_rng([draw, classes, shots, len(kind)])
    copies = 2 if kind == "copies" else 1
    count = classes * max(1, shots // copies)
    features = generator.normal(size=(count, WIDTH))
    if kind == "clusters":
        features = (
            0.5 * features
            + generator.normal(size=(CLUSTERS, WIDTH))[generator.integers(CLUSTERS, size=count)]
        )
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels = np.repeat(np.arange(classes), count // classes)
    digests = [f"picture {number}" for number in np.repeat(np.arange(count), copies)]
    return np.repeat(features, copies, axis=0), np.repeat(labels, copies), digests


def run(
    draw: int, kind: Kind, task: tuple[int, int], options: dict[str, Any], output: Output
) -> tuple[float, float | None]:
    """Accuracy before and after, percent."""
    classes, shots = task
    features, labels, digests = pictures(draw, kind, classes, shots)
    names = [f"class {number}" for number in range(classes)]
    box = NoiseBox(features, names, draw, output)
    settings = TuneSettings(seed=draw, shots=shots, **options)
    about = run_document(box, labels, settings, digests=digests)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal.create(Path(folder) / "run", about)
        result = tune(box, labels, settings, journal)
    return result.accuracy_before, result.accuracy_after


def measured(
    name: str,
    kind: Kind,
    task: tuple[int, int],
    draws: int,
    options: dict[str, Any],
    output: Output = EVERYTHING,
) -> dict[str, Any]:
    """One line of the table."""
    classes, shots = task
    runs = [run(draw, kind, task, options, output) for draw in range(draws)]
    after = [one for _, one in runs if one is not None]
    distinct = classes * (max(1, shots // 2) if kind == "copies" else shots)
    chance = 1 / classes
    within = Z99 * 100 * np.sqrt(chance * (1 - chance) / (max(1, len(after)) * distinct))
    line = {
        "options": name,
        "pictures": kind,
        "classes": classes,
        "shots": shots,
        "runs": draws,
        "reported": len(after),
        "chance": round(100 * chance, 1),
        "interval": round(float(within), 1),
        "before": round(mean(one for one, _ in runs), 1),
        "after": round(mean(after), 1) if after else None,
        "within": bool(abs(mean(after) - 100 * chance) <= within) if after else None,
    }
    shown_after = "none" if line["after"] is None else f"{line['after']:.1f}"
    print(
        f"| {name} | {kind} | {classes} x {shots} | {100 * chance:.1f} ± {within:.1f} | "
        f"{line['before']:.1f} | {shown_after} | {line['reported']} | "
        f"{ {True: 'yes', False: 'NO', None: ''}[line['within']] } |",
        flush=True,
    )
    return line


def main() -> None:
    """Prints a line for each combination, and writes them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(
        "| options | pictures | classes x shots | chance, 99 % | before | held out | "
        "runs that report it | within |"
    )
    print("|---" * 8 + "|")
    kinds: tuple[Kind, ...] = ("noise", "copies", "clusters")
    lines = [
        measured(name, kind, TASK, args.draws, options)
        for name, options in OPTIONS.items()
        for kind in kinds[:2]
    ]
    lines += [
        measured("default: 300 texts", kind, task, args.draws, {"texts": TEXTS})
        for task in TASKS
        for kind in kinds
        if not (kind == "copies" and task[1] < 4)
    ]
    lines += [
        measured(f"strict; {name}", kind, TASK, args.draws, STRICT, output)
        for name, output in LEVELS.items()
        for kind in kinds[:2]
    ]
    judged = [line for line in lines if line["within"] is not None]
    outside = sum(not line["within"] for line in judged)
    print(f"Outside the interval: {outside} of {len(judged)}; by chance {len(judged) / 100:.1f}.")
    save(lines, args.json)


if __name__ == "__main__":
    main()
