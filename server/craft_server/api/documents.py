"""How the API describes itself: bodies and answers of both media types, and problems (OpenAPI)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from craft_shared import codec
from craft_shared.adapter import AdapterConfig
from craft_shared.problems import (
    BODY_TOO_LARGE,
    BUDGET_EXHAUSTED,
    CALL_IN_PROGRESS,
    FORBIDDEN,
    IDEMPOTENCY_KEY_REUSED,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    MALFORMED_BODY,
    MEDIA_TYPE,
    OVERLOADED,
    RATE_LIMITED,
    RUN_IN_PROGRESS,
    UNAUTHENTICATED,
    UNSUPPORTED_MEDIA_TYPE,
    Problem,
    ProblemType,
)
from craft_shared.run_reports import RunPoints, RunReport
from craft_shared.wire import (
    AdapterChange,
    AdapterPredictionAnswer,
    AdapterPredictionRequest,
    BudgetLimits,
    BudgetTopUps,
    ImageSetCreate,
    ImageUpload,
    KeyCreate,
    KeyPolicy,
    KeyRotate,
    PredictionAnswer,
    PredictionRequest,
    PriceList,
)

# What calls of one kind may all be refused with: that read the database, with a key, with a scope,
# with a body, done once under an idempotency key, charged.
ANY = (INTERNAL_ERROR, OVERLOADED)
KEYED = (UNAUTHENTICATED, RATE_LIMITED, *ANY)
SCOPED = (*KEYED, FORBIDDEN)
WITH_BODY = (*SCOPED, MALFORMED_BODY, BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, INVALID_REQUEST)
ONCE = (*WITH_BODY, CALL_IN_PROGRESS, IDEMPOTENCY_KEY_REUSED)
CHARGED = (*ONCE, BUDGET_EXHAUSTED)

RATE_HEADERS = ("RateLimit", "RateLimit-Policy")
CODING_HEADERS = ("Content-Encoding", "Vary")
HEADERS: dict[str, dict[str, Any]] = {
    name: {"description": words, "schema": {"type": "string"}, "example": example}
    for name, words, example in (
        (
            "X-Request-Id",
            "Names the call in the provider's log: the client's own id, where it sent one in this "
            "header (1 to 64 letters, digits and `._-`), or a new one.",
            "6aed9acb32c74bc1956c48b2c9453bd8",
        ),
        (
            "RateLimit-Policy",
            "The key's limits a minute; only where it has some (draft-ietf-httpapi-ratelimit-"
            "headers).",
            '"requests";q=600;w=60',
        ),
        ("RateLimit", "What is left of them, and for how many seconds.", '"requests";r=599;t=60'),
        ("Retry-After", "Seconds to wait; missing where no wait would help.", "5"),
        ("WWW-Authenticate", "The scheme by which keys are shown.", "Bearer"),
        (
            "Idempotency-Replayed",
            "`true` where the answer was made by an earlier call under the same Idempotency-Key, "
            "and is not charged again.",
            "true",
        ),
        (
            "Idempotency-Recomputed",
            "`true` where such an answer's bytes were gone, so that it was computed anew, free.",
            "true",
        ),
        (
            "Content-Encoding",
            "`zstd` where the answer is over 64 KiB and `Accept-Encoding` names that.",
            "zstd",
        ),
        ("Vary", "What else the answer's bytes depend on.", "Accept-Encoding"),
        ("Cache-Control", "For how long the answer may be kept.", "no-store"),
    )
}
# What comes with a problem besides its document.
_HEADERS_OF: dict[ProblemType, str] = {
    UNAUTHENTICATED: "WWW-Authenticate",
    **dict.fromkeys((RATE_LIMITED, OVERLOADED, CALL_IN_PROGRESS, RUN_IN_PROGRESS), "Retry-After"),
}

_REF = "#/components/schemas/{model}"
_BY_REFERENCE: tuple[type[BaseModel], ...] = (
    AdapterChange,
    AdapterConfig,
    AdapterPredictionAnswer,
    AdapterPredictionRequest,
    BudgetLimits,
    BudgetTopUps,
    ImageSetCreate,
    ImageUpload,
    KeyCreate,
    KeyPolicy,
    KeyRotate,
    PredictionAnswer,
    PredictionRequest,
    PriceList,
    Problem,
    RunPoints,
    RunReport,
)
_DESCRIPTION = """
A vision-language model behind a metered prediction API.

