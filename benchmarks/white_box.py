"""White-box lines: what few-shot tuning reaches when the model is in hand, not behind an API.

Black-box tuning (`craft bench`) is held against these, on the same draws of pictures. They
see hidden image features, and prompt learning sees gradients; neither ever leaves a server.

- zero-shot: 'a photo of a NAME.'.
- ridge: ridge regression from image features to labels, its regularisation chosen by exact
  leave-one-out.
- ridge within reach: the same, on the part of the features that the text tower's embeddings span.
  Scores show no other part, whatever the prompts and texts, so this is what prediction-only access
  leaves of the line above. (A text tower narrower than the embedding spans a subspace of it.)
- discriminant: Gaussian discriminant analysis with one shrunk covariance, mixed with zero-shot
  (Wang et al., A hard-to-beat baseline for training-free CLIP-based adaptation, ICLR 2024).
- coop: prompt learning by gradient descent through the text tower (Zhou et al., Learning to prompt
  for vision-language models, IJCV 2022), at the published learning rate and at one chosen for the
  model. Unlike there, pictures are not augmented (their features, of the centre crop, are computed
  once) and the first epoch has no rate of its own.

All choices are made on the training pictures. Each fit has a process of its own, so that its peak
memory is its own. All of these processes load the model, which takes most of that; what the fit
adds stands apart. Prints tables and writes JSON, after each fit; what the file holds of other fits
is kept.

    python benchmarks/white_box.py --data DIR [DIR ...] --json benchmarks/results/white_box.json
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold
from torch import Tensor
from torch.nn import functional

from craft_client.data import Dataset, Sample, few_shot
from craft_client.layouts import load_dataset
from craft_client.presets import common_nouns
from craft_server.decoding.pixels import decode
from craft_server.engine.hosted import preprocessing_of, tokenizer_of
from craft_server.engine.models import LoadedModel, ModelSpec, load_model
from craft_server.engine.text import Moved, TextTower, packs
from craft_server.engine.tokens import Tokenizer
from options import parser_for, present, save

Array = NDArray[np.float32]
Labels = NDArray[np.int64]
Classifier = Callable[[Array], Array]

CONTEXT = "a photo of a"
IMAGES_AT_ONCE = 8
COOP_BATCH = 32
# Those of CoOp's released code.
COOP_RATE = 0.002
COOP_MOMENTUM = 0.9
COOP_WEIGHT_DECAY = 5e-4
COOP_RATES = (0.002, 0.02, 0.2, 2.0)
REGULARISATIONS = np.logspace(-3, 3, 25)
ROUNDING = 1e-4  # of the widest direction's spread
MIXING_WEIGHTS = np.linspace(0, 1, 21)


class ClassTexts:
    """The class names as texts, and the text tower that reads them after any context words.

    Attributes:
        start: token embeddings of 'a photo of a', [4, W].
        encoded: how many texts were encoded so far.
    """

    def __init__(self, model: LoadedModel, classes: tuple[str, ...]) -> None:
        self._tower = TextTower(model.module)
        tokens = Tokenizer(tokenizer_of(model.name), self._tower.context_length).of()
        sequences = [tokens.context(CONTEXT, name) for name in classes]
        # No bound: all classes in one pack.
        (self._pack,) = packs(sequences, prompts=1, max_tokens=sys.maxsize)
        self.start = self._tower.embed(torch.tensor(tokens.words(CONTEXT)))
        self.encoded = 0

    def features(self, words: Tensor) -> Tensor:
        """Unit features [C, F] of the class names after context words [M, W]; has gradients."""
        features = self._tower.encode(Moved(self._pack, words[None]))
        order = torch.tensor(self._pack.classes)
        self.encoded += len(order)
        return features[0][order.argsort()]


@dataclass(frozen=True)
class Training:
    """All that a method may look at.

    Attributes:
        features: unit image features of the training pictures, [N, F].
        labels: [N].
        texts: the class names.
        nouns: a vocabulary.
        logit_scale: the model's factor on cosine similarities.
        seed: for what is drawn at random.
        epochs: of prompt learning.
    """

    features: Array
    labels: Labels
    texts: ClassTexts
    nouns: ClassTexts
    logit_scale: float
    seed: int
    epochs: int


@dataclass(frozen=True)
class Fit:
    """A classifier, features [N, F] to logits [N, C], and what was chosen or seen on the way."""

    classify: Classifier
    notes: dict[str, Any] = field(default_factory=dict)


def zero_shot(training: Training) -> Fit:
    """Fitted to nothing."""
    return Fit(_classifier_of_texts(training, training.texts.start))


def ridge(training: Training) -> Fit:
    """Regularisation with the least squared error of exact leave-one-out (Allen's PRESS)."""
    path = RidgeClassifierCV(alphas=REGULARISATIONS).fit(training.features, training.labels)
    return Fit(path.decision_function, {"regularisation": float(path.alpha_)})


def ridge_within_reach(training: Training) -> Fit:
    """The ridge on the features' components along the directions in which texts differ at all."""
    with torch.inference_mode():
        nouns = training.nouns.features(training.nouns.start).double().numpy()
    _, spread, directions = np.linalg.svd(nouns - nouns.mean(axis=0), full_matrices=False)
    reach = directions[spread > ROUNDING * spread[0]].T
    path = RidgeClassifierCV(alphas=REGULARISATIONS).fit(training.features @ reach, training.labels)

    def classify(pictures: Array) -> Array:
        scores: Array = path.decision_function(pictures @ reach)
        return scores

    notes = {"regularisation": float(path.alpha_), "dimensions": reach.shape[1]}
    return Fit(classify, notes)


def discriminant(training: Training) -> Fit:
    """Mixes both log-posteriors; the weight is chosen by cross-validation.

    Each fold holds out one picture of each class. Accuracy decides, and cross-entropy among equals.
    """
    features, labels = training.features, training.labels
    plain = _classifier_of_texts(training, training.texts.start)
    held_out = np.empty((len(labels), labels.max() + 1), np.float32)
    folds = StratifiedKFold(np.bincount(labels).min(), shuffle=True, random_state=training.seed)
    for kept, left_out in folds.split(features, labels):
        of_fold = gaussian_discriminant(features[kept], labels[kept])
        held_out[left_out] = log_softmax(of_fold(features[left_out]), axis=1)
    plain_held_out = log_softmax(plain(features), axis=1)

    def errors_and_loss(weight: float) -> tuple[int, float]:
        mixed = log_softmax(weight * held_out + (1 - weight) * plain_held_out, axis=1)
        errors = int((mixed.argmax(axis=1) != labels).sum())
        return errors, -float(mixed[np.arange(len(labels)), labels].mean())

    weight = min(MIXING_WEIGHTS.tolist(), key=errors_and_loss)
    fitted = gaussian_discriminant(features, labels)

    def classify(pictures: Array) -> Array:
        posterior = log_softmax(fitted(pictures), axis=1)
        mixed: Array = weight * posterior + (1 - weight) * log_softmax(plain(pictures), axis=1)
        return mixed

    return Fit(classify, {"weight": weight})


def coop(training: Training) -> Fit:
    """Prompt learning at the published rate, which suits CLIP's own token embeddings."""
    every = np.arange(len(training.labels))
    words, notes = learn_words(training, every, training.epochs, COOP_RATE)
    return Fit(_classifier_of_texts(training, words), notes)


def coop_rate_chosen(training: Training) -> Fit:
    """Prompt learning at a rate that suits the model: embeddings of other sizes need other rates.

    Each rate is tried for a quarter of the epochs on half of the pictures of each class; the one
    with the least cross-entropy on the other half is kept.
    """
    halves = StratifiedKFold(2, shuffle=True, random_state=training.seed)
    kept, left_out = next(halves.split(training.features, training.labels))
    epochs = max(1, training.epochs // 4)
    losses = {}
    for rate in COOP_RATES:
        words, _ = learn_words(training, kept, epochs, rate)
        classify = _classifier_of_texts(training, words)
        log_probs = log_softmax(classify(training.features[left_out]), axis=1)
        truth = np.arange(len(left_out)), training.labels[left_out]
        losses[rate] = -float(log_probs[truth].mean())

    every = np.arange(len(training.labels))
    words, notes = learn_words(
        training, every, training.epochs, min(losses, key=losses.__getitem__)
    )
    return Fit(_classifier_of_texts(training, words), {**notes, "held_out_losses": losses})


METHODS: dict[str, Callable[[Training], Fit]] = {
    "zero-shot": zero_shot,
    "ridge": ridge,
    "ridge within reach": ridge_within_reach,
    "discriminant": discriminant,
    "coop": coop,
    "coop, rate chosen": coop_rate_chosen,
}


def learn_words(
    training: Training, rows: NDArray[np.int64], epochs: int, rate: float
) -> tuple[Tensor, dict[str, Any]]:
    """Four context words, the same for all classes, by stochastic gradient descent on some rows."""
    torch.manual_seed(training.seed)
    features = torch.from_numpy(training.features[rows])
    labels = torch.from_numpy(training.labels[rows])
    words = training.texts.start.clone().requires_grad_()
    optimizer = torch.optim.SGD(
        [words], lr=rate, momentum=COOP_MOMENTUM, weight_decay=COOP_WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    losses = []
    for _ in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(labels)).split(COOP_BATCH):
            texts = training.texts.features(words)
            logits = training.logit_scale * features[batch] @ texts.T
            loss = functional.cross_entropy(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(batch)
        schedule.step()
        losses.append(total / len(labels))
    return words.detach(), {
        "epochs": epochs,
        "rate": rate,
        "first_epoch_loss": losses[0],
        "last_epoch_loss": losses[-1],
    }


def _classifier_of_texts(training: Training, words: Tensor) -> Classifier:
    with torch.inference_mode():
        texts = training.logit_scale * training.texts.features(words).numpy()

    def classify(pictures: Array) -> Array:
        logits: Array = pictures @ texts.T
        return logits

    return classify


def gaussian_discriminant(features: Array, labels: Labels) -> Classifier:
    """Classes equally likely, with the Ledoit-Wolf estimate of the covariance within them."""
    means = np.stack([features[labels == label].mean(axis=0) for label in range(labels.max() + 1)])
    covariance, _ = ledoit_wolf(features - means[labels], assume_centered=True)
    weights = np.linalg.solve(covariance, means.T)
    bias = -0.5 * (means.T * weights).sum(axis=0)

    def classify(pictures: Array) -> Array:
        logits: Array = pictures @ weights + bias
        return logits

    return classify


# --- measuring; each of the next two functions runs in a process of its own ----------------------


def draw_few(
    data: Dataset, shots: int, seeds: list[int]
) -> tuple[list[Sample], dict[int, list[int]]]:
    """All pictures that the seeds draw, and of each seed which of them."""
    draws = {seed: few_shot(data.train, shots, seed, data.classes) for seed in seeds}
    train = sorted({sample for draw in draws.values() for sample in draw})
    row = {sample: i for i, sample in enumerate(train)}
    return train, {seed: [row[sample] for sample in draw] for seed, draw in draws.items()}


def encode_pictures(
    spec: ModelSpec, data: Dataset, train: list[Sample], to: Path
) -> dict[str, Any]:
    """Writes unit features and labels of training and test pictures to a file."""
    model = load_model(spec)
    module: Any = model.module
    view, to_tensor = preprocessing_of(model.preprocess_cfg)
    samples = [*train, *data.split("test")]
    started = time.monotonic()
    parts = []
    with torch.inference_mode():
        for i in range(0, len(samples), IMAGES_AT_ONCE):
            pixels = torch.stack(
                [
                    to_tensor(np.array(view.of(decode(path.read_bytes(), max_pixels=sys.maxsize))))
                    for path, _ in samples[i : i + IMAGES_AT_ONCE]
                ]
            )
            parts.append(functional.normalize(module.encode_image(pixels), dim=-1).numpy())
    seconds = time.monotonic() - started
    features, labels = np.concatenate(parts), np.array([label for _, label in samples])
    np.savez(
        to,
        train_features=features[: len(train)],
        train_labels=labels[: len(train)],
        test_features=features[len(train) :],
        test_labels=labels[len(train) :],
    )
    return {
        "data": data.name,
        "train_images": len(train),
        "test_images": len(samples) - len(train),
        "seconds": seconds,
        "peak_mib": _peak_mib(),
    }


def measure(
    spec: ModelSpec,
    method: str,
    classes: tuple[str, ...],
    features: Path,
    rows: list[int],
    options: dict[str, Any],
) -> dict[str, Any]:
    """Fits one method on some rows of the training pictures, and only then reads the test ones."""
    model = load_model(spec)
    texts = ClassTexts(model, classes)
    with np.load(features) as stored:
        training = Training(
            stored["train_features"][rows],
            stored["train_labels"][rows],
            texts,
            ClassTexts(model, common_nouns()),
            model.logit_scale,
            **options,
        )
        loading = _peak_mib()
        _forget_peak()
        before = _peak_mib()
        started, cpu_started = time.monotonic(), time.process_time()
        fit = METHODS[method](training)
        seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu_started
        peak = _peak_mib()
        predicted = fit.classify(stored["test_features"]).argmax(axis=1)
        accuracy = 100 * float((predicted == stored["test_labels"]).mean())
    return {
        "accuracy": accuracy,
        "images": 0 if method == "zero-shot" else len(rows),
        "texts": texts.encoded + training.nouns.encoded,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mib": max(loading, peak),
        "fit_mib": peak - before,
        "threads": torch.get_num_threads(),
        **fit.notes,
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _forget_peak() -> None:
    """Begins the peak anew, where Linux allows it (man 5 proc); elsewhere it stays as it is."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def in_own_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The function's result, from a fresh process.

    A process counts its parent's memory as its own first peak, so the parent must hold no pictures.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def print_tables(report: dict[str, list[dict[str, Any]]]) -> None:
    """Markdown tables: what encoding the pictures took, and accuracy in percent with its cost."""
    print("| data | training images | test images | seconds | peak MiB |\n|---|---|---|---|---|")
    for entry in report["encodings"]:
        print(
            f"| {entry['data']} | {entry['train_images']:,} | {entry['test_images']:,} "
            f"| {entry['seconds']:.0f} | {entry['peak_mib']:.0f} |"
        )
    header = (
        *("data", "shots", "method", "epochs", "seeds", "mean ± spread"),
        *("images", "texts", "seconds", "CPU seconds", "peak MiB", "MiB of the fit"),
    )
    print(f"\n| {' | '.join(header)} |\n{'|---' * len(header)}|")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for fit in report["fits"]:
        named = tuple(str(fit.get(key, "")) for key in ("data", "shots", "method", "epochs"))
        groups.setdefault(named, []).append(fit)
    for named, fits in groups.items():
        accuracies = [fit["accuracy"] for fit in fits]
        spread = f" ± {statistics.stdev(accuracies):.2f}" if len(fits) > 1 else ""
        print(
            f"| {' | '.join(named)} | {len(fits)} | {statistics.mean(accuracies):.2f}{spread} "
            f"| {fits[0]['images']:,} | {fits[0]['texts']:,} "
            f"| {statistics.mean(fit['seconds'] for fit in fits):.1f} "
            f"| {statistics.mean(fit['cpu_seconds'] for fit in fits):.1f} "
            f"| {max(fit['peak_mib'] for fit in fits):.0f} "
            f"| {max(fit['fit_mib'] for fit in fits):.1f} |"
        )


def main() -> None:
    """Runs the measurement."""
    parser = parser_for(__doc__)
    parser.add_argument("--pretrained")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--epochs", type=int, default=200)
    args = parser.parse_args()
    if args.shots < 2:
        parser.error("--shots must be at least 2, for choices are made on pictures left out")

    spec = ModelSpec(args.model, args.pretrained, device="cpu")
    report: dict[str, list[dict[str, Any]]] = {"encodings": [], "fits": []}
    if args.json and args.json.exists():
        report = json.loads(args.json.read_text())

    def record(kind: str, name: dict[str, Any], result: dict[str, Any]) -> None:
        others = [entry for entry in report[kind] if not name.items() <= entry.items()]
        report[kind] = [*others, {**name, **result}]
        save(report, args.json)

    for folder in present(args.data):
        data = load_dataset(folder)
        train, rows_of = draw_few(data, args.shots, args.seeds)
        named = {"model": args.model, "data": data.name, "shots": args.shots}
        with tempfile.TemporaryDirectory() as temporary:
            features = Path(temporary) / "features.npz"
            record("encodings", named, in_own_process(encode_pictures, spec, data, train, features))
            for method, (seed, rows) in product(args.methods, rows_of.items()):
                options = {"seed": seed, "epochs": args.epochs}
                result = in_own_process(
                    measure, spec, method, data.classes, features, rows, options
                )
                record("fits", {**named, "method": method, "seed": seed}, result)
                print(f"{data.name} {method} seed {seed}: {result}", file=sys.stderr)
    print_tables(report)


if __name__ == "__main__":
    main()
