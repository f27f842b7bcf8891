"""Predictions: what a call asks, and the check that its answer answers that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from craft_client.calls import IDEMPOTENCY_HEADER, Call, message, path, read_tensors
from craft_client.exceptions import CraftError, ProtocolError
from craft_client.pictures import Picture, files
from craft_shared import codec
from craft_shared.display import Displayed, View, names
from craft_shared.output import ranked
from craft_shared.units import UNITS
from craft_shared.wire import (
    EVERYTHING,
    AdapterPredictionAnswer,
    AdapterPredictionRequest,
    Cost,
    Output,
    PredictionAnswer,
    PredictionRequest,
)

# Of an answer where it is not known how much was asked for: all that a server sends at once, four
# times over. Otherwise what stands beside the numbers.
MOST_TENSOR_BYTES = 2**30
DOCUMENT_BYTES = 8 * 2**20


class _Shown(Displayed):
    """What the answers to both kinds of predictions show."""

    output: Output
    tensors: codec.Tensors

    @property
    def log_probs(self) -> NDArray[np.float32]:
        """Log-probabilities over the classes; with k the largest of them, descending.

        Raises:
            CraftError: the key may not see any.
        """
        if "log_probs" not in self.tensors:
            raise CraftError(
                f"The answer has no log_probs: the key sees the level '{self.output.level}' alone.",
                remedy="Read its other tensors, or ask the provider for another level.",
            )
        return self.tensors["log_probs"]

    @property
    def top_classes(self) -> NDArray[np.int32] | None:
        """Which class each number belongs to; None where all are there.

        With the level `label` the most probable class alone, [.., 1].
        """
        return self.tensors.get("top_classes")


@dataclass(frozen=True, repr=False)
class Prediction(_Shown):
    """Answer of `Client.predict`: tensors [prompts, images, classes], or [prompts, images, k].

    `craft_shared.output.shown` describes them.
    """

    model: str
    revision: str
    output: Output  # what the answer shows, as far as the key may see it
    tensors: codec.Tensors
    cost: Cost  # of the call, and the budgets after it
    idempotency_key: str  # for `Client.acknowledge`

    def _view(self) -> View:
        shapes = {name: list(tensor.shape) for name, tensor in self.tensors.items()}
        facts = {"level": self.output.level, **shapes, **_charged(self.cost)}
        return View(f"of {self.model}", {"revision": self.revision, **facts})


@dataclass(frozen=True, repr=False)
class AdapterPrediction(_Shown):
    """Answer of `Client.adapter_predict`: tensors [images, classes], or [images, k]."""

    adapter: str
    version: int
    classes: list[str]
    output: Output  # what the answer shows, as far as the key may see it
    tensors: codec.Tensors
    cost: Cost  # of the call, and the budgets after it
    idempotency_key: str
    # [images]: whether the best class is below the threshold; None without one
    abstained: NDArray[np.bool_] | None = None

    @property
    def probabilities(self) -> NDArray[np.float64] | None:
        """Probabilities in the shape of what is answered; None where no number is."""
        if "probs" in self.tensors:
            return self.tensors["probs"].astype(np.float64)
        if "log_probs" in self.tensors:
            return np.exp(self.tensors["log_probs"].astype(np.float64))
        return None

    def best(self, most: int) -> list[tuple[tuple[str, float | None], ...]]:
        """Of each image the most probable classes, and their probabilities to six decimals.

        A probability is None where the answer has no numbers.
        """
        top, numbers = ranked(self.tensors)
        if numbers is None:
            return [((self.classes[row[0]], None),) for row in top]
        return [
            tuple(
                (self.classes[column], round(float(number), 6))
                for column, number in zip(columns[:most], shown[:most], strict=True)
            )
            for columns, shown in zip(top, numbers, strict=True)
        ]

    def _view(self) -> View:
        flags = [None] * len(best := self.best(1)) if self.abstained is None else self.abstained
        rows: list[list[object]] = [
            [row, name, probability, None if abstained is None else bool(abstained)]
            for row, (((name, probability),), abstained) in enumerate(zip(best, flags, strict=True))
        ]
        return View(
            f"of {self.adapter}@{self.version}",
            {
                "pictures": len(rows),
                "classes": names(self.classes),
                "level": self.output.level,
                **_charged(self.cost),
            },
            ["picture", "class", "probability", "abstained"],
            rows,
        )


def _charged(cost: Cost) -> dict[str, object]:
    units = {f"charged {unit}": cost.charged[unit] for unit in UNITS if cost.charged[unit]}
    return {**units, "cost_micros": cost.cost_micros or None}


def prediction_call(
    request: PredictionRequest,
    codes: NDArray[np.float32] | None,
    images: Sequence[Picture] | None,
    count: int | None,
    idempotency_key: str | None,
) -> tuple[Call, tuple[int, int | None]]:
    """The call of `Client.predict`, and how many prompts and images (None: unknown) it asks of."""
    tensors: codec.Tensors = {}
    if codes is not None:
        tensors["codes"] = np.ascontiguousarray(codes, np.float32)
    if images is not None:
        tensors |= codec.pack_files(list(files(images)))
    document = request.model_dump(mode="json", exclude={"codes", "images"}, exclude_none=True)
    prompts = len(request.templates) + (0 if codes is None else len(codes))
    count = _count(images, request.rows, count)
    width = min(request.top_k or len(request.classes), len(request.classes))
    call = Call(
        "POST",
        "/v1/predictions",
        tensors=codec.encode(document, tensors),
        idempotency_key=idempotency_key,
        most_bytes=_most_bytes(None if count is None else prompts * count * width),
    )
    return call, (prompts, count)


def prediction_of(
    response: httpx.Response, request: PredictionRequest, asked: tuple[int, int | None]
) -> Prediction:
    """The answer to a call that asked about so many prompts and images.

    Raises:
        ProtocolError: it does not answer that.
    """
    answer, tensors = read_tensors(PredictionAnswer, response)
    output = _shown_output(answer.output, request.top_k)
    return Prediction(
        answer.model,
        answer.revision,
        output,
        _checked_tensors(tensors, asked, len(request.classes), output),
        answer.cost,
        response.request.headers[IDEMPOTENCY_HEADER],
    )


def adapter_call(
    name: str,
    images: Sequence[Picture] | None,
    image_set: str | None,
    rows: Sequence[int] | None,
    top_k: int | None,
    abstain_below: float | None,
    classes: Sequence[str] | None,
    count: int | None,
    idempotency_key: str | None,
) -> tuple[Call, int | None]:
    """The call of `Client.adapter_predict`, and how many images (None: unknown) it asks of."""
    request = message(
        AdapterPredictionRequest,
        image_set=image_set,
        rows=None if rows is None else list(rows),
        top_k=top_k,
        abstain_below=abstain_below,
    )
    body = codec.encode(
        request.model_dump(mode="json", exclude_none=True),
        {} if images is None else codec.pack_files(list(files(images))),
    )
    count = _count(images, rows, count)
    known = [top_k] if top_k is not None else []
    known += [len(classes)] if classes is not None else []
    call = Call(
        "POST",
        path("adapters", name, "predictions"),
        tensors=body,
        idempotency_key=idempotency_key,
        most_bytes=_most_bytes(None if count is None or not known else count * min(known)),
    )
    return call, count


def adapter_prediction_of(
    response: httpx.Response, classes: Sequence[str] | None, top_k: int | None, count: int | None
) -> AdapterPrediction:
    """The answer to a call that asked about so many images.

    Raises:
        ProtocolError: it does not answer that, or has other classes than these.
    """
    answer, tensors = read_tensors(AdapterPredictionAnswer, response)
    if classes is not None and answer.classes != list(classes):
        raise ProtocolError("The server answered with other classes than the adapter has.")
    abstained = tensors.pop("abstained", None)
    if abstained is not None and not (abstained.dtype == np.uint8 and _fits(abstained, (count,))):
        raise ProtocolError("The server answered with flags of another shape or type than asked.")
    output = _shown_output(answer.output, top_k)
    return AdapterPrediction(
        answer.adapter,
        answer.version,
        answer.classes,
        output,
        _checked_tensors(tensors, (count,), len(answer.classes), output),
        answer.cost,
        response.request.headers[IDEMPOTENCY_HEADER],
        None if abstained is None else abstained.astype(np.bool_),
    )


def _count(
    images: Sequence[Picture] | None, rows: Sequence[int] | None, known: int | None
) -> int | None:
    """How many images are asked about, if that is known."""
    some = images if images is not None else rows
    return known if some is None else len(some)


def _most_bytes(numbers: int | None) -> int:
    """The most that an answer of tensors comes to, with so many numbers and as many classes."""
    if numbers is None:
        return MOST_TENSOR_BYTES
    return DOCUMENT_BYTES + numbers * (np.dtype(np.float32).itemsize + np.dtype(np.int32).itemsize)


def _shown_output(said: Output, top_k: int | None) -> Output:
    """What an answer shows; a server that knew no levels answers all, or the `top_k` asked for."""
    return Output(level="top_k", k=top_k) if said == EVERYTHING and top_k is not None else said


def _checked_tensors(
    tensors: codec.Tensors, rows: tuple[int | None, ...], classes: int, output: Output
) -> codec.Tensors:
    """What an answer shows of so many rows (None: any number), numbers in single precision.

    Raises:
        ProtocolError: it shows something else.
    """
    numbers = {"label": [], "probs": ["probs"]}.get(output.level, ["log_probs"])
    named = output.level == "label" or output.k is not None
    wanted = [*numbers, "top_classes"] if named else numbers
    if tensors.keys() != set(wanted):
        raise ProtocolError(
            f"The server answered with the tensors {sorted(tensors)}; {wanted} were asked for."
        )
    width = 1 if output.level == "label" else min(output.k or classes, classes)
    checked: codec.Tensors = {}
    for name in numbers:
        _check_numbers(tensors[name], (*rows, width))
        checked[name] = tensors[name].astype(np.float32)
    if not named:
        return checked
    top_classes = tensors["top_classes"]
    if top_classes.dtype != np.int32 or not _fits(top_classes, (*rows, width)):
        raise ProtocolError(
            f"The server answered with top classes of shape {top_classes.shape} and type "
            f"{top_classes.dtype}; int32 of shape ({_sides((*rows, width))}) was asked for."
        )
    if ((top_classes < 0) | (top_classes >= classes)).any():
        raise ProtocolError(f"The server answered with a class that is none of the {classes}.")
    return {**checked, "top_classes": top_classes}


def _check_numbers(numbers: NDArray[Any], shape: tuple[int | None, ...]) -> None:
    """Raises ProtocolError unless it is a float tensor of that shape (None: any) without NaN."""
    if not _fits(numbers, shape) or numbers.dtype not in (np.float16, np.float32):
        raise ProtocolError(
            f"The server answered with numbers of shape {numbers.shape} and type "
            f"{numbers.dtype}; floats of shape ({_sides(shape)}) were asked for."
        )
    if not np.isfinite(numbers).all():
        raise ProtocolError("The server answered with numbers that are not finite.")


def _fits(tensor: NDArray[Any], shape: tuple[int | None, ...]) -> bool:
    return tensor.ndim == len(shape) and all(
        wanted is None or wanted == found for wanted, found in zip(shape, tensor.shape, strict=True)
    )


def _sides(shape: tuple[int | None, ...]) -> str:
    return ", ".join("any" if side is None else str(side) for side in shape)
