"""Pages of other origins: what a browser is told, which keeps the rules itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

PAGE, OTHER = "https://app.example", "https://evil.example"
ALLOWED = "access-control-allow-origin"


@pytest.fixture
def shared(serve: Any) -> Iterator[Any]:
    with serve(cors_origins=PAGE) as server:
        yield server


def preflight(server: Any, path: str, origin: str) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
    }
    return httpx.request("OPTIONS", server.url + path, headers=headers)


def test_a_page_of_a_named_origin_may_call_with_a_key_and_read_the_answer(shared: Any) -> None:
    asked = preflight(shared, "/v1/predictions", PAGE)
    assert asked.status_code == 200
    assert asked.headers[ALLOWED] == PAGE
    assert "POST" in asked.headers["access-control-allow-methods"]
    for name in ("authorization", "content-type", "idempotency-key"):
        assert name in asked.headers["access-control-allow-headers"].lower()
    with shared.client() as client:
        answer = client.get("/v1/models", headers={"Origin": PAGE})
    assert answer.headers[ALLOWED] == PAGE
    assert answer.headers["access-control-expose-headers"] == "*"
    assert "Origin" in answer.headers["vary"]


def test_a_page_reads_problems_too(shared: Any) -> None:
    answer = httpx.get(f"{shared.url}/v1/models", headers={"Origin": PAGE})
    assert answer.status_code == 401
    assert answer.headers[ALLOWED] == PAGE


def test_no_cookie_counts(shared: Any) -> None:
    for answer in (
        preflight(shared, "/v1/predictions", PAGE),
        httpx.get(f"{shared.url}/v1/models", headers={"Origin": PAGE, "Cookie": "a=b"}),
    ):
        assert "access-control-allow-credentials" not in answer.headers


def test_a_page_of_another_origin_may_not(shared: Any) -> None:
    asked = preflight(shared, "/v1/predictions", OTHER)
    assert asked.status_code == 400
    assert ALLOWED not in asked.headers
    with shared.client() as client:
        assert ALLOWED not in client.get("/v1/models", headers={"Origin": OTHER}).headers


@pytest.mark.parametrize("path", ["/", "/docs", "/console/sign-in", "/console/", "/metrics"])
def test_the_console_is_no_part_of_it(shared: Any, path: str) -> None:
    assert ALLOWED not in httpx.get(shared.url + path, headers={"Origin": PAGE}).headers
    assert ALLOWED not in preflight(shared, path, PAGE).headers


def test_without_the_setting_nobody_may(server: Any) -> None:
    assert preflight(server, "/v1/predictions", PAGE).status_code == 405
    with server.client() as client:
        answer = client.get("/v1/models", headers={"Origin": PAGE})
    assert not any(name.startswith("access-control") for name in answer.headers)
