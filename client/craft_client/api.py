"""The HTTP client of API v1: one method a call, typed answers, typed errors, careful retries.

Every POST carries an `Idempotency-Key` of its own, which stays the same when the call is sent
again: the server does and charges a call once, however often it arrives, and gives the same answer
each time. So every call may be sent again, and is, byte for byte:

- when no connection could be made, or it broke before the answer was there;
- when the server asks for it: still at work on the call (409), rate limit reached (429) or
  overloaded (503), each after its Retry-After. Without Retry-After no wait would help;
- when the server failed (500), for a short while, since what failed may fail again;
- when a gateway answers in the server's place (429, 500, 502, 503, 504 or 529 without a problem
  document), after its Retry-After or, where it names none, stamina's waits. What a gateway says
  of a call says nothing of whether the server has done it.

Waits between attempts are stamina's or the server's. Patience counts from a call's first failure;
when it is over, the last failure is raised. An exhausted budget (402) is never tried again.

It knows HTTP and the wire; it does not know optimisation, nor what a picture shows.
"""

from __future__ import annotations

import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
import stamina
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from craft_client import compression
from craft_client.exceptions import (
    AnswerLost,
    CallInProgress,
    ConnectionFailed,
    CraftError,
    GatewayFailed,
    InternalError,
    InvalidImage,
    LimitExceeded,
    MissingKey,
    NotFound,
    Overloaded,
    ProtocolError,
    RateLimited,
    problem_error,
)
from craft_shared import codec, problems
from craft_shared.adapter import Adapter
from craft_shared.problems import Problem
from craft_shared.run_reports import RunPoint, RunPoints, RunReport
from craft_shared.tracing import parent_headers, span
from craft_shared.wire import (
    EVERYTHING,
    AdapterCard,
    AdapterChange,
    AdapterList,
    AdapterPredictionAnswer,
    AdapterPredictionRequest,
    AdapterPublishAnswer,
    AdapterSettings,
    AdapterUsage,
    Budget,
    BudgetList,
    Charge,
    Cost,
    ImageSet,
    ImageSetCreate,
    ImageUpload,
    ImageUploadAnswer,
    Limits,
    ModelCard,
    ModelList,
    Output,
    PredictionAnswer,
    PredictionRequest,
    Usage,
)

DEFAULT_URL = "http://127.0.0.1:8000"
URL_VARIABLE = "CRAFT_URL"
KEY_VARIABLE = "CRAFT_API_KEY"
KEY_FILE_VARIABLE = "CRAFT_API_KEY_FILE"
COMPRESS_VARIABLE = "CRAFT_COMPRESS"

JSON_TYPE = "application/json"
IDEMPOTENCY_HEADER = "Idempotency-Key"
RUN_HEADER = "Craft-Run"
REQUEST_ID_HEADER = "X-Request-Id"
# Seconds. A server that was never reached is probably not there; one that was is worth a wait. A
# rate limit of a sliding minute may need two of them until a call as large as the limit fits; a
# call that a dead server was at work on runs, to its successor, until the dead one's lease ends. A
# server that failed once may have stumbled; one that goes on failing at a call will not do it.
FIRST_PATIENCE = 2.0
SHORT_PATIENCE = 15.0
PATIENCE = 60.0
LONG_PATIENCE = 180.0
# What proxies answer in a server's place, and services that are overloaded (529) for themselves.
GATEWAY_STATUSES = frozenset({429, 500, 502, 503, 504, 529})
# Room in an upload's body for the safetensors header and the document.
_HEADER_ROOM = 1024
_SIZE_BYTES = 8

_KEY = re.compile(r"[\x21-\x7e]{1,200}")
_RUN = re.compile(r"[\x20-\x7e]{1,255}")

_Answer = TypeVar("_Answer", bound=BaseModel)
T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
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


@dataclass(frozen=True)
class AdapterPrediction:
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


