"""What a body may hold, looked at before it is parsed; and all bodies that are at work together."""

from __future__ import annotations

import base64
import errno
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import numpy as np
import pytest

from craft_server.api import body as bodies
from craft_shared import codec
from craft_shared.strict_json import MAX_VALUES
from craft_shared.wire import PredictionRequest

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
MEBIBYTE = 2**20
START = b'{"model":"craft-tiny","classes":["a"],"templates":["{}"],'


def problem_of(answer: httpx.Response) -> tuple[int, str, list[str]]:
    problem = answer.json()
    fields = [error["field"] for error in problem["errors"]]
    return answer.status_code, problem["type"].rpartition(":")[2], fields


def pieces(start: bytes, item: bytes, size: int) -> Iterator[bytes]:
    """A body whose length is told by nobody."""
    yield start
    for _ in range(size // 65536):
        yield item * (65536 // len(item))


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("field", ["x", "codes", "rows", "images"])
@pytest.mark.parametrize("item", [b"{},", b"[],", b"1,", b'"",'])
def test_json_of_small_values_is_refused_before_it_is_parsed(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, field: str, item: bytes, chunked: bool
) -> None:
    monkeypatch.setattr("craft_shared.strict_json.jiter.from_json", lambda *_, **__: 1 / 0)
    start = b'{"%s":[' % field.encode()
    content: Any = pieces(start, item, 20 * MEBIBYTE)
    if not chunked:
        content = start + item * (MEBIBYTE // len(item)) + b"0]}"
    answer = client.post("/v1/predictions", content=content, headers=JSON)
    assert problem_of(answer) == (413, "body-too-large", [])
    bound = "more than 16777216 bytes" if chunked else f"{MAX_VALUES} are allowed"
    assert bound in answer.json()["detail"]


def test_json_has_a_bound_of_its_own_and_safetensors_theirs(serve: Any) -> None:
    limits = {"body_bytes": 2000, "json_bytes": 1000, "json_values": 50}
    with serve(limits=limits) as server, server.client() as client:
        card = client.get("/v1/models").json()["models"][0]
        assert {**card["limits"], **limits} == card["limits"]
        for size, status in [(1000, 422), (1001, 413)]:
            content = START[:-1] + b"}" + b" " * (size - len(START))
            answer = client.post("/v1/predictions", content=content, headers=JSON)
            assert answer.status_code == status
        headers = {"Content-Type": codec.MEDIA_TYPE}
        for size, status in [(2000, 422), (2001, 413)]:
            empty = codec.encode({"model": "x", "classes": ["a"]}, {"x": np.zeros(0, np.uint8)})
            tensor = np.zeros(size - len(empty) - 8, np.uint8)
            content = codec.encode({"model": "x", "classes": ["a"]}, {"x": tensor})
            content += b" " * (size - len(content))
            answer = client.post("/v1/predictions", content=content, headers=headers)
            assert (answer.status_code == 413) == (status == 413), answer.text
        content = START + b'"rows":[' + b"1," * 50 + b"1]}"
        answer = client.post("/v1/predictions", content=content, headers=JSON)
        assert "50 are allowed" in answer.json()["detail"]
        document = {"model": "x", "classes": ["a"], "rows": [1] * 50}
        answer = client.post("/v1/predictions", content=codec.encode(document, {}), headers=headers)
        assert "more than 50 values" in answer.json()["detail"]


@pytest.mark.parametrize(
    "codes",
    [
        "[[0.5, true]]",
        "[[1, true]]",
        "[[true, false]]",
        '[[0.5, "1"]]',
        "[[0.5, null]]",
        "[[0.5, [1]]]",
        "[[0.5], 1]",
        "[0.5, 1]",
        "{}",
        '"[[1]]"',
        "[[[0.5]]]",
        "[[1], [1, 2]]",
        "[[1" + "0" * 400 + "]]",
    ],
)
def test_codes_are_lists_of_lists_of_numbers(client: httpx.Client, codes: str) -> None:
    content = START + b'"context":{"dim":2},"codes":' + codes.encode() + b"}"
    answer = client.post("/v1/predictions", content=content, headers=JSON)
    assert problem_of(answer) == (422, "invalid-request", ["codes"])


def test_a_body_is_parsed_once(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    parse = bodies.parse_object

    def counting(*args: Any, **options: Any) -> Any:
        parsed.append(args)
        return parse(*args, **options)

    monkeypatch.setattr(bodies, "parse_object", counting)
    monkeypatch.setattr(PredictionRequest, "model_validate_json", lambda *_, **__: 1 / 0)
    document = {"model": "craft-tiny", "classes": ["a"], "context": {"dim": 2}, "codes": [[1, 2]]}
    answer = client.post("/v1/predictions", json=document)
    assert problem_of(answer) == (422, "invalid-request", ["image_set"])
    assert len(parsed) == 1


@pytest.mark.parametrize(
    "more",
    [
        b'"classes":[' + b"1," * 200_000 + b"1]}",
        b",".join(b'"%d":1' % number for number in range(10_000)) + b"}",
        b'"rows":[' + b'"",' * 200_000 + b'""]}',
        b'"rows":[' + b"{}," * 10_000 + b"{}]}",
    ],
    ids=["classes", "unknown", "rows", "objects"],
)
def test_of_many_things_that_are_wrong_some_are_named(client: httpx.Client, more: bytes) -> None:
    began = time.process_time()
    answer = client.post("/v1/predictions", content=b'{"model":"x",' + more, headers=JSON)
    assert time.process_time() - began < 2
    status, kind, fields = problem_of(answer)
    assert (status, kind) == (422, "invalid-request")
    assert 1 <= len(fields) <= 100


@pytest.mark.parametrize("media_type", ["application/json", codec.MEDIA_TYPE])
def test_files_are_counted_before_they_are_unpacked(client: httpx.Client, media_type: str) -> None:
    count, document = 200_000, {"model": "craft-tiny", "classes": ["a"], "templates": ["{}"]}
    if media_type == "application/json":
        content = json.dumps({**document, "images": [""] * count}).encode()
    else:
        sizes = np.zeros(count, np.int64)
        content = codec.encode(document, {"files": np.zeros(0, np.uint8), "file_sizes": sizes})
    answer = client.post("/v1/predictions", content=content, headers={"Content-Type": media_type})
    assert problem_of(answer) == (422, "invalid-request", ["images"])
    assert "200000 images; 256 are allowed" in answer.json()["detail"]


def test_damaged_tensors_are_no_failure_of_the_server(client: httpx.Client) -> None:
    name = client.get("/v1/models").json()["models"][0]["name"]
    image_set = client.post("/v1/image-sets", json={"model": name}).json()["id"]
    entry = {"dtype": "U8", "shape": [True, 2], "data_offsets": [0, 2]}
    for path in (
        "/v1/predictions",
        f"/v1/image-sets/{image_set}/images",
        "/v1/adapters/x/predictions",
        "/v1/image-sets",
        "/v1/adapters?name=x",
    ):
        for shape in ([True, 2], [0, 10**30], [1] * 70, [1e999]):
            header = json.dumps(
                {"__metadata__": {"craftbox": "{}"}, "files": {**entry, "shape": shape}}
            ).replace("Infinity", "1e999")
            content = struct.pack("<Q", len(header)) + header.encode() + b"ab"
            headers = {"Content-Type": codec.MEDIA_TYPE}
            answer = client.post(path, content=content, headers=headers)
            assert answer.status_code in (400, 404, 422), answer.text


# In flight.


@pytest.fixture
def small(serve: Any) -> Iterator[Any]:
    """A server that works on 4,000 bytes of bodies at a time, of a key at most on half of them."""
    limits = {"body_bytes": 2000, "json_bytes": 2000}
    with serve(limits=limits, bodies_bytes=4000) as server:
        yield server


def begun(server: Any, key: str, size: int, of: int) -> socket.socket:
    """A connection on which so many bytes of a body have come."""
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
    head = (
        f"POST /v1/image-sets HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {of}\r\n\r\n"
    )
    connection.sendall(head.encode() + b" " * size)
    return connection


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_bodies_in_flight_are_bounded_for_a_key_and_in_all(small: Any) -> None:
    def asked(key: str, size: int) -> httpx.Response:
        document = b'{"model":"other"' + b" " * (size - 17) + b"}"
        headers = {"Authorization": f"Bearer {key}", **JSON}
        return httpx.post(f"{small.url}/v1/image-sets", content=document, headers=headers)

    one, two, three = small.key(), small.key(), small.key()
    with ExitStack() as held:
        held.enter_context(begun(small, one, 1200, 2000))
        # The key's own bodies take what it may.
        until(lambda: asked(one, 900).status_code == 429)
        refused = asked(one, 900)
        assert problem_of(refused) == (429, "rate-limited", [])
        assert refused.headers["retry-after"] == "1"
        assert asked(one, 700).status_code == 404
        # It keeps another one from half of what is left and no more.
        assert asked(two, 1400).status_code == 404
        refused = asked(two, 1500)
        assert problem_of(refused) == (503, "overloaded", [])
        assert refused.headers["retry-after"] == "5"
        # However many there are, there is room for one more.
        held.enter_context(begun(small, two, 1300, 1300 + 1))
        until(lambda: asked(three, 800).status_code == 503)
        assert asked(three, 700).status_code == 404
    until(lambda: asked(one, 2000).status_code == 404)


def test_a_body_counts_no_more_once_its_call_has_ended(small: Any) -> None:
    with small.client() as client:
        for size in (1999, 1500, 2000):
            for _ in range(3):
                content = b" " * size
                headers = JSON
                assert client.post("/v1/image-sets", content=content, headers=headers).is_error
        assert client.post("/v1/image-sets", json={"model": "other"}).status_code == 404


def test_nobody_without_a_key_fills_what_bodies_may_take(small: Any) -> None:
    with ExitStack() as held:
        for _ in range(10):
            held.enter_context(begun(small, "craft_aaaaaaaa_b", 2000, 2001))
        with small.client() as client:
            content = b'{"model":"other"' + b" " * 1983 + b"}"
            answer = client.post("/v1/image-sets", content=content, headers=JSON)
            assert answer.status_code == 404


# Forms.


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("path", ["/console/sign-in", "/console/sign-out", "/console/try"])
@pytest.mark.parametrize("media_type", [*FORM.values(), "multipart/form-data; boundary=x", ""])
def test_a_form_has_a_few_kib(server: Any, path: str, media_type: str, chunked: bool) -> None:
    size = 17 * 1024
    content: Any = pieces(b"", b"&", MEBIBYTE) if chunked else b"&" * size
    headers = {"Content-Type": media_type}
    began = time.process_time()
    answer = httpx.post(f"{server.url}{path}", content=content, headers=headers)
    assert time.process_time() - began < 1
    # Who is not signed in sends no form but one; what is no form is not read at all.
    expected = 303 if path != "/console/sign-in" else 413 if media_type else 401
    assert answer.status_code == expected


# Numbers in addresses.


def test_every_number_in_an_address_is_digits_alone(server: Any, client: httpx.Client) -> None:
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    numbers = [
        (path, method, parameter["name"])
        for path, methods in paths.items()
        for method, operation in methods.items()
        for parameter in operation.get("parameters", [])
        if parameter["schema"].get("type") in ("integer", "number")
        and not path.startswith("/v1/admin/")  # which this key may not call
    ]
    assert ("/v1/usage", "get", "after") in numbers
    for path, method, name in numbers:
        for text in (
            "1_0",
            "+1",
            " 1",
            "1 ",
            "1.0",
            "1e2",
            "0x1",
            "",
            "\u0661",
            "\uff11",
            "\u00b2",
            "-0",
            "true",
        ):
            answer = client.request(method, path, params={name: text})
            assert problem_of(answer) == (422, "invalid-request", [name]), text
        for text in ("1", "01"):
            assert client.request(method, path, params={name: text}).status_code == 200


# What the machine lacks.


@pytest.mark.parametrize("failure", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_a_machine_without_descriptors_or_memory_is_overloaded(
    server: Any, picture: Any, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise failure

    with server.client() as client:
        name = client.get("/v1/models").json()["models"][0]["name"]
        image = base64.b64encode(picture(1)).decode()
        document = {"model": name, "classes": ["a"], "templates": ["{}"], "images": [image]}
        with monkeypatch.context() as patch:
            patch.setattr("craft_server.decoding.decoders.Decoders._take", fail)
            answer = client.post("/v1/predictions", json=document)
        assert problem_of(answer) == (503, "overloaded", [])
        assert answer.headers["retry-after"] == "5"
        assert set(client.get("/v1/usage").json()["total"].values()) == {0}
        assert client.post("/v1/predictions", json=document).status_code == 200
