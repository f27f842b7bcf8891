"""Reading answers of API v1: typed answers of what succeeded, typed errors of what did not.

It knows what a server may answer and refuses anything else; it does not know how a request was
sent, nor whether it may be sent again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from craft_client.calls import JSON_TYPE, MOST_JSON_BYTES, request_id
from craft_client.connection import URL_VARIABLE
from craft_client.exceptions import (
    BodyRefused,
    CraftError,
    GatewayFailed,
    ProtocolError,
    problem_error,
)
from craft_client.network import without_credentials
from craft_shared import codec, problems
from craft_shared.display import Displayed, View, names
from craft_shared.problems import Problem, first_error
from craft_shared.strict_json import most_values
from craft_shared.units import UNITS
from craft_shared.wire import EVERYTHING, Cost, Output

# What proxies answer in a server's place, and services that are overloaded (529) for themselves.
# 520 to 530 are Cloudflare's.
GATEWAY_STATUSES = frozenset({429, 500, 502, 503, 504, *range(520, 531)})
PROXY_AUTHENTICATION_REQUIRED = 407
# A value of JSON takes memory of many times the one byte that it may be sent as. Of an answer of
# the largest size one has at least so many bytes.
BYTES_A_VALUE = 64

_Answer = TypeVar("_Answer", bound=BaseModel)


@dataclass(frozen=True, repr=False)
class Prediction(Displayed):
    """Answer of `Client.predict`.

    Attributes:
        model: the model's name.
        revision: the model's revision.
        output: what the answer shows, as far as the key may see it.
        tensors: that it shows, as `craft_shared.output.shown` describes them.
        cost: what the call cost, and the budgets after it.
        idempotency_key: what the server knows the answer by; see `Client.acknowledge`.
    """

    model: str
    revision: str
    output: Output
    tensors: codec.Tensors
    cost: Cost
    idempotency_key: str

    @property
    def log_probs(self) -> NDArray[np.float32]:
        """Log-probabilities [prompts, images, classes], float32.

        With k the largest of them, in descending order, [prompts, images, k].

        Raises:
            CraftError: the key may not see any.
        """
        return _numbers(self.tensors, "log_probs", self.output)

    @property
    def top_classes(self) -> NDArray[np.int32] | None:
        """Which of the request's classes each number belongs to, int32; None where all are there.

        With the level `label` the most probable class alone, [prompts, images, 1].
        """
        return self.tensors.get("top_classes")

    def _view(self) -> View:
        shapes = {name: list(tensor.shape) for name, tensor in self.tensors.items()}
        facts = {"level": self.output.level, **shapes, **_charged(self.cost)}
        return View(f"of {self.model}", {"revision": self.revision, **facts})


@dataclass(frozen=True, repr=False)
class AdapterPrediction(Displayed):
    """Answer of `Client.adapter_predict`.

    Attributes:
        adapter: the adapter's name.
        version: the version that answered.
        classes: the C class names.
        output: what the answer shows, as far as the key may see it.
        tensors: that it shows, as `craft_shared.output.shown` describes them.
        cost: what the call cost, and the budgets after it.
        idempotency_key: what the server knows the answer by; see `Client.acknowledge`.
        abstained: bool [images], whether the most probable class is less probable than the
            threshold; None where there is none.
    """

    adapter: str
    version: int
    classes: list[str]
    output: Output
    tensors: codec.Tensors
    cost: Cost
    idempotency_key: str
    abstained: NDArray[np.bool_] | None = None

    @property
    def log_probs(self) -> NDArray[np.float32]:
        """Log-probabilities [images, C], float32; with k the largest, descending, [images, k].

        Raises:
            CraftError: the key may not see any.
        """
        return _numbers(self.tensors, "log_probs", self.output)

    @property
    def top_classes(self) -> NDArray[np.int32] | None:
        """Which of `classes` each number belongs to, int32; None where all are there.

        With the level `label` the most probable class alone, [images, 1].
        """
        return self.tensors.get("top_classes")

    @property
    def probabilities(self) -> NDArray[np.float64] | None:
        """Probabilities in the shape of what is answered; None where no number is."""
        if "probs" in self.tensors:
            return self.tensors["probs"].astype(np.float64)
        if "log_probs" in self.tensors:
            return np.exp(self.tensors["log_probs"].astype(np.float64))
        return None

    def best(self, most: int) -> list[tuple[tuple[str, float | None], ...]]:
        """Of each image the most probable classes that are answered, the first one first.

        Each has its probability, to six decimals; None where the answer has no numbers. Command
        line, files and notebooks show these.
        """
        numbers, top = self.probabilities, self.top_classes
        if numbers is None:
            return [((self.classes[row[0]], None),) for row in ([] if top is None else top)]
        if top is None:
            top = np.argsort(-numbers, axis=-1, kind="stable").astype(np.int32)
            numbers = np.take_along_axis(numbers, top, axis=-1)
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


def read_json(
    kind: type[_Answer], response: httpx.Response, most_bytes: int = MOST_JSON_BYTES
) -> _Answer:
    """The document of a JSON answer.

    Raises:
        ProtocolError: it is not one.
    """
    check_content_type(response, JSON_TYPE)
    _check_values(response, most_bytes)
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as error:
        raise _unexpected(response, first_error(error)) from error


def _check_values(response: httpx.Response, most_bytes: int) -> None:
    """Raises ProtocolError where JSON has so many values that no answer has them."""
    most = most_bytes // BYTES_A_VALUE
    if most_values(response.content) > most:
        raise _unexpected(response, f"it has more than {most:,} values")


def read_tensors(kind: type[_Answer], response: httpx.Response) -> tuple[_Answer, codec.Tensors]:
    """The document and the tensors of an answer.

    Raises:
        ProtocolError: it is not one of tensors.
    """
    check_content_type(response, codec.MEDIA_TYPE)
    try:
        document, tensors = codec.decode(response.content)
        return kind.model_validate(document), tensors
    except ValidationError as error:
        raise _unexpected(response, first_error(error)) from error
    except codec.CodecError as error:
        raise _unexpected(response, str(error)) from error


def error_of(response: httpx.Response) -> CraftError:
    """The exception for an answer that is no success."""
    retry_after = _seconds(response.headers.get("Retry-After"))
    if _content_type(response) == problems.MEDIA_TYPE:
        try:
            _check_values(response, MOST_JSON_BYTES)
            problem = Problem.model_validate_json(response.content)
        except ProtocolError as error:
            return error
        except ValidationError as error:
            return _unexpected(response, first_error(error))
        return problem_error(problem, retry_after)
    status, host = response.status_code, response.url.host
    if status == problems.BODY_TOO_LARGE.status:
        return BodyRefused(host, int(response.request.headers.get("Content-Length", 0)))
    if status in GATEWAY_STATUSES:
        return GatewayFailed(status, host, retry_after, request_id(response.request))
    if status == PROXY_AUTHENTICATION_REQUIRED:
        return ProtocolError(
            f"The proxy before {host} wants to know who asks (407).",
            remedy="A proxy's user and password stand in its address: HTTPS_PROXY or HTTP_PROXY.",
        )
    if response.is_redirect:
        return _redirected(response)
    return _unexpected(response, "it is an error without a problem document")


def _redirected(response: httpx.Response) -> ProtocolError:
    """Where a call is to go instead; it does not, since the key would go there too."""
    asked, path = response.request.url, response.request.url.path
    location = response.headers.get("Location", "")
    try:
        goal = asked.join(location)
    except (httpx.InvalidURL, ValueError):
        goal = asked
    address = f"{goal.scheme}://{goal.netloc.decode('ascii', 'replace')}"
    there = without_credentials(address) + goal.path.removesuffix(path)
    if goal.host == asked.host and goal.scheme == "https" and goal.path.endswith(path):
        remedy = f"Name that address with --url or {URL_VARIABLE}: {there}"
    else:
        remedy = (
            f"Name the server's own address with --url or {URL_VARIABLE}. The API key was not sent "
            "to the other one."
        )
    shown = without_credentials(location)
    return ProtocolError(f"{asked} is redirected to {shown}.", remedy=remedy)


def check_content_type(response: httpx.Response, wanted: str) -> None:
    """Raises ProtocolError unless the answer is of that type."""
    found = _content_type(response)
    if found != wanted:
        raise _unexpected(response, f"its content type is '{found}', not '{wanted}'")


def _content_type(response: httpx.Response) -> str:
    header: str = response.headers.get("Content-Type", "")
    return header.partition(";")[0].strip().lower()


def _unexpected(response: httpx.Response, why: str) -> ProtocolError:
    remedy = "Is this the address of a craftbox server, and of the same version as the client?"
    if _content_type(response) in ("text/html", "application/xhtml+xml"):
        remedy = (
            "It is a web page: another site may have this address, or the network may want a "
            f"sign-in first. Open http://{response.url.host}/ in a browser."
        )
    return ProtocolError(
        f"The answer {response.status_code} of {response.request.method} {response.url} is not one "
        f"that a craftbox server of this version gives: {why}.",
        remedy=f"{remedy} (request {request_id(response.request)})",
    )


def _seconds(retry_after: str | None) -> float | None:
    """The header's seconds or date (RFC 9110, section 10.2.3) as seconds from now."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return max(0.0, (date - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def shown_output(said: Output, top_k: int | None) -> Output:
    """What an answer shows; a server that knew no levels answers all, or the `top_k` asked for."""
    return Output(level="top_k", k=top_k) if said == EVERYTHING and top_k is not None else said


def _numbers(tensors: codec.Tensors, name: str, output: Output) -> NDArray[np.float32]:
    if name not in tensors:
        raise CraftError(
            f"The answer has no {name}: the key sees the level '{output.level}' alone.",
            remedy="Read its other tensors, or ask the provider for another level.",
        )
    return tensors[name]


def checked_tensors(
    tensors: codec.Tensors, rows: tuple[int | None, ...], classes: int, output: Output
) -> codec.Tensors:
    """What an answer shows, numbers in single precision.

    Raises:
        ProtocolError: it is not that of so many rows (None: any number) over the classes.
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


def checked_flags(flags: NDArray[Any] | None, count: int | None) -> NDArray[Any] | None:
    """Flags of so many pictures (None: any number), if there are any.

    Raises:
        ProtocolError: they are something else.
    """
    if flags is not None and not (flags.dtype == np.uint8 and _fits(flags, (count,))):
        raise ProtocolError("The server answered with flags of another shape or type than asked.")
    return flags


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