Bodies and answers are JSON, or safetensors files whose metadata key `craftbox` holds the same JSON
without what travels as a tensor. JSON is the default: an answer is a safetensors file only where
`Accept` names `application/x-safetensors`. Such a file is the header's length (8 bytes, little
endian), the header, which is JSON, and the tensors' bytes (little endian, row by row). A header:

    {"__metadata__": {"craftbox": "{\\"model\\": \\"pocket\\", \\"classes\\": [\\"cat\\"]}"},
     "codes": {"dtype": "F32", "shape": [40, 512], "data_offsets": [0, 81920]}}

Errors are problem documents (RFC 9457) with a stable `type`. A refused call costs nothing. Send a
charged call with an `Idempotency-Key`, and it can be sent again without being charged again.
`GET /v1/usage` lists what was charged, `GET /v1/budget` what is left.

Times are RFC 3339, with a zone; in UTC they are within the years 1 to 9999.
"""


def body(model: type[BaseModel], tensors: str) -> dict[str, Any]:
    """`openapi_extra` of a call that takes a `model` as JSON or safetensors."""
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _reference(model)},
                codec.MEDIA_TYPE: {"schema": _file(model, tensors)},
            },
        }
    }


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a call that takes a `model` without tensors."""
    content = {"application/json": {"schema": _reference(model)}}
    return {"requestBody": {"required": True, "content": content}}


def safetensors_body(description: str) -> dict[str, Any]:
    """`openapi_extra` of a call that takes one safetensors file."""
    schema = {"type": "string", "format": "binary", "description": description}
    return {"requestBody": {"required": True, "content": {codec.MEDIA_TYPE: {"schema": schema}}}}


def tensor_answer(model: type[BaseModel], shape: str) -> dict[int | str, dict[str, Any]]:
    """The 200 of a call that answers with numbers of each class, of a shape with a gap.

    The gap is the axis of the classes, of which `output` may leave some and say which.
    """
    tensors = (
        f"`log_probs`, or with the level `probs` `probs`, {shape.format('classes')}; with k "
        f"{shape.format('k')}, and of the same shape `top_classes` int32, the classes' indices; "
        "with the level `label` those alone"
    )
    return {
        200: {
            "description": f"The document, and the tensors {tensors}",
            "headers": headers("Idempotency-Recomputed"),
            "content": {
                "application/json": {"schema": _reference(model)},
                codec.MEDIA_TYPE: {"schema": _file(model, tensors)},
            },
        }
    }


def problems(*kinds: ProblemType) -> dict[int | str, dict[str, Any]]:
    """The problems that a call may answer with."""
    by_status: dict[int | str, list[ProblemType]] = {}
    for kind in dict.fromkeys(kinds):
        by_status.setdefault(kind.status, []).append(kind)
    return {
        status: {
            "description": "; ".join(f"`{kind.slug}`: {kind.title}" for kind in same),
            "headers": headers(*(_HEADERS_OF[kind] for kind in same if kind in _HEADERS_OF)),
            "content": {
                MEDIA_TYPE: {
                    "schema": _reference(Problem),
                    "examples": {
                        kind.slug: {"$ref": f"#/components/examples/{kind.slug}"} for kind in same
                    },
                }
            },
        }
        for status, same in by_status.items()
    }


def headers(*names: str) -> dict[str, dict[str, str]]:
    """The headers of an answer, by name."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def install(app: FastAPI, complete: Callable[[dict[str, Any]], None]) -> None:
    """Makes the application's description hold the models that the functions above refer to.

    Args:
        app: the application, with all its routes.
        complete: adds the rest to the description, in place.
    """

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=_DESCRIPTION,
                routes=app.routes,
            )
            _, definitions = models_json_schema(
                [
                    # Problems always hold all of their fields.
                    (model, "serialization" if model is Problem else "validation")
                    for model in _BY_REFERENCE
                ],
                ref_template=_REF,
            )
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            _add_missing(schemas, definitions["$defs"])
            complete(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    # FastAPI's documented way to extend the description is to replace this method.
    app.openapi = describe  # type: ignore[method-assign] # as FastAPI documents


def _add_missing(schemas: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, schema in more.items():
        schemas.setdefault(name, schema)


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}


def _file(model: type[BaseModel], tensors: str) -> dict[str, str]:
    description = (
        f"A safetensors file: metadata `{codec.DOCUMENT_KEY}` holds the {model.__name__} document "
        f"as JSON; tensors: {tensors}"
    )
    return {"type": "string", "format": "binary", "description": description}
