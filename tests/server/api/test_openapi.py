"""The API's description: valid, complete, true, and silent about what clients may not know."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from craft_server.app import create_app
from craft_server.clock import now_ms
from craft_server.ledger.keys import Rates, create_key
from craft_server.settings import DEFAULT_LIMITS, Settings
from craft_shared import codec
from craft_shared.problems import MEDIA_TYPE, PROBLEM_TYPES

# Of every server, whatever the call.
TRANSPORT_HEADERS = {"content-length", "content-type", "date", "server"}
PRIVATE = re.compile(
    r"width|logit|checkpoint|pretrained|embed_dim|state.dict|gradient"
    r"|/(home|tmp|usr|var|root|etc|opt)/|\.(py|pt|pth|ckpt|onnx|bin|db)\b",
    re.IGNORECASE,
)
PRIVATE_FIELDS = re.compile("feature|embedding|weight|path|(?<!pro)file")


@pytest.fixture(scope="module")
def document(server: Any) -> dict[str, Any]:
    described: dict[str, Any] = httpx.get(f"{server.url}/openapi.json").json()
    return described


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def _resolved(part: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in part:
        return part
    found: Any = document
    for name in part["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    resolved: dict[str, Any] = found
    return resolved


def _examples(part: Any, document: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Any]]:
    """Every example of a body, parameter, header or schema below `part`, with its schema."""
    if isinstance(part, dict):
        if isinstance(schema := part.get("schema"), dict):
            if "example" in part:
                yield schema, part["example"]
            for example in part.get("examples", {}).values():
                yield schema, _resolved(example, document)["value"]
        elif isinstance(part.get("examples"), list):
            for value in part["examples"]:
                yield part, value
        for value in part.values():
            yield from _examples(value, document)
    elif isinstance(part, list):
        for value in part:
            yield from _examples(value, document)


def _texts(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        for name, value in part.items():
            yield name
            yield from _texts(value)
    elif isinstance(part, list):
        for value in part:
            yield from _texts(value)
    elif isinstance(part, str):
        yield part


def test_a_public_validator_finds_nothing_wrong(document: dict[str, Any]) -> None:
    assert [str(error) for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def test_each_operation_id_is_a_verb_and_its_object_and_of_one_call_alone(
    document: dict[str, Any],
) -> None:
    ids = [operation["operationId"] for _, _, operation in _operations(document)]
    assert [name for name in ids if not re.fullmatch(r"[a-z]+(_[a-z]+)+", name)] == []
    assert len(set(ids)) == len(ids)
    assert "create_prediction" in ids


def test_each_tag_is_used_and_described(document: dict[str, Any]) -> None:
    used = {tag for _, _, operation in _operations(document) for tag in operation["tags"]}
    assert {tag["name"] for tag in document["tags"] if tag["description"]} == used


def test_each_call_shows_what_it_is_sent_and_what_it_answers(document: dict[str, Any]) -> None:
    without = []
    for _, _, operation in _operations(document):
        bodies = [operation.get("requestBody", {})]
        bodies += [body for status, body in operation["responses"].items() if status[0] == "2"]
        without += [
            (operation["operationId"], media_type)
            for body in bodies
            for media_type, content in body.get("content", {}).items()
            if media_type != codec.MEDIA_TYPE and "example" not in content
        ]
    assert without == []


def test_each_example_fits_its_schema(document: dict[str, Any]) -> None:
    examples = list(_examples(document, document))
    assert len(examples) > 300
    wrong = []
    for schema, example in examples:
        # References inside the schema are to the document's components.
        whole = {**schema, "components": document["components"]}
        wrong += [
            (error.message, example) for error in Draft202012Validator(whole).iter_errors(example)
        ]
    assert wrong == []


def test_each_refusal_shows_known_problems_of_its_status(document: dict[str, Any]) -> None:
    refusals = 0
    for _, _, operation in _operations(document):
        for status, response in operation["responses"].items():
            if status[0] == "2":
                continue
            refusals += 1
            assert set(response["content"]) == {MEDIA_TYPE}, (operation["operationId"], status)
            shown = response["content"][MEDIA_TYPE]["examples"]
            assert shown, (operation["operationId"], status)
            for slug, example in shown.items():
                problem = _resolved(example, document)["value"]
                kind = PROBLEM_TYPES[problem["type"]]
                assert (kind.slug, kind.status) == (slug, int(status))
    assert refusals > 200


def test_each_kind_of_problem_is_shown_in_words_of_its_own(document: dict[str, Any]) -> None:
    shown = document["components"]["examples"]
    assert set(shown) == {kind.slug for kind in PROBLEM_TYPES.values()}
    problems = [example["value"] for example in shown.values()]
    assert [each["type"] for each in problems if each["detail"] == each["title"]] == []


def test_each_call_that_does_something_once_takes_an_idempotency_key(
    document: dict[str, Any],
) -> None:
    for path, method, operation in _operations(document):
        named = {each["name"] for each in operation.get("parameters", []) if each["in"] == "header"}
        once = {"Idempotency-Key", "Craft-Run", "Craft-User"}
        wanted = once if method == "post" else set()
        assert named == wanted, path


def test_each_safetensors_body_names_its_document_and_tensors(document: dict[str, Any]) -> None:
    found = 0
    for _, _, operation in _operations(document):
        for body in (operation.get("requestBody", {}), *operation["responses"].values()):
            if codec.MEDIA_TYPE not in body.get("content", {}):
                continue
            found += 1
            schema = body["content"][codec.MEDIA_TYPE]["schema"]
            assert schema["format"] == "binary"
            assert "metadata `craftbox` holds" in schema["description"]
            assert "tensors: " in schema["description"]
            # What generators take where they know one type only.
            assert next(iter(body["content"])) == "application/json" or len(body["content"]) == 1
    assert found == 7


def test_nothing_private_is_described(document: dict[str, Any]) -> None:
    assert [text for text in _texts(document) if PRIVATE.search(text)] == []
    for name, schema in document["components"]["schemas"].items():
        fields = schema.get("properties", {})
        assert [field for field in fields if PRIVATE_FIELDS.search(field)] == [], name


def test_what_is_hosted_changes_nothing_in_the_description(
    document: dict[str, Any], tmp_path: Path
) -> None:
    other = Settings(
        data_dir=tmp_path, limits=DEFAULT_LIMITS.model_copy(update={"classes": 7}), model="RN50"
    )
    engine: Any = SimpleNamespace(name="RN50")
    app = create_app(other, engine)
    with TestClient(app):
        assert app.openapi() == document


def test_no_answer_has_a_header_that_is_not_described(
    server: Any, document: dict[str, Any]
) -> None:
    with server.database.writing() as connection:
        rates = Rates(requests_per_minute=3)
        secret = create_key(connection, owner="headers", rates=rates, at=now_ms())
    key = {"Authorization": f"Bearer {secret}"}
    once = {**key, "Idempotency-Key": "the-same"}
    body = {"model": server.engine.name}
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        answers = [
            client.get("/v1/models"),
            client.get("/v1/models", headers=key),
            client.post("/v1/image-sets", headers=once, json=body),
            client.post("/v1/image-sets", headers=once, json=body),
            client.post("/v1/image-sets", headers=once, json=body),
            client.get("/v1/receipts/keys"),
        ]
    assert [answer.status_code for answer in answers] == [401, 200, 201, 201, 429, 200]
    assert "idempotency-replayed" in answers[3].headers
    assert {"retry-after", "ratelimit"} <= set(answers[4].headers)
    for answer in answers:
        request = answer.request
        operation = document["paths"][request.url.path][request.method.lower()]
        described = operation["responses"][str(answer.status_code)]["headers"]
        sent = set(answer.headers) - TRANSPORT_HEADERS
        assert sent <= {name.lower() for name in described}, (request.method, request.url)


def test_bounds_of_numbers_in_addresses_are_described(document: dict[str, Any]) -> None:
    bounds = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
    numbers = [
        parameter["schema"]
        for _, _, operation in _operations(document)
        for parameter in operation.get("parameters", [])
        if parameter["schema"].get("type") == "integer"
    ]
    assert numbers
    assert all(len(bounds & schema.keys()) == 2 for schema in numbers), numbers
