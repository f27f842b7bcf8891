from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from craft_server.recording.tape import CallContent
from craft_shared import codec

JSON = "application/json"


def question(
    body: bytes = b"",
    *,
    method: str = "POST",
    path: str = "/v1/predictions",
    query: str = "",
    content_type: str = JSON,
    **headers: str,
) -> CallContent:
    scope: dict[str, Any] = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [
            (name.replace("_", "-").encode(), value.encode())
            for name, value in {"content_type": content_type, **headers}.items()
        ],
    }
    return CallContent.of(scope, body)


def tensors(document: dict[str, Any], codes: Any) -> CallContent:
    body = codec.encode(document, {"codes": np.array(codes, np.float32)})
    return question(body, content_type=codec.MEDIA_TYPE)


def test_who_asks_and_under_which_names_makes_no_difference() -> None:
    plain = question(b'{"a": 1}')
    named = question(
        b'{"a": 1}',
        authorization="Bearer craft_key",
        idempotency_key="run/0/0",
        craft_run="run",
        x_request_id="abc",
        user_agent="other",
    )
    assert named.digest == plain.digest


def test_layout_makes_no_difference_and_content_does() -> None:
    assert question(b'{"a":1,"b":[2]}').digest == question(b'{ "b": [2], "a": 1 }').digest
    assert question(b'{"a":1}').digest != question(b'{"a":2}').digest
    assert question(query="a=1&b=2").digest == question(query="b=2&a=1").digest


@pytest.mark.parametrize(
    "other",
    [
        question(method="PUT"),
        question(path="/v1/usage"),
        question(query="after=1"),
        question(b"{}"),
        question(accept=codec.MEDIA_TYPE),
    ],
    ids=["method", "path", "query", "body", "accept"],
)
def test_each_part_of_a_call_makes_a_difference(other: CallContent) -> None:
    assert other.digest != question().digest


def test_tensors_are_told_apart_by_their_numbers() -> None:
    assert tensors({"a": 1}, [[1, 2]]).digest == tensors({"a": 1}, [[1, 2]]).digest
    assert tensors({"a": 1}, [[1, 2]]).digest != tensors({"a": 1}, [[1, 3]]).digest
    assert tensors({"a": 1}, [[1, 2]]).digest != tensors({"a": 1}, [[1], [2]]).digest


def test_pictures_are_not_kept() -> None:
    picture = "QUJD" * 200
    kept = question(json.dumps({"images": [picture]}).encode())
    assert picture not in kept.json
    other = question(json.dumps({"images": [picture + "QUJD"]}).encode())
    assert other.digest != kept.digest


def test_a_body_that_cannot_be_read_is_told_apart_all_the_same() -> None:
    assert question(b"{").digest != question(b"[").digest
    broken = question(b"1234567890", content_type=codec.MEDIA_TYPE)
    assert broken.digest != question(b"1234567899", content_type=codec.MEDIA_TYPE).digest


def test_it_survives_being_written() -> None:
    asked = tensors({"classes": ["cat", "Katze\u00e4"], "top_k": None}, [[1, 2]])
    assert CallContent.from_json(asked.json) == asked


def test_differences_are_named_where_they_are() -> None:
    recorded = question(b'{"classes": ["cat", "dog"], "context": {"seed": 1}}')
    asked = question(b'{"classes": ["cat"], "context": {"seed": 2}, "top_k": 3}', query="a=1")
    assert asked.differences(recorded) == [
        ("query", "'a=1' was sent, and '' was recorded"),
        ("context.seed", "2 was sent, and 1 was recorded"),
        ("top_k", "3 was sent, and nothing was recorded"),
        ("classes[1]", "'dog' was recorded, and nothing was sent"),
    ]
    assert recorded.differences(recorded) == []