class Client:
    """A connection to a craftbox server under one API key.

    Use it as a context manager, or call `close`. It may be shared by threads. `copy.deepcopy` gives
    the client itself, so that scikit-learn can clone estimators that hold one.

    Args:
        base_url: the server's address; the environment's CRAFT_URL, or port 8000 of this machine,
            when None.
        api_key: the key; the environment's CRAFT_API_KEY when None, or else what the file that
            CRAFT_API_KEY_FILE names holds.
        run: what the ledger is to call the run that the calls are part of, printable ASCII.
        compress: whether large answers travel compressed (zstd), which takes processor time on both
            sides and pays on slow networks only; the environment's CRAFT_COMPRESS (1 or 0) when
            None, and no without it. Needs the extra `zstd`.
        timeout: seconds without any byte from the server after which an answer counts as lost.
        transport: where requests go instead of the network, for tests.

    Raises:
        MissingKey: there is no key, or its file cannot be read.
        MissingPackage: answers are to be compressed, and the extra `zstd` is not installed.
        CraftError: the address is not an HTTP URL, the run's name cannot be sent, or CRAFT_COMPRESS
            is neither yes nor no.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        run: str | None = None,
        compress: bool | None = None,
        timeout: float = 300.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url = (base_url or os.environ.get(URL_VARIABLE) or DEFAULT_URL).rstrip("/")
        self._reached = False
        headers = {
            "Authorization": f"Bearer {_checked_key(api_key)}",
            "User-Agent": f"craftbox/{version('craftbox')}",
            "Accept-Encoding": compression.accepted_codings(
                compress=_compress_of_environment() if compress is None else compress
            ),
        }
        if run is not None:
            headers[RUN_HEADER] = _checked_header("run", run, _RUN)
        self._http = httpx.Client(
            base_url=_checked_url(self.base_url),
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=10.0),
            # Servers close idle connections (uvicorn after 5 s). A request on a connection that is
            # being closed would have to be sent again, so the client lets go of it earlier.
            limits=httpx.Limits(keepalive_expiry=2.0),
            transport=transport,
        )

    def __repr__(self) -> str:
        return f"Client({self.base_url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    # --- models -------------------------------------------------------------------------------

    def models(self) -> list[ModelCard]:
        """The models that the server hosts."""
        return self._json(ModelList, self._send("GET", "/v1/models")).models

    def model(self, name: str | None = None) -> ModelCard:
        """The model of that name; without a name the first one.

        Raises:
            ModelNotFound: the server hosts no such model.
        """
        cards = self.models()
        for card in cards:
            if name is None or card.name == name:
                return card
        hosted = ", ".join(f"'{card.name}'" for card in cards) or "none"
        wanted = f"There is no model '{name}'" if name else "There is no model"
        raise problem_error(
            Problem.of(problems.MODEL_NOT_FOUND, f"{wanted}; the server hosts {hosted}.")
        )

    # --- image sets ---------------------------------------------------------------------------

    def create_image_set(self, model: str) -> ImageSet:
        """Makes an empty image set for a model. Free."""
        body = ImageSetCreate(model=model).model_dump_json().encode()
        return self._json(ImageSet, self._send("POST", "/v1/image-sets", json=body))

    def image_set(self, image_set_id: str) -> ImageSet:
        """The present state of an image set. Free."""
        return self._json(ImageSet, self._send("GET", _path("image-sets", image_set_id)))

    def delete_image_set(self, image_set_id: str) -> None:
        """Deletes an image set and its features. Free."""
        self._send("DELETE", _path("image-sets", image_set_id))

    def upload_images(
        self,
        image_set: ImageSet,
        images: Iterable[bytes],
        *,
        on_chunk: Callable[[ImageUploadAnswer], None] | None = None,
        idempotency_key: str | None = None,
    ) -> ImageSet:
        """Appends pictures to an image set, in as many calls as the model's limits ask for.

        Pictures that the key's owner has had encoded before are not charged again.

        Args:
            image_set: its `count` must be up to date.
            images: encoded pictures (JPEG, PNG, ...), read lazily, a chunk at a time.
            on_chunk: called after each call with its answer.
            idempotency_key: of the whole upload. The same upload again under the same key, from
                the same `count` on, adds and charges only what had not arrived.

        Returns:
            The image set with its new count.

        Raises:
            LimitExceeded: a picture is too large, or the image set becomes too large.
            InvalidImage: the server cannot use a picture; `images[i]` counts from the first one
                given. Chunks before it have been added and paid.
            InvalidRequest: `image_set` is not up to date; `first_row` is named.
        """
        limits = self.model(image_set.model).limits
        before = image_set.count
        if isinstance(images, Sequence):
            for number, picture in enumerate(images):
                _check_picture(picture, number, limits)
            _check_count(before + len(images), limits)
        for number, chunk in enumerate(picture_chunks(images, limits)):
            _check_count(image_set.count + len(chunk), limits)
            document = ImageUpload(first_row=image_set.count).model_dump(exclude={"images"})
            try:
                response = self._send(
                    "POST",
                    _path("image-sets", image_set.id, "images"),
                    tensors=codec.encode(document, codec.pack_files(chunk)),
                    accept=JSON_TYPE,
                    idempotency_key=idempotency_key and f"{idempotency_key}-{number}",
                )
            except InvalidImage as error:
                raise _renumbered(error, image_set.count - before) from error
            answer = self._json(ImageUploadAnswer, response)
            image_set = answer.image_set
            if on_chunk:
                on_chunk(answer)
        return image_set

    # --- predictions --------------------------------------------------------------------------

    def predict(
        self,
        request: PredictionRequest,
        *,
        codes: NDArray[np.float32] | None = None,
        images: Sequence[bytes] | None = None,
        idempotency_key: str | None = None,
    ) -> Prediction:
        """Scores prompts x images x classes in one call.

        Args:
            request: without `codes` and `images`, which travel as tensors.
            codes: float32 [K, dim], appended to the request's templates.
            images: encoded pictures, when the request names no image set.
            idempotency_key: the same call again under the same key is answered as it was, and is
                not charged again; a new key when None.

        Raises:
            ProblemError: the server refused; nothing was charged.
            AnswerLost: the answer did not arrive; the ledger tells whether it was charged.
        """
        tensors: codec.Tensors = {}
        if codes is not None:
            tensors["codes"] = np.ascontiguousarray(codes, np.float32)
        if images is not None:
            tensors |= codec.pack_files(images)
        document = request.model_dump(mode="json", exclude={"codes", "images"}, exclude_none=True)
        body = codec.encode(document, tensors)
        response = self._send(
            "POST", "/v1/predictions", tensors=body, idempotency_key=idempotency_key
        )
        answer, tensors = self._tensors(PredictionAnswer, response)
        prompts = len(request.templates) + (0 if codes is None else len(codes))
        count = len(images) if images is not None else _length(request.rows)
        output = _output(answer.output, request.top_k)
        return Prediction(
            answer.model,
            answer.revision,
            output,
            _checked_tensors(tensors, (prompts, count), len(request.classes), output),
            answer.cost,
            response.request.headers[IDEMPOTENCY_HEADER],
        )

    def acknowledge(self, idempotency_key: str) -> None:
        """Tells the server that a prediction's answer is stored safely here. Free.

        The server lets go of the answer's bytes; the same call under the same key is computed anew
        from then on, still without charge. It is tried once, since an answer that is not
        acknowledged is merely kept for longer.
        """
        self._send("DELETE", _path("answers", idempotency_key), again=False)

    # --- the key's account --------------------------------------------------------------------

    def usage(self) -> Usage:
        """All charges of the key and their total, all pages merged. Free."""
        charges: list[Charge] = []
        after: int | None = None
        while True:
            query = {} if after is None else {"after": str(after)}
            page = self._json(Usage, self._send("GET", "/v1/usage", query=query))
            charges += page.charges
            if page.next_after is None:
                return page.model_copy(update={"charges": charges})
            if after is not None and page.next_after <= after:
                raise ProtocolError("The server's list of charges does not come to an end.")
            after = page.next_after

    def budgets(self) -> list[Budget]:
        """The key's budgets; a unit without one is not bounded. Free."""
        return self._json(BudgetList, self._send("GET", "/v1/budget")).budgets

    def receipt(
        self, run: str | None = None, *, since: str | None = None, until: str | None = None
    ) -> str:
        """A signed receipt over a run, or over all that the key was charged. Free.

        Verify it with `craft_shared.receipt.verify` before it is relied on.

        Args:
            run: what the run is called on the server.
            since: RFC 3339; only calls from then on.
            until: RFC 3339; only calls before.

        Raises:
            RunInProgress: calls that the receipt would cover are still running.
            NotFound: there is nothing to give a receipt for.
        """
        # Slow to import, and needed by nothing else here.
        from craft_shared.receipt import MEDIA_TYPE

        bounds = {"run": run, "since": since, "until": until}
        query = {name: value for name, value in bounds.items() if value is not None}
        response = self._send("GET", "/v1/receipts", query=query, accept=MEDIA_TYPE)
        _check_content_type(response, MEDIA_TYPE)
        return response.text

    def receipt_keys(self) -> bytes:
        """The JWK set that verifies the server's receipts. Free, under any API key or none."""
        from craft_shared.receipt import KEYS_MEDIA_TYPE

        response = self._send("GET", "/v1/receipts/keys", accept=KEYS_MEDIA_TYPE)
        _check_content_type(response, KEYS_MEDIA_TYPE)
        return response.content

    # --- reported runs ------------------------------------------------------------------------

    def report_run(self, run: str, report: RunReport) -> None:
        """Makes or changes what the server's console says of a run. Free; tried once."""
        body = report.model_dump_json().encode()
        self._send("PUT", _path("runs", run), json=body, again=False)

    def report_points(self, run: str, points: Sequence[RunPoint]) -> None:
        """Adds points to a reported run's curve, unless they are there. Free; tried once."""
        body = RunPoints(points=list(points)).model_dump_json().encode()
        self._send("PUT", _path("runs", run, "points"), json=body, again=False)

    # --- adapters -----------------------------------------------------------------------------

    def publish(
        self, name: str, adapter: Adapter, *, aliases: Sequence[str] = ()
    ) -> AdapterPublishAnswer:
        """Publishes an adapter under a name; the same adapter again is free.

        `aliases` mean this version from then on.
        """
        response = self._send(
            "POST",
            "/v1/adapters",
            query={"name": name, "alias": list(aliases)},
            tensors=adapter.to_bytes(),
            accept=JSON_TYPE,
        )
        return self._json(AdapterPublishAnswer, response)

    def adapters(self) -> list[AdapterCard]:
        """The adapters that the key may use: its owner's, shared ones, public ones. Free."""
        return self._json(AdapterList, self._send("GET", "/v1/adapters")).adapters

    def adapter(self, name: str) -> AdapterCard:
        """The version that `[OWNER/]NAME[@VERSION|@ALIAS]` means now. Free."""
        return self._json(AdapterCard, self._send("GET", _path("adapters", name)))

    def adapter_versions(self, name: str) -> list[AdapterCard]:
        """All versions of one of the owner's adapters, the retired ones too. Free."""
        response = self._send("GET", _path("adapters", name, "versions"))
        return self._json(AdapterList, response).adapters

    def adapter_settings(self, name: str) -> AdapterSettings:
        """Who may use one of the owner's adapters, who pays, and what its aliases mean. Free."""
        return self._json(AdapterSettings, self._send("GET", _path("adapters", name, "settings")))

    def change_adapter(self, name: str, change: AdapterChange) -> AdapterSettings:
        """Changes what `change` was given, of all versions at once; what holds after it. Free."""
        body = change.model_dump_json(exclude_unset=True).encode()
        return self._json(AdapterSettings, self._send("PATCH", _path("adapters", name), json=body))

    def adapter_usage(self, name: str) -> AdapterUsage:
        """What was classified with one of the owner's adapters, by everybody. Free."""
        return self._json(AdapterUsage, self._send("GET", _path("adapters", name, "usage")))

    def retire(self, name: str) -> None:
        """Takes `NAME@VERSION`, or all versions of `NAME`, out of service. Free."""
        self._send("DELETE", _path("adapters", name))

    def restore(self, name: str) -> None:
        """Takes what was retired into service again. Free."""
        self._send("PUT", _path("adapters", name, "restore"))

    def adapter_predict(
        self,
        name: str,
        *,
        images: Sequence[bytes] | None = None,
        image_set: str | None = None,
        rows: Sequence[int] | None = None,
        top_k: int | None = None,
        abstain_below: float | None = None,
        idempotency_key: str | None = None,
    ) -> AdapterPrediction:
        """Classifies pictures, or rows of an image set, with a published adapter in one call.

        Args:
            name: `[OWNER/]NAME[@VERSION|@ALIAS]`.
            images: encoded pictures, where no image set is named.
            image_set: an image set's id.
            rows: of the image set; all when None.
            top_k: how many classes of each picture to answer, the most probable ones; all when
                None. The charge is the same.
            abstain_below: probability that a picture's best class must have; the adapter's own
                threshold when None.
            idempotency_key: as in `predict`.
        """
        request = AdapterPredictionRequest(
            image_set=image_set,
            rows=None if rows is None else list(rows),
            top_k=top_k,
            abstain_below=abstain_below,
        )
        body = codec.encode(
            request.model_dump(mode="json", exclude_none=True),
            {} if images is None else codec.pack_files(images),
        )
        response = self._send(
            "POST",
            _path("adapters", name, "predictions"),
            tensors=body,
            idempotency_key=idempotency_key,
        )
        answer, tensors = self._tensors(AdapterPredictionAnswer, response)
        count = len(images) if images is not None else _length(rows)
        abstained = tensors.pop("abstained", None)
        output = _output(answer.output, top_k)
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

    # --- HTTP ---------------------------------------------------------------------------------

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | list[str]] | None = None,
        json: bytes | None = None,
        tensors: bytes | None = None,
        accept: str | None = None,
        idempotency_key: str | None = None,
        again: bool = True,
    ) -> httpx.Response:
        """Sends a call, again (unless told otherwise) where that may help; its successful answer.

        The answer's type is the body's unless `accept` names another.
        """
        content_type = JSON_TYPE if tensors is None else codec.MEDIA_TYPE
        headers = {"Accept": accept or content_type, REQUEST_ID_HEADER: uuid.uuid4().hex}
        if method == "POST":
            key = uuid.uuid4().hex if idempotency_key is None else idempotency_key
            headers[IDEMPOTENCY_HEADER] = _checked_header("idempotency_key", key, _KEY)
        body = json if tensors is None else tensors
        if body is not None:
            headers["Content-Type"] = content_type
        request = self._http.build_request(
            method, path, params=query, content=body, headers=headers
        )
        with span(f"call {method}") as call:
            call.note({"craft.request_id": _request_id(request)})
            lost: AnswerLost | GatewayFailed | None = None
            for attempt in stamina.retry_context(
                on=_Patience(self) if again else (),
                attempts=None,
                timeout=None,
                wait_initial=0.2,
                wait_jitter=0.2,
            ):
                with attempt:
                    try:
                        response = self._attempt(request)
                    except AnswerLost as error:
                        lost = error
                        raise
                    except ConnectionFailed as error:
                        if lost is None:
                            raise
                        # The server has not seen this attempt, but perhaps the one before.
                        raise lost from error
                    if not response.is_success:
                        refusal = _error_of(response)
                        if isinstance(refusal, GatewayFailed):
                            lost = refusal
                        if method == "DELETE" and lost and isinstance(refusal, NotFound):
                            return response  # The attempt whose answer was lost has deleted it.
                        raise refusal
        return response

    def _attempt(self, request: httpx.Request) -> httpx.Response:
        with span(request.method, "CLIENT") as attempt:
            attempt.note({"http.request.method": request.method})
            request.headers.update(parent_headers())
            began = time.perf_counter()
            try:
                response = self._send_once(request)
            except CraftError as error:
                _log_attempt(request, began, str(error).partition("\n")[0])
                raise
            _log_attempt(request, began, f"{response.status_code}, {len(response.content):,} bytes")
            attempt.note({"http.response.status_code": response.status_code})
            return response

    def _send_once(self, request: httpx.Request) -> httpx.Response:
        try:
            with closing(self._http.send(request, stream=True)) as streamed:
                response = compression.read(streamed)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise ConnectionFailed(
                f"Cannot connect to the craftbox server at {self.base_url}: {_words(error)}.",
                remedy="Is craft-server running there? If it runs elsewhere, name its address "
                f"with --url or {URL_VARIABLE}.",
            ) from error
        except httpx.TransportError as error:
            self._reached = True
            call = f"{request.method} {request.url.path}"
            names = [f"request {_request_id(request)}"]
            if key := request.headers.get(IDEMPOTENCY_HEADER):
                names.append(f"idempotency key {key}")
            raise AnswerLost(
                f"The connection to the craftbox server at {self.base_url} broke before {call} "
                f"was answered: {_words(error)}.",
                remedy="The server may have done the call: 'craft usage' shows what was charged. "
                f"({', '.join(names)})",
            ) from error
        except httpx.DecodingError as error:
            raise ProtocolError(
                f"{self.base_url} sent an answer that cannot be decoded: {_words(error)}."
            ) from error
        self._reached = True
        return response

    def _json(self, kind: type[_Answer], response: httpx.Response) -> _Answer:
        _check_content_type(response, JSON_TYPE)
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as error:
            raise _unexpected(response, _first(error)) from error

    def _tensors(
        self, kind: type[_Answer], response: httpx.Response
    ) -> tuple[_Answer, codec.Tensors]:
        """The document and the tensors of an answer."""
        _check_content_type(response, codec.MEDIA_TYPE)
        try:
            document, tensors = codec.decode(response.content)
            return kind.model_validate(document), tensors
        except ValidationError as error:
            raise _unexpected(response, _first(error)) from error
        except codec.CodecError as error:
            raise _unexpected(response, str(error)) from error


