"""The HTTP clients of API v1: one method a call, typed answers, typed errors, careful retries.

How a call is sent again, and what it may cost when it is cut short, is in `craft_client.exchange`.
`api.py` is written from `async_api.py` by `tools/unasync_client.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from craft_client.async_transport import read, transport_to
from craft_client.calls import (
    JSON_TYPE,
    MOST_KEYS_BYTES,
    MOST_LIST_BYTES,
    Call,
    check_content_type,
    message,
    path,
    read_json,
)
from craft_client.exceptions import InvalidImage, ProtocolError
from craft_client.exchange import Exchange, Server
from craft_client.limits import (
    check_count,
    check_images,
    image_chunks,
    model_named,
    renumbered,
    upload_answer,
    upload_call,
    with_body_bound,
)
from craft_client.network import USER_HEADER, Route, http_options
from craft_client.pictures import Picture, files
from craft_client.predictions import (
    AdapterPrediction,
    Prediction,
    adapter_call,
    adapter_prediction_of,
    prediction_call,
    prediction_of,
)
from craft_shared.adapter import Adapter
from craft_shared.display import Listed
from craft_shared.run_reports import RunEvaluation, RunPoint, RunPoints, RunReport
from craft_shared.wire import (
    AdapterCard,
    AdapterChange,
    AdapterList,
    AdapterPublishAnswer,
    AdapterSettings,
    AdapterUsage,
    Budget,
    BudgetList,
    Charge,
    ImageSet,
    ImageSetCreate,
    ImageUploadAnswer,
    Limits,
    ModelCard,
    ModelList,
    PredictionRequest,
    Usage,
)

M = TypeVar("M", bound=BaseModel)


class AsyncClient:
    """A connection to a craftbox server under one API key.

    `Client` and `AsyncClient` have the same methods; those of `AsyncClient` are awaited. Use either
    as a context manager, or call `close`. Threads may share a `Client`, and tasks an `AsyncClient`.
    `copy.deepcopy` gives the client itself, for scikit-learn, which clones what holds one.

    Args:
        base_url: the server's address; the environment's CRAFT_URL, or port 8000 of this machine,
            when None.
        api_key: the environment's CRAFT_API_KEY when None, or what CRAFT_API_KEY_FILE holds.
        run: what the ledger calls the run that the calls are part of, printable ASCII.
        user: for which of your own users the calls are made, in your words: an id, visible ASCII;
            the environment's CRAFT_USER when None. The provider may bound each of them.
        timeout: seconds without any byte from the server after which an answer counts as lost.
        transport: where requests go instead of the network, for tests.

    Raises:
        MissingKey: there is no key, or its file cannot be read.
        CraftError: the address, the run's or the user's name, or the environment's proxies or
            certificates cannot be used.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        run: str | None = None,
        user: str | None = None,
        timeout: float = 300.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        options = http_options(base_url, api_key, run=run, user=user, timeout=timeout)
        self._user: str | None = options["headers"].get(USER_HEADER)
        route = Route.to(options["base_url"])
        self._server = Server(options["base_url"], route.proxy_name)
        self._http = httpx.AsyncClient(**options, transport=transport or transport_to(route))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    @property
    def base_url(self) -> str:
        """The server's address."""
        return self._server.url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    async def _send(self, call: Call) -> httpx.Response:
        """The successful answer to a call, over all attempts."""
        request = self._http.build_request(**call.request())
        exchange = Exchange(self._server, call, request)
        with exchange.whole():
            async for attempt in exchange.attempts:
                with attempt:
                    with exchange.attempt():
                        body = await self._http.send(request, stream=True)
                        async with aclosing(body):
                            response = exchange.arrived(await read(body, call.most_bytes))
                    response = exchange.accepted(response)
        return response

    async def _read(self, kind: type[M], call: Call) -> M:
        """The JSON answer to a call."""
        return read_json(kind, await self._send(call), call.most_bytes)

    # --- models -------------------------------------------------------------------------------

    async def models(self) -> list[ModelCard]:
        """The models that the server hosts."""
        found = await self._read(ModelList, Call("GET", "/v1/models"))
        return Listed(with_body_bound(found.models))

    async def model(self, name: str | None = None) -> ModelCard:
        """The model of that name; without a name the first one.

        Raises:
            ModelNotFound: the server hosts no such model.
        """
        return model_named(name, await self.models())

    # --- image sets ---------------------------------------------------------------------------

    async def create_image_set(self, model: str, *, idempotency_key: str | None = None) -> ImageSet:
        """Creates an empty image set for a model. Free.

        The same call again under the same idempotency key is answered with the same image set, as
        it was when it was made.
        """
        body = message(ImageSetCreate, model=model).model_dump_json().encode()
        call = Call("POST", "/v1/image-sets", json=body, idempotency_key=idempotency_key)
        return await self._read(ImageSet, call)

    async def image_set(self, image_set_id: str) -> ImageSet:
        """The present state of an image set. Free."""
        return await self._read(ImageSet, Call("GET", path("image-sets", image_set_id)))

    async def delete_image_set(self, image_set_id: str) -> None:
        """Deletes an image set and its features. Free."""
        await self._send(Call("DELETE", path("image-sets", image_set_id)))

    async def upload_images(
        self,
        image_set: ImageSet,
        images: Iterable[Picture],
        *,
        limits: Limits | None = None,
        on_chunk: Callable[[ImageUploadAnswer], None] | None = None,
        idempotency_key: str | None = None,
    ) -> ImageSet:
        """Appends images to an image set, in as many calls as the model's limits ask for.

        Images that the key's owner has had encoded before are not charged again.

        Args:
            image_set: its `count` must be up to date.
            images: see `craft_client.pictures`; read and encoded lazily, a chunk at a time.
            limits: of the image set's model; the server is asked for them when None.
            on_chunk: called after each call with its answer.
            idempotency_key: of the whole upload. The same upload under the same key, from the same
                `count` or a later one on, adds and charges only what had not arrived.

        Raises:
            DataError: an image cannot be used; nothing of its chunk was sent.
            LimitExceeded: an image is too large, or the image set becomes too large.
            InvalidImage: the server cannot use an image; `images[i]` counts from the first one
                given. Chunks before it have been added and paid.
            InvalidRequest: `image_set` is not up to date; `first_row` is named.
        """
        if limits is None:
            limits = (await self.model(image_set.model)).limits
        before = image_set.count
        if isinstance(images, Sequence):
            check_images(images, before, limits)
        for chunk in image_chunks(files(images), limits):
            check_count(image_set.count + len(chunk), limits)
            try:
                response = await self._send(upload_call(image_set, chunk, idempotency_key))
            except InvalidImage as error:
                raise renumbered(error, image_set.count - before) from error
            answer = upload_answer(response, image_set, chunk)
            image_set = answer.image_set
            if on_chunk:
                on_chunk(answer)
        return image_set

    # --- predictions --------------------------------------------------------------------------

    async def predict(
        self,
        request: PredictionRequest,
        *,
        codes: NDArray[np.float32] | None = None,
        images: Sequence[Picture] | None = None,
        count: int | None = None,
        idempotency_key: str | None = None,
    ) -> Prediction:
        """Scores prompts x images x classes in one call.

        Args:
            request: without `codes` and `images`, which travel as tensors.
            codes: float32 [K, dim], appended to the request's templates.
            images: when the request names no image set; see `craft_client.pictures`.
            count: of the image set's images, where all are asked about and it is known: an
                answer of another size is refused.
            idempotency_key: the same call again under the same key is answered as it was, and is
                not charged again; a new key when None.

        Raises:
            ProblemError: the server refused; nothing was charged.
            AnswerLost: the answer did not arrive; `usage` shows whether it was charged.
        """
        call, asked = prediction_call(request, codes, images, count, idempotency_key)
        return prediction_of(await self._send(call), request, asked)

    async def acknowledge(self, idempotency_key: str) -> None:
        """Lets the server delete the bytes of a prediction's answer, which is stored here. Free.

        The same call under the same key is then computed anew, without charge. It is tried once.
        """
        await self._send(Call("DELETE", path("answers", idempotency_key), again=False))

    # --- the key's account --------------------------------------------------------------------

    async def usage(self, *, user: str | None = None) -> Usage:
        """All charges of the key, or of one end user of it, and their total. Free."""
        charges: list[Charge] = []
        after: int | None = None
        while True:
            query = {} if after is None else {"after": str(after)}
            if user is not None:
                query["user"] = user
            page = await self._read(Usage, Call("GET", "/v1/usage", query=query))
            charges += page.charges
            if page.next_after is None:
                return page.model_copy(update={"charges": charges})
            if after is not None and page.next_after <= after:
                raise ProtocolError("The server's list of charges does not come to an end.")
            after = page.next_after

    async def budgets(self) -> list[Budget]:
        """The key's budgets, and those of the client's `user`. Free.

        A unit without one is not bounded.
        """
        query = {} if self._user is None else {"user": self._user}
        found = await self._read(BudgetList, Call("GET", "/v1/budget", query=query))
        return Listed(found.budgets)

    async def receipt(
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
        response = await self._send(Call("GET", "/v1/receipts", query=query, accept=MEDIA_TYPE))
        check_content_type(response, MEDIA_TYPE)
        try:
            return response.content.decode("ascii")
        except UnicodeDecodeError as error:
            raise ProtocolError("The server sent a receipt that is no text.") from error

    async def receipt_keys(self) -> bytes:
        """The JWK set that verifies the server's receipts. Free, under any API key or none."""
        from craft_shared.receipt import KEYS_MEDIA_TYPE

        call = Call("GET", "/v1/receipts/keys", accept=KEYS_MEDIA_TYPE, most_bytes=MOST_KEYS_BYTES)
        response = await self._send(call)
        check_content_type(response, KEYS_MEDIA_TYPE)
        return response.content

    # --- reported runs ------------------------------------------------------------------------

    async def report_run(self, run: str, report: RunReport) -> None:
        """Creates or changes what the server's console says of a run. Free; tried once."""
        # Without what is not known yet, servers of an earlier version take it.
        body = report.model_dump_json(exclude_none=True).encode()
        await self._send(Call("PUT", path("runs", run), json=body, again=False))

    async def report_points(self, run: str, points: Sequence[RunPoint]) -> None:
        """Adds points to a reported run's curve, unless they are there. Free; tried once."""
        body = message(RunPoints, points=list(points)).model_dump_json().encode()
        await self._send(Call("PUT", path("runs", run, "points"), json=body, again=False))

    async def report_evaluation(self, run: str, evaluation: RunEvaluation) -> None:
        """Sets what a reported run's adapter is worth. Free; tried once.

        Raises:
            NotFound: the run was not reported.
        """
        body = evaluation.model_dump_json().encode()
        await self._send(Call("PUT", path("runs", run, "evaluation"), json=body, again=False))

    # --- adapters -----------------------------------------------------------------------------

    async def publish(
        self, name: str, adapter: Adapter, *, aliases: Sequence[str] = ()
    ) -> AdapterPublishAnswer:
        """Publishes an adapter under a name; the same adapter again is free.

        `aliases` mean this version from then on.
        """
        call = Call(
            "POST",
            "/v1/adapters",
            query={"name": name, "alias": list(aliases)},
            tensors=adapter.to_bytes(),
            accept=JSON_TYPE,
        )
        return await self._read(AdapterPublishAnswer, call)

    async def adapters(self) -> list[AdapterCard]:
        """The adapters that the key may use: its owner's, shared ones, public ones. Free."""
        call = Call("GET", "/v1/adapters", most_bytes=MOST_LIST_BYTES)
        found = await self._read(AdapterList, call)
        return Listed(found.adapters)

    async def adapter(self, name: str) -> AdapterCard:
        """The version that `[OWNER/]NAME[@VERSION|@ALIAS]` means now. Free."""
        return await self._read(AdapterCard, Call("GET", path("adapters", name)))

    async def adapter_versions(self, name: str) -> list[AdapterCard]:
        """All versions of one of the owner's adapters, the retired ones too. Free."""
        call = Call("GET", path("adapters", name, "versions"), most_bytes=MOST_LIST_BYTES)
        found = await self._read(AdapterList, call)
        return Listed(found.adapters)

    async def adapter_settings(self, name: str) -> AdapterSettings:
        """Who may use one of the owner's adapters, who pays, and what its aliases mean. Free."""
        return await self._read(AdapterSettings, Call("GET", path("adapters", name, "settings")))

    async def change_adapter(self, name: str, change: AdapterChange) -> AdapterSettings:
        """Changes the settings that `change` names, for all versions, and returns all. Free."""
        body = change.model_dump_json(exclude_unset=True).encode()
        call = Call("PATCH", path("adapters", name), json=body)
        return await self._read(AdapterSettings, call)

    async def adapter_usage(self, name: str) -> AdapterUsage:
        """What was classified with one of the owner's adapters, by everybody. Free."""
        return await self._read(AdapterUsage, Call("GET", path("adapters", name, "usage")))

    async def retire(self, name: str) -> None:
        """Takes `NAME@VERSION`, or all versions of `NAME`, out of service. Free."""
        await self._send(Call("DELETE", path("adapters", name)))

    async def restore(self, name: str) -> None:
        """Takes what was retired into service again. Free."""
        await self._send(Call("PUT", path("adapters", name, "restore")))

    async def adapter_predict(
        self,
        name: str,
        *,
        images: Sequence[Picture] | None = None,
        image_set: str | None = None,
        rows: Sequence[int] | None = None,
        top_k: int | None = None,
        abstain_below: float | None = None,
        classes: Sequence[str] | None = None,
        count: int | None = None,
        idempotency_key: str | None = None,
    ) -> AdapterPrediction:
        """Classifies images, or rows of an image set, with a published adapter in one call.

        Args:
            name: `[OWNER/]NAME[@VERSION|@ALIAS]`.
            images: where no image set is named; see `craft_client.pictures`.
            image_set: an image set's id.
            rows: of the image set; all when None.
            top_k: how many classes of each image to answer, the most probable ones; all when
                None. The charge is the same.
            abstain_below: probability that an image's best class must have; the adapter's own
                threshold when None.
            classes: of the adapter, where they are known: an answer with others is refused.
            count: as in `predict`.
            idempotency_key: as in `predict`.
        """
        call, asked = adapter_call(
            name, images, image_set, rows, top_k, abstain_below, classes, count, idempotency_key
        )
        return adapter_prediction_of(await self._send(call), classes, top_k, asked)
