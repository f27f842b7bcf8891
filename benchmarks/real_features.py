"""Few-shot accuracy on embeddings of a real CLIP that were computed elsewhere.

The pocket model is not CLIP. Where a real model cannot be had, its embeddings say how much of what
the features hold its predictions show. A black box in this process answers from the file as the API
would, log_softmax(100 * x @ t.T) in half precision, and craftbox's own recipe tunes on it as it is:
one query of class names and words. Beside it, on the features themselves, which no client sees:

- ridge: its regularisation chosen by exact leave-one-out.
- discriminant: Gaussian, with one shrunk covariance (Ledoit and Wolf); none with one image a class,
  which says nothing of a covariance.
- nearest mean: by the cosine to the class means.

The file (.npz) has, for each data set NAME, `NAME/train16_x`, float [N, W], and `NAME/train16_y`,
int [N], to draw from; `NAME/test_x` and `NAME/test_y`; and for all `text/names` [V] and `text/x`
[V, W]. Rows are normalised on reading. `NAME/names`, where it is there, are the C class names, each
one of `text/names`. Without them there is no plain prediction: a head reads generic words alone.

    python benchmarks/real_features.py --features FILE.npz \
        --json benchmarks/results/real_features.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifierCV

from craft_client.blackbox import Question, Scores
from craft_client.presets import recipe_settings
from craft_shared.head import log_softmax
from craft_shared.wire import EVERYTHING, Context
from in_process import InProcess, tuned
from options import save
from white_box import REGULARISATIONS, gaussian_discriminant

Array = NDArray[np.float32]
Labels = NDArray[np.int64]

LOGIT_SCALE = 100.0
SHOTS = (1, 2, 4, 8, 16)  # the last is all that there is to draw from
SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Task:
    """One data set's unit embeddings.

    Attributes:
        name: of the data set.
        train: images to draw from, [N, W].
        train_labels: [N].
        test: the whole test split, [M, W].
        test_labels: [M].
        names: the class names' texts, [C, W] by name; None where they are not known.
        words: all other texts, [V, W] by name.
    """

    name: str
    train: Array
    train_labels: Labels
    test: Array
    test_labels: Labels
    names: Mapping[str, Array] | None
    words: Mapping[str, Array]

    @property
    def classes(self) -> int:
        """C."""
        return int(self.train_labels.max()) + 1

    def draw(self, shots: int, seed: int) -> NDArray[np.int64]:
        """So many images of each class; more of them are these and others."""
        order = np.random.default_rng(seed).permutation(len(self.train_labels))
        of_class = [order[self.train_labels[order] == c][:shots] for c in range(self.classes)]
        return np.sort(np.concatenate(of_class))


@dataclass(frozen=True)
class Embedded(InProcess):
    """A black box that scores images of a task, [N, W]; implements `BlackBox`."""

    task: Task
    images: Array

    @property
    def classes(self) -> Sequence[str]:
        """Names, or stand-ins that are no words."""
        return list(self.task.names or (f"class {number}" for number in range(self.task.classes)))

    def score(
        self,
        *,
        templates: Sequence[str] = (),
        context: Context | None = None,
        codes: Array | None = None,
        texts: Sequence[str] = (),
        **_: Any,
    ) -> Scores:
        """See `BlackBox`; of the plain prompt alone.

        Where class names are not known, what is answered of them tells a head nothing: each image's
        mean, which is the same for all classes, and nothing once the answer is centred.
        """
        logits = LOGIT_SCALE * self.images @ np.stack([self.task.words[text] for text in texts]).T
        if self.task.names is None:
            unknown = logits.mean(axis=1, keepdims=True)
            of_names = np.repeat(unknown, self.task.classes, axis=1)
        else:
            of_names = LOGIT_SCALE * self.images @ np.stack(list(self.task.names.values())).T
        answered = log_softmax(np.concatenate([of_names, logits], axis=1)).astype(np.float16)
        return Scores(answered.astype(np.float32)[None], self.units(Question(1, len(texts))))


def tasks(file: Path) -> list[Task]:
    """The data sets of a file."""
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    texts = dict(zip(arrays["text/names"].tolist(), _unit(arrays["text/x"]), strict=True))
    found = []
    for name in [key.removesuffix("/train16_x") for key in arrays if key.endswith("/train16_x")]:
        own = [str(one) for one in arrays.get(f"{name}/names", [])]
        found.append(
            Task(
                name,
                _unit(arrays[f"{name}/train16_x"]),
                arrays[f"{name}/train16_y"].astype(np.int64),
                _unit(arrays[f"{name}/test_x"]),
                arrays[f"{name}/test_y"].astype(np.int64),
                {one: texts[one] for one in own} or None,
                {text: row for text, row in texts.items() if text not in own},
            )
        )
    return found


def craftbox(task: Task, shots: int, seed: int) -> dict[str, Any]:
    """What `craft tune` makes of a draw of images: the adapter, on the test split."""
    rows = task.draw(shots, seed)
    box, labels = Embedded(task, task.train[rows]), task.train_labels[rows]
    settings = recipe_settings(
        "craftbox", task.name, shots, seed=seed, classes=box.classes, vocabulary=list(task.words)
    )
    result, deployed = tuned(box, labels, settings)
    kept = result.adapter.config.texts
    of_test = Embedded(task, task.test).score(templates=[settings.template], texts=kept)
    return {
        "accuracy": _accuracy(task, result.adapter.refined(of_test.log_probs, EVERYTHING)),
        "held_out": result.accuracy_after,
        "deployed": deployed,
        "texts": len(kept),
        "queries": result.units.queries,
    }


def ridge(features: Array, labels: Labels) -> Callable[[Array], Array]:
    """Regularisation with the least squared error of exact leave-one-out (Allen's PRESS)."""
    path = RidgeClassifierCV(alphas=REGULARISATIONS).fit(features, labels)
    decide: Callable[[Array], Array] = path.decision_function
    return decide


def nearest_mean(features: Array, labels: Labels) -> Callable[[Array], Array]:
    """The cosine to each class's mean."""
    means = _unit(np.stack([features[labels == c].mean(axis=0) for c in range(labels.max() + 1)]))
    return lambda images: images @ means.T


WHITE_BOX = {
    "ridge": ridge,
    "discriminant": gaussian_discriminant,
    "nearest mean": nearest_mean,
}


def measure(task: Task, shots: int, seed: int) -> list[dict[str, Any]]:
    """All methods on one draw of images."""
    rows = task.draw(shots, seed)
    features, labels = task.train[rows], task.train_labels[rows]
    draw = {"data": task.name, "shots": shots, "seed": seed}
    results = [{**draw, "method": "craftbox", **craftbox(task, shots, seed)}]
    for name, fit in WHITE_BOX.items():
        if name != "discriminant" or shots > 1:
            accuracy = _accuracy(task, fit(features, labels)(task.test))
            results.append({**draw, "method": f"white box: {name}", "accuracy": accuracy})
    if task.names is not None:
        plain = _accuracy(task, task.test @ np.stack(list(task.names.values())).T)
        results.append({**draw, "method": "zero-shot", "accuracy": plain})
    return results


def _accuracy(task: Task, scores: Array) -> float:
    return 100 * float((scores.argmax(axis=1) == task.test_labels).mean())


def _unit(rows: NDArray[np.floating[Any]]) -> Array:
    rows = rows.astype(np.float32)
    unit: Array = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def print_table(results: list[dict[str, Any]]) -> None:
    """A Markdown table: a line for each data set and method, a column for each number of shots."""
    shots = sorted({one["shots"] for one in results})
    header = ("data", "method", *(f"{count} shot{'s'[: count > 1]}" for count in shots))
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
    with_most_shots_first = sorted(results, key=lambda one: -one["shots"])  # they have all methods
    for data, method in dict.fromkeys(
        (one["data"], one["method"]) for one in with_most_shots_first
    ):
        cells = []
        for count in shots:
            found = [
                one["accuracy"]
                for one in results
                if (one["data"], one["method"], one["shots"]) == (data, method, count)
            ]
            spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.2f}{spread}" if found else "-")
        print(f"| {data} | {method} | {' | '.join(cells)} |")


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not args.features.is_file():
        print(f"skipped: there is no file {args.features}", file=sys.stderr)
        return

    results: list[dict[str, Any]] = []
    found = tasks(args.features)
    for name in [task.name for task in found if task.names is None]:
        print(
            f"{name}: class names are not among the texts, so that there is no plain prediction; "
            "heads read generic words alone.",
            file=sys.stderr,
        )
    for shots, task in product(SHOTS, found):
        # All images that there are: no seed draws others.
        for seed in SEEDS if shots < SHOTS[-1] else SEEDS[:1]:
            results += measure(task, shots, seed)
            print(f"{task.name}, {shots} shots, seed {seed}", file=sys.stderr, flush=True)
            save(results, args.json)
    print_table(results)


if __name__ == "__main__":
    main()