def picture_chunks(images: Iterable[bytes], limits: Limits) -> Iterator[list[bytes]]:
    """Groups pictures, lazily, into bodies that keep within the limits.

    Raises:
        LimitExceeded: a picture is too large.
    """

    def checked() -> Iterator[bytes]:
        for number, picture in enumerate(images):
            _check_picture(picture, number, limits)
            yield picture

    return bodies(checked(), len, limits)


def bodies(pictures: Iterable[T], size_of: Callable[[T], int], limits: Limits) -> Iterator[list[T]]:
    """Groups what stands for pictures of a size in bytes, lazily, as `picture_chunks` does."""
    chunk: list[T] = []
    size = 0
    for picture in pictures:
        length = size_of(picture) + _SIZE_BYTES
        full = len(chunk) == limits.images_per_call
        if chunk and (full or size + length > limits.body_bytes - _HEADER_ROOM):
            yield chunk
            chunk, size = [], 0
        chunk.append(picture)
        size += length
    if chunk:
        yield chunk


class _Patience:
    """How long one call is sent again: stamina's hook, which gets each failure.

    It answers whether to try again after stamina's wait, or how many seconds to wait instead.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._first_failure: float | None = None

    def __call__(self, error: Exception) -> bool | float:
        now = time.monotonic()
        if self._first_failure is None:
            self._first_failure = now
        waited = now - self._first_failure
        if isinstance(error, CallInProgress | RateLimited | Overloaded):
            wait = error.retry_after
            patience = PATIENCE if isinstance(error, Overloaded) else LONG_PATIENCE
            if wait is None or waited + wait > patience:
                return False
            return wait or True  # A server that names no time at all is not to be hammered.
        if isinstance(error, GatewayFailed):
            wait = error.retry_after or 0.0
            patience = LONG_PATIENCE if error.status == problems.RATE_LIMITED.status else PATIENCE
            return waited + wait < patience and (wait or True)
        if isinstance(error, InternalError):
            return waited < SHORT_PATIENCE
        patience = PATIENCE if self._client._reached else FIRST_PATIENCE
        return isinstance(error, ConnectionFailed) and waited < patience


def _error_of(response: httpx.Response) -> CraftError:
    """The exception for an answer that is no success."""
    retry_after = _seconds(response.headers.get("Retry-After"))
    if _content_type(response) == problems.MEDIA_TYPE:
        try:
            problem = Problem.model_validate_json(response.content)
        except ValidationError as error:
            return _unexpected(response, _first(error))
        return problem_error(problem, retry_after)
    if response.status_code in GATEWAY_STATUSES:
        return GatewayFailed(
            response.status_code, response.url.host, retry_after, _request_id(response.request)
        )
    if response.is_redirect:
        return ProtocolError(
            f"{response.url} is redirected to {response.headers.get('Location')}.",
            remedy=f"Name the server's own address with --url or {URL_VARIABLE}.",
        )
    return _unexpected(response, "it is an error without a problem document")


def _check_content_type(response: httpx.Response, wanted: str) -> None:
    found = _content_type(response)
    if found != wanted:
        raise _unexpected(response, f"its content type is '{found}', not '{wanted}'")


def _content_type(response: httpx.Response) -> str:
    header: str = response.headers.get("Content-Type", "")
    return header.partition(";")[0].strip().lower()


def _unexpected(response: httpx.Response, why: str) -> ProtocolError:
    return ProtocolError(
        f"The answer {response.status_code} of {response.request.method} {response.url} is not one "
        f"that a craftbox server of this version gives: {why}.",
        remedy="Is this the address of a craftbox server, and of the same version as the client? "
        f"(request {_request_id(response.request)})",
    )


def _log_attempt(request: httpx.Request, began: float, outcome: str) -> None:
    """Notes an attempt for whoever debugs: neither keys nor bodies, `began` by the perf counter."""
    _log.debug(
        "%s %s: %s (%.0f ms, request %s)",
        request.method,
        request.url.raw_path.decode(),
        outcome,
        1000 * (time.perf_counter() - began),
        _request_id(request),
    )


def _request_id(request: httpx.Request) -> str:
    """What the server's log calls the call, however often it is sent."""
    request_id: str = request.headers[REQUEST_ID_HEADER]
    return request_id


