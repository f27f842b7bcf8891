"""Few-shot accuracy on embeddings of a real CLIP that were computed elsewhere.

The pocket model is not CLIP. Where a real model cannot be had, its embeddings say how much of what
the features hold its predictions show. Texts and images are scored as the API would answer,
log_softmax(100 * x @ t.T) in half precision, and craftbox's own functions do the rest: they keep
texts (`spanning_texts`), fit heads (`fit_ridge`) and choose one (`refiner_for`). Its figures are
those of one query. Beside them, on the features themselves, which no client sees:

- ridge: its regularisation chosen by exact leave-one-out.
- discriminant: Gaussian, with one shrunk covariance (Ledoit and Wolf); none with one image a class,
  which says nothing of a covariance.
- nearest mean: by the cosine to the class means.

The file (.npz) has, for each data set NAME, `NAME/train16_x`, float [N, W], and `NAME/train16_y`,
int [N], to draw from; `NAME/test_x` and `NAME/test_y`; and for all `text/names` [V] and `text/x`
[V, W]. Rows are normalised on reading. `NAME/names`, where it is there, are the C class names, each
one of `text/names`. Without them there is no plain prediction: a head reads generic words alone.

    python benchmarks/real_features.py --features FILE.npz --json docs/real_features.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifierCV

from craft_client.copies import with_equal_answers
from craft_client.open_text import spanning_texts
from craft_client.refiners import Kept, refiner_for
from craft_client.settings import TuneSettings
from craft_shared.head import log_softmax
from options import save
from white_box import REGULARISATIONS, gaussian_discriminant

Array = NDArray[np.float32]
Labels = NDArray[np.int64]

LOGIT_SCALE = 100.0
SHOTS = 16  # of what there is to draw from


@dataclass(frozen=True)
class Task:
    """One data set's unit embeddings.

    Attributes:
        name: of the data set.
        train: images to draw from, [N, W].
        train_labels: [N].
        test: the whole test split, [M, W].
        test_labels: [M].
        names: the class names' texts, [C, W]; None where they are not known.
        words: all other texts, [V, W].
    """

    name: str
    train: Array
    train_labels: Labels
    test: Array
    test_labels: Labels
    names: Array | None
    words: Array

    @property
    def classes(self) -> int:
        """C."""
        return int(self.train_labels.max()) + 1

    def answers(self, images: Array, words: NDArray[np.int64] | slice = slice(None)) -> Array:
        """What one query answers of images [N, W]: log-probabilities [1, N, C + words].

        Without class names the first C are what tells a head nothing: each image's mean, which is
        the same for all classes, and nothing once the answer is centred.
        """
        if self.names is None:
            scores = _as_answered(images @ self.words[words].T)
            unknown = np.repeat(scores.mean(axis=1, keepdims=True), self.classes, axis=1)
            return np.concatenate([unknown, scores], axis=1)[None]
        return _as_answered(images @ np.concatenate([self.names, self.words[words]]).T)[None]

    def draw(self, shots: int, seed: int) -> NDArray[np.int64]:
        """So many images of each class; more of them are these and others."""
        order = np.random.default_rng(seed).permutation(len(self.train_labels))
        of_class = [order[self.train_labels[order] == c][:shots] for c in range(self.classes)]
        return np.sort(np.concatenate(of_class))


def tasks(file: Path) -> list[Task]:
    """The data sets of a file."""
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    texts, text_names = _unit(arrays["text/x"]), arrays["text/names"].tolist()
    found = []
    for name in [key.removesuffix("/train16_x") for key in arrays if key.endswith("/train16_x")]:
        own = [text_names.index(one) for one in arrays.get(f"{name}/names", [])]
        found.append(
            Task(
                name,
                _unit(arrays[f"{name}/train16_x"]),
                arrays[f"{name}/train16_y"].astype(np.int64),
                _unit(arrays[f"{name}/test_x"]),
                arrays[f"{name}/test_y"].astype(np.int64),
                texts[own] if own else None,
                np.delete(texts, own, axis=0),
            )
        )
    return found


def craftbox(task: Task, rows: NDArray[np.int64], keep: int) -> dict[str, Any]:
    """One query of class names and words: the head that is deployed, on the test split."""
    labels, settings = task.train_labels[rows], TuneSettings(keep_texts=keep)
    wide = task.answers(task.train[rows])
    words = spanning_texts(wide[0], task.classes, settings.keep_texts)
    opening = task.answers(task.train[rows], words)
    kept = Kept(
        np.zeros((0, settings.dim), np.float32),
        [str(word) for word in words],
        opening,
        labels,
        groups=with_equal_answers(np.arange(len(labels)), opening),
    )
    chosen = refiner_for(settings, kept).choose(kept).chosen
    of_test = task.answers(task.test, words)
    read = of_test if chosen.texts else kept.of_classes(of_test)
    return {
        "accuracy": _accuracy(task, chosen.refinement.head(read)),
        "deployed": chosen.name,
        "regularisation": chosen.refinement.regularisation,
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


def measure(task: Task, shots: int, seed: int, keeps: list[int]) -> list[dict[str, Any]]:
    """All methods on one draw of images."""
    rows = task.draw(shots, seed)
    features, labels = task.train[rows], task.train_labels[rows]
    draw = {"data": task.name, "shots": shots, "seed": seed}
    results = [
        {**draw, "method": f"craftbox, {keep} kept words", **craftbox(task, rows, keep)}
        for keep in keeps
    ]
    for name, fit in WHITE_BOX.items():
        if name != "discriminant" or shots > 1:
            accuracy = _accuracy(task, fit(features, labels)(task.test))
            results.append({**draw, "method": f"white box: {name}", "accuracy": accuracy})
    if task.names is not None:
        plain = _accuracy(task, task.test @ task.names.T)
        results.append({**draw, "method": "zero-shot", "accuracy": plain})
    return results


def _accuracy(task: Task, scores: Array) -> float:
    return 100 * float((scores.argmax(axis=1) == task.test_labels).mean())


def _as_answered(cosines: Array) -> Array:
    return log_softmax(LOGIT_SCALE * cosines).astype(np.float16).astype(np.float32)


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
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--keep-texts", type=int, nargs="+", default=[TuneSettings().keep_texts], help="of words"
    )
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
    for shots, task in product(args.shots, found):
        # All images that there are: no seed draws others.
        for seed in args.seeds if shots < SHOTS else args.seeds[:1]:
            results += measure(task, shots, seed, args.keep_texts)
            print(f"{task.name}, {shots} shots, seed {seed}", file=sys.stderr, flush=True)
            save(results, args.json)
    print_table(results)


if __name__ == "__main__":
    main()
