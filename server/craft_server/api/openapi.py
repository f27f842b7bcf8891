"""Completes the API's description with what no route says of itself: examples, headers, tags.

It knows OpenAPI 3.1 and operation ids; it does not know bodies, nor what any call does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from craft_server.api import documents, examples
from craft_server.api.idempotency import REPLAYED_HEADER
from craft_server.api.request_id import HEADER as REQUEST_ID_HEADER
from craft_shared import codec
from craft_shared.problems import INVALID_REQUEST, PROBLEM_TYPES
from craft_shared.wire import AdapterPredictionAnswer, PredictionAnswer

_COMPRESSIBLE = {examples.JSON_TYPE, codec.MEDIA_TYPE}
_TAGS = {
    "models": "What the server hosts. Free.",
    "image sets": "Upload pictures once, score them often. An image set is a handle on pictures "
    "that the server has seen; their bytes are not kept.",
    "predictions": "Score prompts x pictures x classes.",
    "account": "What the key was charged, what is left, and answers that need not be kept.",
    "receipts": "Signed proof of what was charged.",
    "runs": "Tuning runs that report themselves, for the console. Free.",
    "adapters": "Publish, list, share, use and retire tuned adapters.",
    "administration": "Keys, budgets, prices and usage, for keys with the scope `admin`.",
    "health": "For operators and load balancers.",
}


def complete(document: dict[str, Any]) -> None:
    """Adds to the description that FastAPI has made of the routes, in place."""
    document["tags"] = [{"name": name, "description": words} for name, words in _TAGS.items()]
    components = document["components"]
    components["headers"] = documents.HEADERS
    components["examples"] = {
        kind.slug: {"summary": kind.title, "value": _json(examples.problem(kind))}
        for kind in PROBLEM_TYPES.values()
    }
    schemas = components["schemas"]
    for model, example in examples.DOCUMENTS.items():
        schemas[model]["examples"] = [_json(example)]
    for path in document["paths"].values():
        for operation in path.values():
            _complete_operation(operation)
    # FastAPI's own words for bad parameters, which the server answers with a problem.
    for model in ("HTTPValidationError", "ValidationError"):
        schemas.pop(model, None)


def _complete_operation(operation: dict[str, Any]) -> None:
    parameters: list[dict[str, Any]] = operation.get("parameters", [])
    responses: dict[str, Any] = operation["responses"]
    for parameter in parameters:
        parameter["schema"] = _without_null(parameter["schema"])
        if parameter["name"] in examples.PARAMETERS:
            parameter["example"] = examples.PARAMETERS[parameter["name"]]
    if "application/json" in responses.get("422", {}).get("content", {}):
        responses["422"] = documents.problems(INVALID_REQUEST)[422]
    _show_request(operation)
    repeatable = any(parameter["name"] == "Idempotency-Key" for parameter in parameters)
    for status, response in responses.items():
        names = [REQUEST_ID_HEADER]
        if "429" in responses and status != "401":
            names += documents.RATE_HEADERS
        if status.startswith("2"):
            names += [REPLAYED_HEADER] if repeatable else []
            # Any answer of these types may be large enough to be compressed.
            names += (
                documents.CODING_HEADERS if _COMPRESSIBLE & set(response.get("content", ())) else []
            )
            _show_answer(operation["operationId"], response)
        response.setdefault("headers", {}).update(documents.headers(*names))
    operation["responses"] = dict(sorted(responses.items()))


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """What a parameter may be where it is sent: FastAPI says null where it may be left out."""
    *others, last = schema.get("anyOf", [schema])
    if len(others) != 1 or last != {"type": "null"}:
        return schema
    rest = {name: value for name, value in schema.items() if name != "anyOf"}
    return {**others[0], **rest}


def _show_request(operation: dict[str, Any]) -> None:
    message = examples.REQUESTS.get(operation["operationId"])
    if message is not None:
        content = operation["requestBody"]["content"]["application/json"]
        content["example"] = message.model_dump(mode="json", exclude_unset=True)


def _show_answer(operation_id: str, response: dict[str, Any]) -> None:
    shown = examples.ANSWERS.get(operation_id, {})
    by_type: Mapping[str, Any] = (
        {examples.JSON_TYPE: _json(shown)} if isinstance(shown, BaseModel) else shown
    )
    for media_type, content in response.get("content", {}).items():
        if media_type in by_type:
            content["example"] = by_type[media_type]


def _json(message: BaseModel) -> dict[str, Any]:
    document = message.model_dump(mode="json")
    if isinstance(message, PredictionAnswer | AdapterPredictionAnswer):
        # A tensor that was not asked for is left out, not null.
        return {name: value for name, value in document.items() if value is not None}
    return document
