"""How the API describes itself: bodies and answers of both media types, and problems (OpenAPI)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from craft_shared import codec
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
    UNAUTHENTICATED,
    UNSUPPORTED_MEDIA_TYPE,
    Problem,
    ProblemType,
)
from craft_shared.run_reports import RunPoints, RunReport
from craft_shared.wire import (
    AdapterPredictionAnswer,
    AdapterPredictionRequest,
    BudgetLimits,
    BudgetTopUps,
    ImageSetCreate,
    ImageUpload,
    KeyCreate,
    KeyRotate,
    PredictionAnswer,
    PredictionRequest,
    PriceList,
)

# What calls of one kind may all be refused with: with a key, with a scope, with a body, done once
# under an idempotency key, charged.
KEYED = (UNAUTHENTICATED, RATE_LIMITED)
SCOPED = (*KEYED, FORBIDDEN)
WITH_BODY = (*SCOPED, MALFORMED_BODY, BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, INVALID_REQUEST)
ONCE = (*WITH_BODY, CALL_IN_PROGRESS, IDEMPOTENCY_KEY_REUSED)
CHARGED = (*ONCE, BUDGET_EXHAUSTED, INTERNAL_ERROR, OVERLOADED)

_REF = "#/components/schemas/{model}"
_BY_REFERENCE: tuple[type[BaseModel], ...] = (
    AdapterPredictionAnswer,
    AdapterPredictionRequest,
    BudgetLimits,
    BudgetTopUps,
    ImageSetCreate,
    ImageUpload,
    KeyCreate,
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
without what travels as a tensor. Errors are problem documents (RFC 9457). A refused call costs
nothing. `GET /v1/usage` lists what was charged, `GET /v1/budget` what is left.
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
    """The 200 of a call that answers with the tensor `log_probs`, of a shape with a gap.

    The gap is the axis of the classes, of which `top_k` leaves some and says which.
    """
    tensors = (
        f"`log_probs` {shape.format('classes')}; with `top_k` {shape.format('top_k')}, and of the "
        "same shape `top_classes` int32, the classes' indices"
    )
    return {
        200: {
            "description": f"The document, and the tensors {tensors}",
            "content": {
                "application/json": {"schema": _reference(model)},
                codec.MEDIA_TYPE: {"schema": _file(model, tensors)},
            },
        }
    }


def problems(*kinds: ProblemType) -> dict[int | str, dict[str, Any]]:
    """The problems that a call may answer with."""
    by_status: dict[int | str, list[ProblemType]] = {}
    for kind in kinds:
        by_status.setdefault(kind.status, []).append(kind)
    return {
        status: {
            "description": "; ".join(f"`{kind.slug}`: {kind.title}" for kind in same),
            "content": {MEDIA_TYPE: {"schema": _reference(Problem)}},
        }
        for status, same in by_status.items()
    }


def install(app: FastAPI) -> None:
    """Makes the application's description hold the models that the functions above refer to."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=_DESCRIPTION,
                routes=app.routes,
            )
            _, definitions = models_json_schema(
                [(model, "validation") for model in _BY_REFERENCE], ref_template=_REF
            )
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            _add_missing(schemas, definitions["$defs"])
            app.openapi_schema = schema
        return app.openapi_schema

    # FastAPI's documented way to extend the description is to replace this method.
    app.openapi = describe  # type: ignore[method-assign]


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
