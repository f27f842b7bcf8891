"""The model's process as an ASGI application: its operations, for the server's other processes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from craft_server.api.middleware import HangUpMiddleware
from craft_server.engine import HostedModel, Prompts
from craft_server.engine.hosted import Answering
from craft_server.engine.prompts import Array
from craft_server.processes.remote_engine import (
    ENCODE_IMAGES,
    ENCODE_PROMPTS,
    FACTS,
    LOG_PROBS,
    REFUSALS,
    REFUSED_STATUS,
    REVISION_HEADER,
    STATE,
)
from craft_shared import codec
from craft_shared.wire import Context


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

    app = Starlette(
        routes=[
            Route(FACTS, facts),
            Route(STATE, state),
            *(
                _operation(path, function, engine.revision)
                for path, function in (
                    (ENCODE_IMAGES, encode_images),
                    (ENCODE_PROMPTS, encode_prompts),
                    (LOG_PROBS, log_probs),
                )
            ),
        ],
        exception_handlers={kind: _refusal(name) for name, kind in REFUSALS.items()},
    )
    app.add_middleware(HangUpMiddleware)
    return app


def _operation(
    path: str,
    function: Callable[[Mapping[str, Any], codec.Tensors], Awaitable[Array]],
    revision: str,
) -> Route:
    async def endpoint(request: Request) -> Response:
        document, tensors = codec.decode(await request.body())
        answer = codec.encode({}, {"answer": await function(document, tensors)})
        return Response(answer, headers={REVISION_HEADER: revision}, media_type=codec.MEDIA_TYPE)

    return Route(path, endpoint, methods=["POST"])


def _refusal(name: str) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def refuse(_request: Request, error: Exception) -> Response:
        return JSONResponse({"refusal": name, "detail": str(error)}, REFUSED_STATUS)

    return refuse
