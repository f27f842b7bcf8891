"""How the API describes itself (OpenAPI 3.1).

FastAPI describes parameters and answers from the routes. This module adds what it cannot see:
bodies that the server parses itself, safetensors files, problems, headers, and examples. What every
call with a dependency takes or may be refused with is said once, at the dependency (`takes`,
`refuses`); examples are made of those that the models' fields have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from craft_server.api.middleware import JSON_TYPE, REQUEST_ID_HEADER
from craft_server.root_path import root_path
from craft_shared import codec, problems
from craft_shared.adapter import AdapterConfig
from craft_shared.problems import MEDIA_TYPE, FieldError, Problem, ProblemType
from craft_shared.wire import AdapterPredictionAnswer, PredictionAnswer

ADDRESS = "/openapi.json"
DESCRIPTION = """
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
_TAGS = {
    "models": "What the server hosts. Free.",
    "image sets": "Upload images once, score them often. An image set is a handle on images that "
    "the server has seen; their bytes are not kept.",
    "predictions": "Score prompts x images x classes.",
    "account": "What the key was charged, what is left, and answers that need not be kept.",
    "receipts": "Signed proof of what was charged.",
    "runs": "Tuning runs that report themselves, for the console. Free.",
    "adapters": "Publish, list, share, use and retire tuned adapters.",
    "administration": "Keys, budgets, prices and usage, for keys with the scope `admin`.",
    "health": "For operators and load balancers.",
}
# Description and example.
_HEADERS = {
    "X-Request-Id": (
        "Names the call in the provider's log: the client's own id, if it sent one in this header "
        "(1 to 64 letters, digits and `._-`), or a new one.",
        "6aed9acb32c74bc1956c48b2c9453bd8",
    ),
    "RateLimit-Policy": (
        "The key's limits a minute, if it has any (draft-ietf-httpapi-ratelimit-headers).",
        '"requests";q=600;w=60',
    ),
    "RateLimit": ("What is left of them, and for how many seconds.", '"requests";r=599;t=60'),
    "Retry-After": ("Seconds to wait; missing where waiting would not help.", "5"),
    "WWW-Authenticate": ("The authentication scheme.", "Bearer"),
    "Idempotency-Replayed": (
        "`true` if an earlier call under the same Idempotency-Key made the answer. It is not "
        "charged again.",
        "true",
    ),
    "Idempotency-Recomputed": (
        "`true` if that answer's bytes were gone, so that it was computed again, free of charge.",
        "true",
    ),
    "Content-Encoding": (
        "`zstd` if the answer is over 64 KiB and `Accept-Encoding` names that.",
        "zstd",
    ),
    "Vary": ("Request headers that the answer's bytes depend on.", "Accept-Encoding"),
    "Cache-Control": ("How long the answer may be cached.", "no-store"),
}
_HEADER_OF = {
    problems.UNAUTHENTICATED: "WWW-Authenticate",
    problems.RATE_LIMITED: "Retry-After",
    problems.OVERLOADED: "Retry-After",
    problems.CALL_IN_PROGRESS: "Retry-After",
    problems.RUN_IN_PROGRESS: "Retry-After",
}
_PROBLEM_EXAMPLES = {
    "malformed-body": "the body is not valid JSON: expected value at line 1 column 1",
    "request-timeout": "the body was not complete in time",
    "head-too-large": "the request's head has more than 65536 bytes",
    "unauthenticated": "the key is unknown, expired or revoked",
    "forbidden": "the call needs a key with the scope 'publish'",
    "budget-exhausted": "this call needs 40 queries and 12 are left",
    "prompt-limit-reached": "510 of 512 different prompts have been asked about these images, "
    "and this call asks 32 more",
    "user-limit-reached": "calls were made for 100000 end users of the key, as many as it may name",
    "not-found": "there is no key with this prefix",
    "model-not-found": "this server hosts no model 'RN50'",
    "image-set-not-found": "there is no image set with this id under the key's owner",
    "adapter-not-found": "there is no adapter of this name and version that the key may use",
    "not-recorded": "the POST /v1/predictions that comes nearest differs in templates[0]: "
    "'a {}' was sent, and 'the {}' was recorded",
    "method-not-allowed": "PUT /v1/models: Method Not Allowed",
    "revision-mismatch": "the adapter was tuned on 'pocket' revision cffb53dbadc7e4fb; "
    "the server hosts 'pocket' revision 5d1c0b7e9a3f2468",
    "call-in-progress": "this call was sent before and has not been answered yet",
    "run-in-progress": "2 calls that the receipt would cover have not been answered yet",
    "body-too-large": "the body has more than 67108864 bytes",
    "unsupported-media-type": "the content type is 'text/plain'; this call takes application/json "
    "or application/x-safetensors",
    "invalid-request": "top_k: 12; there are 10 classes",
    "invalid-image": "1 images are not base64",
    "answer-gone": "the answer to this call cannot be had any more: it has been computed anew 8 "
    "times already",
    "idempotency-key-reused": "a call with another address or body was made under this "
    "Idempotency-Key",
    "rate-limited": "this call needs 1 requests and 0 of 600 a minute are left",
    "internal-error": "something went wrong inside the server",
    "overloaded": "the model cannot take this call now; nothing was charged",
}
_FIELD_ERRORS = {
    problems.INVALID_REQUEST: FieldError(
        field="top_k",
        message="12; there are 10 classes",
        remedy="Ask for at most 10, or leave top_k out for all of them.",
    ),
    problems.INVALID_IMAGE: FieldError(
        field="images[3]",
        message="this is not base64",
        remedy="Send the image file's bytes as a base64 string.",
    ),
}
_TENSORS = {
    "codes": "`codes` float32 [prompts, dim]",
    "images": "`files` uint8 [bytes of all images] and `file_sizes` int64 [images]",
}
# That neither FastAPI nor `takes` knows of.
_FURTHER_MODELS = (PredictionAnswer, AdapterPredictionAnswer, AdapterConfig)
_REF = "#/components/schemas/{model}"

