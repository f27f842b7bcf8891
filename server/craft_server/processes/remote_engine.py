"""The model in a process of its own, reached over a Unix socket: both sides of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from craft_server.api.middleware import HangUpMiddleware
from craft_server.decoding.decoders import Pixels
from craft_server.engine import (
    EngineState,
    HostedModel,
    ModelFacts,
    NotFinite,
    Overloaded,
    Prompts,
    WorkerDied,
)
from craft_server.engine.hosted import Answering, RemoteModel, TextFeatures, on_host
from craft_server.engine.prompts import Array
from craft_shared import codec
from craft_shared.wire import Context

# After a failure calls are refused at once for so long, instead of each finding out.
PAUSE_SECONDS = 0.5
_CONNECT_SECONDS = 5
_URL = "http://engine"
ENCODE_IMAGES = "/encode-images"
ENCODE_PROMPTS = "/encode-prompts"
LOG_PROBS = "/log-probs"
STATE = "/state"
FACTS = "/facts"

# Tells answers of one set of weights from those of another that came in its place.
REVISION_HEADER = "Craft-Revision"

REFUSED_STATUS = 503
REFUSALS: dict[str, type[Overloaded | WorkerDied | NotFinite]] = {
    kind.__name__: kind for kind in (Overloaded, WorkerDied, NotFinite)
}


class RemoteEngine(RemoteModel):
    """The model in another process.

    `on_other_weights` is called when another model has come in its place; the calls fail.
    """

    def __init__(
        self, facts: ModelFacts, socket: Path, on_other_weights: Callable[[], None]
    ) -> None:
        super().__init__(facts)
        self._on_other_weights = on_other_weights
        # How long the model computes is bounded by nothing but the work.
        self._http = httpx.AsyncClient(
            base_url=_URL,
            transport=httpx.AsyncHTTPTransport(
                uds=str(socket),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=16),
            ),
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
        )
        self._silent_until = 0.0

    @classmethod
    def connect(cls, socket: Path, on_other_weights: Callable[[], None]) -> Self:
        """Waits until the other process answers; see the class."""
        with httpx.Client(base_url=_URL, transport=httpx.HTTPTransport(uds=str(socket))) as http:
            while True:
                with suppress(httpx.TransportError):
                    facts = ModelFacts.model_validate_json(http.get(FACTS).content)
                    return cls(facts, socket, on_other_weights)
                time.sleep(PAUSE_SECONDS)

    @property
    def alive(self) -> bool:
        """See `HostedModel`: false for a moment after the process was not to be reached."""
        return super().alive and time.monotonic() >= self._silent_until

    async def state(self) -> EngineState:
        """See `HostedModel`."""
        response = await self._send("GET", STATE)
        return EngineState.model_validate_json(response.content)

    async def encode_pixels(self, pixels: Pixels, *, tenant: str) -> Array:
        """See `RemoteModel`."""
        return await self._ask(ENCODE_IMAGES, {"tenant": tenant}, images=pixels)

    async def encode_prompts(
        self, prompts: Prompts, classes: Sequence[str], *, tenant: str = ""
    ) -> Array:
        """See `HostedModel`."""
        document = {
            "tenant": tenant,
            "templates": list(prompts.templates),
            "context": None if prompts.context is None else prompts.context.model_dump(),
            "classes": list(classes),
        }
        return await self._ask(ENCODE_PROMPTS, document, codes=prompts.codes)

    async def log_probs(
        self, image_features: Array, text_features: TextFeatures, *, tenant: str = ""
    ) -> Array:
        """See `HostedModel`."""
        texts = on_host(text_features)
        return await self._ask(LOG_PROBS, {"tenant": tenant}, images=image_features, texts=texts)

    async def _ask(
        self, path: str, document: Mapping[str, Any], **tensors: Array | Pixels
    ) -> Array:
        body = codec.encode(document, tensors)
        response = await self._send("POST", path, body)
        if response.headers[REVISION_HEADER] != self.revision:
            self._on_other_weights()
            raise WorkerDied("the model's process has loaded other weights")
        _, answer = codec.decode(response.content)
        return answer["answer"]

    async def _send(self, method: str, path: str, body: bytes | None = None) -> httpx.Response:
        try:
            response = await self._http.request(method, path, content=body)
        except httpx.TransportError as error:
            self._silent_until = time.monotonic() + PAUSE_SECONDS
            raise WorkerDied(f"the model's process does not answer: {error!r}") from error
        if response.status_code == REFUSED_STATUS:
            refusal = response.json()
            raise REFUSALS[refusal["refusal"]](refusal["detail"])
        response.raise_for_status()
        return response


def engine_app(engine: HostedModel) -> Starlette:
    """Serves the engine's operations."""
    answering = Answering(engine)

    async def state(_request: Request) -> Response:
        return JSONResponse((await engine.state()).model_dump())

    async def encode_images(document: Mapping[str, Any], tensors: codec.Tensors) -> Array:
        return await answering.encode_images(tensors["images"], tenant=document["tenant"])

    async def encode_prompts(document: Mapping[str, Any], tensors: codec.Tensors) -> Array:
        context = document["context"]
        prompts = Prompts(
            templates=tuple(document["templates"]),
            context=None if context is None else Context.model_validate(context),
            codes=tensors["codes"],
        )
        return await answering.encode_prompts(
            prompts, document["classes"], tenant=document["tenant"]
        )

    async def log_probs(document: Mapping[str, Any], tensors: codec.Tensors) -> Array:
        return await answering.log_probs(
            tensors["images"], tensors["texts"], tenant=document["tenant"]
        )

    async def facts(_request: Request) -> Response:
        return JSONResponse(engine.facts.model_dump())

    operations = {
        ENCODE_IMAGES: encode_images,
        ENCODE_PROMPTS: encode_prompts,
        LOG_PROBS: log_probs,
    }

    async def operate(request: Request) -> Response:
        document, tensors = codec.decode(await request.body())
        found = await operations[request.url.path](document, tensors)
        headers = {REVISION_HEADER: engine.revision}
        return Response(codec.encode({}, {"answer": found}), 200, headers, codec.MEDIA_TYPE)

    app = Starlette(
        routes=[
            Route(FACTS, facts),
            Route(STATE, state),
            *(Route(path, operate, methods=["POST"]) for path in operations),
        ],
        exception_handlers=dict.fromkeys(REFUSALS.values(), _refuse),
    )
    app.add_middleware(HangUpMiddleware)
    return app


async def _refuse(_request: Request, error: Exception) -> Response:
    refusal = {"refusal": type(error).__name__, "detail": str(error)}
    return JSONResponse(refusal, REFUSED_STATUS)