def _seconds(retry_after: str | None) -> float | None:
    """The header's seconds or date (RFC 9110, section 10.2.3) as seconds from now."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _output(said: Output, top_k: int | None) -> Output:
    """What an answer shows; a server that knew no levels answers all, or the `top_k` asked for."""
    return Output(level="top_k", k=top_k) if said == EVERYTHING and top_k is not None else said


def _numbers(tensors: codec.Tensors, name: str, output: Output) -> NDArray[np.float32]:
    if name not in tensors:
        raise CraftError(
            f"The answer has no {name}: the key sees the level '{output.level}' alone.",
            remedy="Read its other tensors, or ask the provider for another level.",
        )
    return tensors[name]


def _checked_tensors(
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


def _checked_url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise CraftError(
            f"'{url}' is not the address of a server.",
            remedy=f"--url or {URL_VARIABLE} is like '{DEFAULT_URL}'.",
        )
    return url


def _checked_key(api_key: str | None) -> str:
    key = (api_key or os.environ.get(KEY_VARIABLE) or _key_of_file()).strip()
    if not key:
        raise MissingKey(
            "There is no API key.",
            remedy=f"Set {KEY_VARIABLE} or {KEY_FILE_VARIABLE}, or pass --key. The server's "
            "operator makes one with 'craft-server keys create --owner NAME'.",
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise MissingKey(
            "The API key holds characters that no key has.",
            remedy=f"Copy {KEY_VARIABLE} again; a key looks like 'craft_...'.",
        )
    return key


def _key_of_file() -> str:
    file = os.environ.get(KEY_FILE_VARIABLE)
    if not file:
        return ""
    try:
        return Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise MissingKey(
            f"The API key cannot be read from '{file}'.",
            remedy=f"{KEY_FILE_VARIABLE} names a file that holds nothing but the key.",
        ) from error


def _compress_of_environment() -> bool:
    value = os.environ.get(COMPRESS_VARIABLE, "").strip().lower()
    if value in ("1", "true", "yes", "on"):
        return True
    if value in ("", "0", "false", "no", "off"):
        return False
    raise CraftError(
        f"{COMPRESS_VARIABLE} is '{value}'.", remedy="Set it to 1 or 0, or leave it out."
    )


def _checked_header(name: str, value: str, form: re.Pattern[str]) -> str:
    if form.fullmatch(value) is None:
        raise CraftError(
            f"{name}: {value!r} cannot be sent to a server.",
            remedy="Give a short name of ASCII characters, such as a UUID.",
        )
    return value


def _check_picture(picture: bytes, number: int, limits: Limits) -> None:
    if len(picture) > limits.image_bytes:
        raise LimitExceeded(
            f"images[{number}]: the picture has {len(picture)} bytes; the server accepts "
            f"{limits.image_bytes}.",
            remedy="Save it smaller; the model does not look at more than a few hundred pixels.",
        )


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.images_per_set:
        raise LimitExceeded(
            f"The image set would hold {count} pictures; the server accepts "
            f"{limits.images_per_set}.",
            remedy="Use several image sets, or fewer pictures.",
        )


def _renumbered(error: InvalidImage, first: int) -> InvalidImage:
    """The error of a chunk whose first picture is `images[first]` of all."""
    errors = [
        field.model_copy(
            update={
                "field": re.sub(
                    r"^images\[(\d+)\]", lambda m: f"images[{int(m[1]) + first}]", field.field
                )
            }
        )
        for field in error.problem.errors
    ]
    return InvalidImage(error.problem.model_copy(update={"errors": errors}))


def _path(*parts: str) -> str:
    """An address below /v1 in which a name cannot be read as anything but a name."""
    return "/v1/" + "/".join(quote(part, safe="@") for part in parts)


def _length(rows: Sequence[int] | None) -> int | None:
    return None if rows is None else len(rows)


def _words(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]
