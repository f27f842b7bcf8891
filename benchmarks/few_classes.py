"""Tasks of few classes: zero-shot, craftbox's recipe in open and strict access, and the white box.

Classes are drawn at random from the data sets, shots a class from their training images; what is
tuned is measured on all of their test images. The model runs in this process; the rest is the
product's own: `tune` asks a black box that counts, and its adapter's head is applied to answers.
The white box is ridge regression on the image features, its regularisation chosen by leave-one-out.

    python benchmarks/few_classes.py --data DIR [DIR ...] --classes 2 --tasks 30 --shots 4 16 \\
        --json benchmarks/results/few_classes.json
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifierCV

from codes_by_level import features, scored
from craft_client.blackbox import Question, Scores
from craft_client.layouts import load_dataset
from craft_client.presets import recipe_settings
from craft_server.engine import Engine, ModelSpec, Prompts
from craft_shared.adapter import Adapter
from craft_shared.wire import Context
from in_process import InProcess, tuned
from options import present, save
from white_box import REGULARISATIONS

Array = NDArray[np.float32]
Labels = NDArray[np.int64]

ACCESS = {"one query": False, "strict": True}


class Hosted(InProcess):
    """A black box over image features [N, W], whose model runs here."""

    def __init__(self, engine: Engine, images: Array, classes: Sequence[str]) -> None:
        self.images, self.classes = images, classes
        self._engine = engine

    def score(
        self,
        *,
        templates: Sequence[str] = (),
        context: Context | None = None,
        codes: Array | None = None,
        texts: Sequence[str] = (),
        **_: Any,
    ) -> Scores:
        """See `BlackBox`."""
        codes = np.zeros((0, 2), np.float32) if codes is None else codes
        prompts = Prompts(tuple(templates), context, codes)
        names = [*self.classes, *texts]
        log_probs = asyncio.run(scored(self._engine, self.images, names, prompts))
        return Scores(log_probs, self.units(Question(len(log_probs), len(texts))))


def predictions(adapter: Adapter, images: Hosted) -> Labels:
    """The adapter's classes of all images [N]."""
    config = adapter.config
    answers = images.score(
        templates=config.templates,
        context=config.context,
        codes=adapter.codes,
        texts=config.texts,
    ).log_probs
    return adapter.refined(answers).argmax(axis=1)


def measure(
    engine: Engine,
    classes: Sequence[str],
    train: tuple[Array, Labels],
    test: tuple[Array, Labels],
    seed: int,
) -> list[dict[str, Any]]:
    """All methods on one task."""
    (images, labels), (test_images, truth) = train, test
    black_box, unseen = (Hosted(engine, some, classes) for some in (images, test_images))
    path = RidgeClassifierCV(alphas=REGULARISATIONS).fit(images, labels)
    found = [{"method": "white box", "accuracy": 100 * float(path.score(test_images, truth))}]
    for access, strict in ACCESS.items():
        settings = recipe_settings("craftbox", "", None, classes=classes, strict=strict, seed=seed)
        result, _ = tuned(black_box, labels, settings)
        right = predictions(result.adapter, unseen) == truth
        found.append(
            {
                "method": access,
                "accuracy": 100 * float(right.mean()),
                "held_out": result.accuracy_after,
                **result.units.model_dump(),
                "kept_texts": len(result.adapter.config.texts),
            }
        )
    plain = unseen.score(templates=[settings.template]).log_probs[0].argmax(axis=1) == truth
    return [{"method": "zero-shot", "accuracy": 100 * float(plain.mean())}, *found]


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--classes", type=int, default=2, help="of a task")
    parser.add_argument("--tasks", type=int, default=30, help="in all, as many of each data set")
    parser.add_argument("--shots", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    engine = Engine.load(ModelSpec(args.model))
    results: list[dict[str, Any]] = []
    folders = present(args.data)
    for folder in folders:
        data = load_dataset(folder)
        splits = []
        for split in ("train", "test"):
            samples = data.split(split)
            found = asyncio.run(features(engine, list(samples)))
            splits.append((found, np.array([sample.label for sample in samples])))
        for task, shots in product(range(args.tasks // len(folders)), args.shots):
            generator = np.random.default_rng([task, shots])
            drawn = generator.choice(len(data.classes), args.classes, replace=False)
            rows = [[np.flatnonzero(labels == one) for one in drawn] for _, labels in splits]
            few = [generator.choice(of, min(shots, len(of)), replace=False) for of in rows[0]]
            tasks = [
                (split[0][np.concatenate(of)], np.repeat(np.arange(len(of)), list(map(len, of))))
                for split, of in zip(splits, (few, rows[1]), strict=True)
            ]
            names = [data.classes[one] for one in drawn]
            for one in measure(engine, names, *tasks, seed=task):
                about = {"data": data.name, "classes": names, "task": task, "shots": shots}
                results.append({**about, **one})
            save(results, args.json)
        print(f"{data.name}: {time.process_time():.0f} s of CPU", file=sys.stderr, flush=True)
    print(
        f"| shots | method | mean of {args.tasks} | least | mean queries |\n|---|---|---|---|---|"
    )
    for shots, method in product(args.shots, ("zero-shot", *ACCESS, "white box")):
        of = [one for one in results if (one["shots"], one["method"]) == (shots, method)]
        mean, least = (f(one["accuracy"] for one in of) for f in (statistics.mean, min))
        queries = statistics.mean(one.get("queries", 0) for one in of)
        print(f"| {shots} | {method} | {mean:.1f} | {least:.1f} | {queries:.1f} |")


if __name__ == "__main__":
    main()
