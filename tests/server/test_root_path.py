"""A server that a proxy offers below a path: who may name the path, and what bears it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from craft_server.root_path import OWN
from craft_server.settings import Settings

HOSTILE = [
    "//evil.example",
    "/craft//evil.example",
    "https://evil.example",
    "javascript:alert(1)",
    '/craft"onload="alert(1)',
    "/craft'><script>",
    "/craft\\evil",
    "/craft, /evil",
    "/craft?x=1",
    "/craft#x",
    "/../craft",
    "/craft/..",
    "/./craft",
    "/%63raft",
    "/cr\u00e4ft",
    "/{{ root }}",
    "craft",
    "/v1",
    "/api/v1",
    "/console",
    "/" + "a" * 10_000,
]


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("", ""),
        ("/", ""),
        ("/craft", "/craft"),
        ("/craft/", "/craft"),
        ("/~a/b.c-d_e", "/~a/b.c-d_e"),
    ],
)
def test_a_path_is_taken_without_its_last_slash(given: str, path: str) -> None:
    assert Settings(root_path=given).root_path == path


@pytest.mark.parametrize("given", [*HOSTILE, "/craft\r\nSet-Cookie: a=b", "/craft\n", "/cr aft"])
def test_what_is_no_path_on_this_host_is_refused(given: str) -> None:
    with pytest.raises(ValidationError, match="root_path"):
        Settings(root_path=given)


def test_no_address_of_the_server_can_be_taken_for_its_root(server: Any) -> None:
    # A router that is part of the application is one of its routes.
    routers = [getattr(route, "original_router", None) for route in server.app.routes]
    parts = [
        router.routes if router else [route]
        for router, route in zip(routers, server.app.routes, strict=True)
    ]
    paths = {route.path for part in parts for route in part}
    assert {path.split("/")[1] for path in paths} - {""} == {*OWN}


def described(http: httpx.Client, path: str, **options: Any) -> Any:
    """What the description calls the server's address; None if it does not."""
    return http.get(f"{path}/openapi.json", **options).json().get("servers")


def test_addresses_are_those_of_the_path_whether_the_proxy_takes_it_off_or_not(serve: Any) -> None:
    with serve(root_path="/craft") as running, running.client() as http:
        for path in ("", "/craft"):
            assert http.get(f"{path}/livez").json() == {"status": "ok"}
            assert http.get(f"{path}/v1/usage").status_code == 200
            assert described(http, path) == [{"url": "/craft"}]
            assert http.get(f"{path}/").headers["location"] == "/craft/console/sign-in"
        assert http.get("/craft").headers["location"] == "/craft/console/sign-in"
        lost = http.get("/craft/v1/none").json()
        assert lost["detail"] == "GET /craft/v1/none: Not Found"
        assert lost["type"] == "urn:craftbox:problem:not-found"
        assert http.get("/craftier/livez").status_code == 404


def test_a_trusted_proxy_names_the_path(server: Any) -> None:
    with server.client() as http:
        for prefix in ("/craft", "/craft/"):
            named = {"X-Forwarded-Prefix": prefix}
            assert described(http, "", headers=named) == [{"url": "/craft"}]
            assert described(http, "/craft", headers=named) == [{"url": "/craft"}]
        # The next call's proxy may name another, or none.
        assert described(http, "") is None


def test_another_peer_names_nothing(server: Any) -> None:
    # Only 127.0.0.1 is trusted, by default.
    transport = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(base_url=server.url, transport=transport) as http:
        named = {"X-Forwarded-Prefix": "/craft"}
        assert described(http, "", headers=named) is None
        answer = http.get("/console/sign-in", headers=named)
        assert answer.status_code == 200
        assert "/craft/" not in answer.text


def test_the_operators_word_comes_before_a_proxys(serve: Any) -> None:
    with serve(root_path="/craft") as running, running.client() as http:
        named = {"X-Forwarded-Prefix": "/other"}
        assert described(http, "", headers=named) == [{"url": "/craft"}]
        assert "/other" not in http.get("/console/sign-in", headers=named).text


@pytest.mark.parametrize("prefix", HOSTILE)
def test_a_hostile_prefix_changes_nothing_and_is_not_reflected(server: Any, prefix: str) -> None:
    named = {"X-Forwarded-Prefix": prefix.encode("latin-1")}
    ways = ("/", "/console/sign-in", "/console/none", "/docs", "/openapi.json", "/v1/none", "/none")
    with server.client() as http:
        for address in ways:
            plain, asked = http.get(address), http.get(address, headers=named)
            assert asked.status_code == plain.status_code
            assert without_ids(asked) == without_ids(plain)


def test_two_prefixes_are_none(server: Any) -> None:
    with server.client() as http:
        twice = [("X-Forwarded-Prefix", "/craft"), ("X-Forwarded-Prefix", "/evil")]
        assert described(http, "", headers=twice) is None


def without_ids(answer: httpx.Response) -> tuple[dict[str, str], str]:
    """Headers and text of an answer without what tells it from others of its kind."""
    own = answer.headers["x-request-id"]
    left = {name: value for name, value in answer.headers.items() if name not in ("date",)}
    return json.loads(json.dumps(left).replace(own, "")), answer.text.replace(own, "")