F = TypeVar("F", bound=Callable[..., Any])


def refuses(*kinds: ProblemType) -> Callable[[F], F]:
    """Marks a dependency: calls that have it may be refused with these problems."""

    def mark(function: F) -> F:
        vars(function)["refuses"] = kinds
        return function

    return mark


def takes(model: type[BaseModel]) -> Callable[[F], F]:
    """Marks a dependency: calls that have it take the model as JSON or safetensors.

    That a body may be safetensors is described where it can hold tensors.
    """

    def mark(function: F) -> F:
        vars(function)["takes"] = model
        return function

    return mark


def safetensors_body(model: type[BaseModel], tensors: str) -> dict[str, Any]:
    """`openapi_extra` of a call that also takes, or takes only, one safetensors file."""
    content = {codec.MEDIA_TYPE: {"schema": _file(model, tensors)}}
    return {"requestBody": {"required": True, "content": content}}


def tensor_answer(model: type[BaseModel], shape: str) -> dict[int | str, dict[str, Any]]:
    """The 200 of a call that answers with tensors of a shape, in which `{}` are the classes."""
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
                JSON_TYPE: {"schema": _reference(model)},
                codec.MEDIA_TYPE: {"schema": _file(model, tensors)},
            },
        }
    }


def answer(
    description: str, examples: Mapping[str, Any], *header_names: str
) -> dict[int | str, dict[str, Any]]:
    """The 200 of a call that answers with none of the API's documents; examples by media type."""
    content = {
        media_type: {
            "schema": {"type": "string" if isinstance(example, str) else "object"},
            "example": example,
        }
        for media_type, example in examples.items()
    }
    return {
        200: {"description": description, "headers": headers(*header_names), "content": content}
    }


def refusals(*kinds: ProblemType) -> dict[int | str, dict[str, Any]]:
    """`responses` of a call with the problems that are its own."""
    responses: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        _add_refusal(responses, kind.status, kind)
    return responses


def headers(*names: str) -> dict[str, dict[str, str]]:
    """An answer's headers, by name."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def example_of(model: type[BaseModel]) -> Any:
    """An example of the model, made of its fields' examples."""
    schema = model.model_json_schema(ref_template=_REF)
    return _example(schema, schema.get("$defs", {}))


