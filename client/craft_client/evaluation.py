"""What an adapter comes to on labelled images that tuning has not seen: `evaluation.json`.

The file keeps counts; every accuracy and interval is computed from them here, when it is written as
when it is read. So what the file says of these besides is for other readers, and is not believed.

Sources: Wilson, JASA 1927 (interval of a share); Guo et al., ICML 2017 (calibration error).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, StringConstraints, ValidationError, model_validator

from craft_client.data import Split
from craft_client.exceptions import InUse
from craft_client.journal import Journal, JournalError
from craft_client.run_folder import ADAPTER_FOLDER, EVALUATION_FILE
from craft_shared.adapter import Adapter, AdapterError
from craft_shared.amounts import MAX_INTEGER
from craft_shared.files import write_whole
from craft_shared.model_card import CARD_FILE, model_card
from craft_shared.printing import json_text, percent, printable
from craft_shared.problems import first_error
from craft_shared.units import Units
from craft_shared.wire.messages import StoredClassName

BINS: Final = 15  # of equal width, of the predicted class's probability; Guo et al.
_MOST_BYTES = 2**26
_Z = NormalDist().inv_cdf(0.975)  # of 95 %

_Count = Annotated[int, Field(ge=1, le=MAX_INTEGER)]
_Text = Annotated[str, StringConstraints(max_length=2000)]

Interval = tuple[float, float]


class ClassAccuracy(BaseModel):
    """How many images of one class there are, and how many were predicted rightly."""

    name: str
    n: int
    right_before: int
    right: int

    @property
    def accuracy_before(self) -> float:
        """Percent."""
        return 100 * self.right_before / self.n

    @property
    def accuracy(self) -> float:
        """Percent."""
        return 100 * self.right / self.n

    @property
    def change(self) -> float:
        """Of the accuracy, percentage points."""
        return self.accuracy - self.accuracy_before


class Metrics(BaseModel):
    """What predictions of labelled images were worth. Use `metrics_of`."""

    # images by true, then predicted class
    confusion: dict[StoredClassName, dict[StoredClassName, _Count]]
    # expected, percent, over `BINS` bins; None: no probabilities
    calibration_error: Annotated[float, Field(ge=0, le=100)] | None

    @property
    def n(self) -> int:
        """Images."""
        return sum(self.images.values())

    @property
    def right(self) -> int:
        """Images whose class was predicted."""
        return sum(predicted.get(name, 0) for name, predicted in self.confusion.items())

    @property
    def images(self) -> dict[str, int]:
        """Images of each class."""
        return {name: sum(predicted.values()) for name, predicted in self.confusion.items()}

    @property
    def accuracy(self) -> float:
        """Top-1, percent."""
        return 100 * self.right / self.n

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % interval of the accuracy, percent."""
        return wilson(self.right, self.n)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{percent(self.accuracy)} ({low:.1f} to {high:.1f})"

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers in which all classes are together, JSON-able."""
        return {
            "n": self.n,
            "right": self.right,
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "calibration_error": self.calibration_error,
        }


class Evaluation(Metrics):
    """What a run's adapter is worth on a split, and what the plain prompt was worth before."""

    schema_version: Literal[1] = 1
    evaluated_at: _Text = Field(
        default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds")
    )
    data: _Text
    split: Split
    model: _Text
    revision: _Text
    adapter: _Text  # its digest
    # Of the images and their classes (`data.digest_of_images`); earlier versions did not say.
    digest: _Text | None = None
    before: Metrics  # the plain prompt, on the same images
    calibration_bins: Literal[15] = BINS
    charged: Units  # the upload included

    @model_validator(mode="after")
    def _consistent(self) -> Evaluation:
        if not self.n:
            raise ValueError("confusion: no images")
        if self.images != self.before.images:
            raise ValueError("before: of other images than the adapter's")
        return self

    @property
    def subject(self) -> str:
        """Which images, in words."""
        return f"{self.split} split of {self.data}, {self.n:,} pictures"

    @property
    def per_class(self) -> list[ClassAccuracy]:
        """The accuracies of the classes that have images."""
        return [
            ClassAccuracy(
                name=name,
                n=count,
                right_before=self.before.confusion[name].get(name, 0),
                right=self.confusion[name].get(name, 0),
            )
            for name, count in self.images.items()
            if count
        ]

    @property
    def summary(self) -> dict[str, Any]:
        """All but what is by class, JSON-able."""
        by_class = {"confusion", "before", "calibration_error"}
        return {
            **self.model_dump(mode="json", exclude=by_class),
            **super().summary,
            "before": self.before.summary,
        }

    @property
    def document(self) -> dict[str, Any]:
        """What the file says, JSON-able."""
        return {
            **self.summary,
            "before": {**self.before.summary, "confusion": self.before.confusion},
            "per_class": [{**one.model_dump(), "accuracy": one.accuracy} for one in self.per_class],
            "confusion": self.confusion,
        }