def install(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    """Makes the application describe itself so; `routers` are those of its API."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, routers)
        return app.openapi_schema

    # FastAPI's documented way to extend the description is to replace this method.
    app.openapi = describe  # type: ignore[method-assign] # as FastAPI documents

    @app.get(ADDRESS, include_in_schema=False)
    async def get_description(request: Request) -> Response:
        """The description, of a server at the address that the client used."""
        root = root_path(request)
        return JSONResponse(describe() | ({"servers": [{"url": root}]} if root else {}))


def _document(app: FastAPI, routers: Sequence[APIRouter]) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=DESCRIPTION,
        tags=[{"name": name, "description": words} for name, words in _TAGS.items()],
        routes=app.routes,
    )
    described = {
        operation["operationId"]: operation
        for path in document["paths"].values()
        for operation in path.values()
    }
    routes = (route for router in routers for route in router.routes)
    operations = [
        (described[route.name], list(_marks(route.dependant)))
        for route in routes
        if isinstance(route, APIRoute)
    ]
    bodies = {mark["takes"] for _, marks in operations for mark in marks if "takes" in mark}
    components = document["components"]
    schemas = components["schemas"]
    # FastAPI's own words for bad parameters, which the server answers with a problem.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    _, definitions = models_json_schema(
        [
            *((model, "validation") for model in (*bodies, *_FURTHER_MODELS)),
            # Problems always hold all of their fields.
            (Problem, "serialization"),
        ],
        ref_template=_REF,
    )
    components["schemas"] = schemas = {**definitions["$defs"], **schemas}
    schemas["AdapterConfig"]["examples"] = [_example(schemas["AdapterConfig"], schemas)]
    components["headers"] = {
        name: {"description": words, "schema": {"type": "string"}, "example": example}
        for name, (words, example) in _HEADERS.items()
    }
    components["examples"] = {
        kind.slug: {"summary": kind.title, "value": _problem(kind)}
        for kind in problems.PROBLEM_TYPES.values()
    }
    for operation, marks in operations:
        _complete(operation, marks, schemas)
    return document


def _marks(dependant: Dependant) -> Iterator[dict[str, Any]]:
    """What is said of each dependency of a call, of dependencies' own too."""
    yield vars(dependant.call) if dependant.call is not None else {}
    for each in dependant.dependencies:
        yield from _marks(each)


def _complete(
    operation: dict[str, Any], marks: list[dict[str, Any]], schemas: dict[str, Any]
) -> None:
    responses: dict[str, Any] = operation["responses"]
    parameters: list[dict[str, Any]] = operation.get("parameters", [])
    for parameter in parameters:
        parameter["schema"] = _without_null(parameter["schema"])
    if JSON_TYPE in responses.get("422", {}).get("content", {}):
        del responses["422"]
        _add_refusal(responses, "422", problems.INVALID_REQUEST)
    for mark in marks:
        if "takes" in mark:
            _add_body(operation, mark["takes"])
        for kind in mark.get("refuses", ()):
            _add_refusal(responses, str(kind.status), kind)
    contents = [operation.get("requestBody", {}).get("content", {})]
    repeatable = any(parameter["name"] == "Idempotency-Key" for parameter in parameters)
    for status, response in responses.items():
        names = [REQUEST_ID_HEADER]
        if "429" in responses and status != "401":
            names += ["RateLimit", "RateLimit-Policy"]
        if status.startswith("2"):
            content = response.get("content", {})
            names += ["Idempotency-Replayed"] if repeatable else []
            # Any answer of these types may be large enough to be compressed.
            if {JSON_TYPE, codec.MEDIA_TYPE} & content.keys():
                names += ["Content-Encoding", "Vary"]
            contents.append(content)
        response.setdefault("headers", {}).update(headers(*names))
    for content in contents:
        if JSON_TYPE in content:
            content[JSON_TYPE]["example"] = _example(content[JSON_TYPE]["schema"], schemas)
    operation["responses"] = dict(sorted(responses.items()))


def _add_body(operation: dict[str, Any], model: type[BaseModel]) -> None:
    content = {JSON_TYPE: {"schema": _reference(model)}}
    tensors = [words for field, words in _TENSORS.items() if field in model.model_fields]
    if tensors:
        content[codec.MEDIA_TYPE] = {"schema": _file(model, "; ".join(tensors))}
    body = operation.setdefault("requestBody", {"required": True, "content": {}})
    body["content"] = {**content, **body["content"]}


def _add_refusal(
    responses: dict[Any, dict[str, Any]], status: int | str, kind: ProblemType
) -> None:
    response = responses.setdefault(
        status,
        {
            "description": "",
            "headers": {},
            "content": {MEDIA_TYPE: {"schema": _reference(Problem), "examples": {}}},
        },
    )
    examples = response["content"][MEDIA_TYPE]["examples"]
    if kind.slug in examples:
        return
    examples[kind.slug] = {"$ref": f"#/components/examples/{kind.slug}"}
    words = f"`{kind.slug}`: {kind.title}"
    response["description"] = "; ".join(filter(None, (response["description"], words)))
    if kind in _HEADER_OF:
        response["headers"].update(headers(_HEADER_OF[kind]))


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of an optional parameter that is sent: FastAPI lets it be null."""
    *others, last = schema.get("anyOf", [schema])
    if len(others) != 1 or last != {"type": "null"}:
        return schema
    rest = {name: value for name, value in schema.items() if name != "anyOf"}
    return {**others[0], **rest}


def _example(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Any:
    """An example of what fits a schema: its own, its default, or one made of its parts.

    A field that may be left out is, unless it has an example or a default that is not null.
    """
    if "examples" in schema:
        return schema["examples"][0]
    if "$ref" in schema:
        return _example(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "default" in schema:
        return schema["default"]
    if "anyOf" in schema:
        return _example(schema["anyOf"][0], schemas)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if schema["type"] == "object":
        return {
            name: _example(field, schemas)
            for name, field in schema["properties"].items()
            if name in schema.get("required", ())
            or "examples" in field
            or field.get("default") is not None
        }
    if schema["type"] == "array":
        return [_example(schema["items"], schemas)]
    raise ValueError(f"there is no example of {schema}")


def _problem(kind: ProblemType) -> dict[str, Any]:
    errors = [_FIELD_ERRORS[kind]] if kind in _FIELD_ERRORS else []
    problem = Problem.of(kind, _PROBLEM_EXAMPLES[kind.slug], errors)
    request_id = {"request_id": "6aed9acb32c74bc1956c48b2c9453bd8"}
    return problem.model_copy(update=request_id).model_dump(mode="json")


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}


def _file(model: type[BaseModel], tensors: str) -> dict[str, str]:
    description = (
        f"A safetensors file: metadata `{codec.DOCUMENT_KEY}` holds the {model.__name__} document "
        f"as JSON; tensors: {tensors}"
    )
    return {"type": "string", "format": "binary", "description": description}