def metrics_of(
    log_probs: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    *,
    calibrated: bool = True,
) -> Metrics:
    """What log-probabilities [N, C], which may lack a constant an image, are worth; N at least 1.

    With `calibrated` they stand for probabilities, not for an order alone.
    """
    predicted = log_probs.argmax(axis=-1)
    confusion: dict[str, dict[str, int]] = {}
    pairs, counts = np.unique(np.stack([labels, predicted]), axis=1, return_counts=True)
    for label, guess, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
        confusion.setdefault(classes[label], {})[classes[guess]] = count
    error = _calibration_error(log_probs, predicted == labels) if calibrated else None
    return Metrics(confusion=confusion, calibration_error=error)


def wilson(right: int, n: int) -> Interval:
    """Wilson's 95 % interval of the share `right / n`, in percent; n at least 1."""
    share, spread = right / n, _Z**2 / n
    centre = share + spread / 2
    half = (spread * (share * (1 - share) + spread / 4)) ** 0.5
    low, high = ((centre + sign * half) / (1 + spread) for sign in (-1, 1))
    return 100 * max(0.0, low), 100 * min(1.0, high)


def read_evaluation(folder: Path, adapter: str) -> Evaluation | None:
    """The evaluation that a run directory keeps of its adapter; None where there is none.

    `adapter` is the digest of the run's.

    Raises:
        JournalError: the file is damaged, of another adapter or another version, or cannot be read.
    """
    path = folder / EVALUATION_FILE
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise _unusable(path, "is larger than any evaluation")
        evaluation = Evaluation.model_validate_json(data)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        reason = f"is damaged, or of another version of craftbox: {first_error(error)}"
        raise _unusable(path, reason) from error
    if evaluation.adapter != adapter:
        raise _unusable(path, "is of another adapter than the run's")
    return evaluation


def keep_evaluation(folder: Path, evaluation: Evaluation) -> str | None:
    """Writes the evaluation into the run directory, whole or not at all; why not, where not.

    One of the training split is not kept, because tuning has seen its images; nor one that says
    less of the run than what is kept: the test split of the run's own data says most. The adapter's
    card leads with it.
    """
    if evaluation.split == "train":
        return "tuning has seen pictures of the train split"
    try:
        journal = Journal.open(folder)
        with journal.alone():
            own = printable(Path(str(journal.document.get("data", evaluation.data))).name)
            kept = None
            with suppress(JournalError):  # what is damaged is replaced
                kept = read_evaluation(folder, evaluation.adapter)
            if kept and _rank(kept, own) > _rank(evaluation, own):
                return f"what it holds, of the {kept.subject}, says more of the run"
            text = json_text(evaluation.document, indent=2)
            write_whole(folder / EVALUATION_FILE, f"{text}\n".encode())
            tested = evaluation.subject, str(evaluation.before), str(evaluation)
            config = Adapter.load(folder / ADAPTER_FOLDER).config
            write_whole(folder / ADAPTER_FOLDER / CARD_FILE, model_card(config, tested).encode())
    except (JournalError, InUse) as error:
        return error.message.removesuffix(".")
    except AdapterError as error:
        return str(error)
    except OSError as error:
        return f"cannot write '{folder / EVALUATION_FILE}': {error.strerror or error}"
    return None


def _rank(evaluation: Evaluation, own: str) -> tuple[bool, bool]:
    return evaluation.data == own, evaluation.split == "test"


def _calibration_error(log_probs: NDArray[np.float32], right: NDArray[np.bool_]) -> float | None:
    if not np.isfinite(log_probs.max(axis=-1)).all():
        return None  # a head overflowed
    scores = log_probs.astype(np.float64)
    confidence = 1 / np.exp(scores - scores.max(axis=-1, keepdims=True)).sum(axis=-1)
    # A bin holds its upper end, as in Guo et al.
    bins = np.ceil(confidence * BINS).astype(np.int64) - 1
    gaps = np.bincount(bins.clip(0, BINS - 1), weights=right - confidence)
    return min(100.0, float(100 * np.abs(gaps).sum() / len(right)))


def _unusable(path: Path, reason: str) -> JournalError:
    return JournalError(
        f"'{path}' {reason}.", remedy=f"Measure anew: craft evaluate {path.parent} --data DIR"
    )
