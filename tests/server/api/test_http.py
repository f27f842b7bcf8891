"""What all calls share: keys, request ids, body limit, problems, the API's description."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from craft_server.clock import now_ms
from craft_server.ledger.keys import revoke_key
from craft_shared import codec
from craft_shared.problems import MEDIA_TYPE

GUARDED = [
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("POST", "/v1/image-sets"),
    ("GET", "/v1/image-sets/x"),
    ("DELETE", "/v1/image-sets/x"),
    ("POST", "/v1/image-sets/x/images"),
    ("POST", "/v1/predictions"),
    ("POST", "/v1/zero-shot-image-classification"),
    ("GET", "/v1/usage"),
    ("GET", "/v1/budget"),
    ("POST", "/v1/adapters"),
    ("GET", "/v1/adapters"),
    ("GET", "/v1/adapters/x"),
    ("GET", "/v1/adapters/x/versions"),
    ("GET", "/v1/adapters/x/settings"),
    ("GET", "/v1/adapters/x/usage"),
    ("PUT", "/v1/adapters/x/restore"),
    ("PATCH", "/v1/adapters/x"),
    ("DELETE", "/v1/adapters/x"),
    ("POST", "/v1/adapters/x/predictions"),
    ("DELETE", "/v1/answers/x"),
    ("GET", "/v1/receipts"),
    ("GET", "/v1/runs"),
    ("PUT", "/v1/runs/x"),
    ("GET", "/v1/runs/x"),
    ("DELETE", "/v1/runs/x"),
    ("PUT", "/v1/runs/x/points"),
    ("POST", "/v1/admin/keys"),
    ("GET", "/v1/admin/keys"),
    ("POST", "/v1/admin/keys/x/rotate"),
    ("DELETE", "/v1/admin/keys/x"),
    ("GET", "/v1/admin/keys/x/policy"),
    ("PUT", "/v1/admin/keys/x/policy"),
    ("PUT", "/v1/admin/keys/x/budgets"),
    ("PUT", "/v1/admin/teams/x/budgets"),
    ("POST", "/v1/admin/keys/x/budgets/top-up"),
    ("POST", "/v1/admin/teams/x/budgets/top-up"),
    ("PUT", "/v1/runs/x/evaluation"),
    ("GET", "/v1/admin/prices"),
    ("PUT", "/v1/admin/prices/x"),
    ("GET", "/v1/admin/usage"),
]
OPEN = [
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/v1/receipts/keys"),
]


@pytest.mark.parametrize(
    "header", [None, "", "Basic abc", "Bearer", "Bearer craft_x_y", "Bearer \xe9"]
)
def test_every_call_needs_a_key(server: Any, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    with httpx.Client(base_url=server.url, headers=headers) as anonymous:
        for method, path in GUARDED:
            answer = anonymous.request(method, path)
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["type"] == "urn:craftbox:problem:unauthenticated"


def test_the_list_of_guarded_calls_is_complete(server: Any) -> None:
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    described = {
        (method.upper(), re.sub(r"\{[a-z_]+\}", "x", path))
        for path, methods in paths.items()
        for method in methods
    }
    assert described == {*GUARDED, *OPEN}


def test_a_revoked_key_is_refused_at_once(server: Any) -> None:
    with server.client() as client:
        assert client.get("/v1/models").status_code == 200
        with server.database.writing() as connection:
            revoke_key(connection, client.headers["authorization"].split("_")[1], now_ms())
        assert client.get("/v1/models").status_code == 401


def test_life_and_readiness_need_no_key(server: Any) -> None:
    assert httpx.get(f"{server.url}/livez").json() == {"status": "ok"}
    assert httpx.get(f"{server.url}/readyz").status_code == 200
    assert httpx.get(f"{server.url}/docs").status_code == 200


@pytest.mark.parametrize("given", ["abc-1.2_3", "x" * 64])
def test_a_sane_request_id_is_taken_over(server: Any, given: str) -> None:
    answer = httpx.get(f"{server.url}/nowhere", headers={"X-Request-Id": given})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a;b", "<script>"])
def test_another_request_id_is_replaced(server: Any, given: str) -> None:
    answer = httpx.get(f"{server.url}/livez", headers={"X-Request-Id": given})
    assert answer.headers["x-request-id"] not in ("", given)


@pytest.mark.parametrize(
    ("method", "path", "status", "slug"),
    [
        ("GET", "/nowhere", 404, "not-found"),
        ("GET", "/v1/models/", 404, "not-found"),
        ("PUT", "/v1/models", 405, "method-not-allowed"),
        ("PATCH", "/livez", 405, "method-not-allowed"),
    ],
)
def test_the_routers_own_errors_are_problems(
    server: Any, method: str, path: str, status: int, slug: str
) -> None:
    answer = httpx.request(method, server.url + path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.json()["type"] == f"urn:craftbox:problem:{slug}"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("after=-1", "after"),
        ("after=x", "after"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        (f"after={2**63}", "after"),
    ],
)
def test_bad_query_parameters_are_named(client: httpx.Client, query: str, field: str) -> None:
    answer = client.get(f"/v1/usage?{query}")
    assert answer.status_code == 422
    assert answer.json()["type"] == "urn:craftbox:problem:invalid-request"
    assert [error["field"] for error in answer.json()["errors"]] == [field]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_past_the_limit_is_refused(serve: Any, chunked: bool) -> None:
    with serve(limits={"body_bytes": 1000}) as server, server.client() as client:
        fits = b" " * 998 + b"{}"
        for body, status in ((fits, 422), (b" " + fits, 413)):
            content = iter([body[:500], body[500:]]) if chunked else body
            answer = client.post(
                "/v1/predictions", content=content, headers={"Content-Type": "application/json"}
            )
            assert answer.status_code == status, answer.text
        assert answer.json()["type"] == "urn:craftbox:problem:body-too-large"


def test_a_refused_method_names_all_that_the_resource_has(server: Any) -> None:
    with server.client() as client:
        for path, allowed in [
            ("/v1/adapters", "GET, POST"),
            ("/v1/adapters/owner/name", "DELETE, GET, PATCH"),
            ("/v1/adapters/owner/name/predictions", "POST"),
            ("/v1/runs/x", "DELETE, GET, PUT"),
        ]:
            answer = client.options(path)
            assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)


def test_an_address_may_hold_a_line_break(client: httpx.Client) -> None:
    assert client.delete("/v1/answers/a%0Ab").status_code == 204
    assert client.get("/v1/adapters/a%0Ab").json()["type"].endswith("adapter-not-found")


@pytest.mark.parametrize("units", [{"texts": 2**53 + 1}, {"texts": True}, {"texts": "8"}])
def test_amounts_are_read_strictly(client: httpx.Client, units: dict[str, Any]) -> None:
    client.put("/v1/runs/x", json={"title": "x"})
    point = {"sequence": 1, "generation": 1, "queries": 1, "units": units}
    answer = client.put("/v1/runs/x/points", json={"points": [point]})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (
        422,
        "points[0].units.texts",
    )


def test_8_0_is_an_integer(client: httpx.Client) -> None:
    answer = client.put("/v1/runs/x", json={"title": "x", "budget": 8.0})
    assert answer.json()["budget"] == 8


def test_an_integer_past_2_to_the_53rd_may_be_written_as_a_float(client: httpx.Client) -> None:
    (card,) = client.get("/v1/models").json()["models"]
    context = {"dim": 4, "seed": 1e18}
    body = {"model": card["name"], "classes": ["a"], "context": context, "codes": [[0, 0, 0, 0]]}
    answer = client.post("/v1/predictions", json=body)
    assert [error["field"] for error in answer.json()["errors"]] == ["image_set"]


@pytest.mark.parametrize("time", ["0.5", "1700000000", "2026-01-31", "2026-01-31T12:00:00"])
def test_a_time_is_written_as_rfc_3339_has_it(client: httpx.Client, time: str) -> None:
    answer = client.get("/v1/receipts", params={"since": time})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "since")


def test_the_description_covers_both_media_types_and_problems(server: Any) -> None:
    document = httpx.get(f"{server.url}/openapi.json").json()
    operation = document["paths"]["/v1/predictions"]["post"]
    for content in (
        operation["requestBody"]["content"],
        operation["responses"]["200"]["content"],
    ):
        assert set(content) == {"application/json", codec.MEDIA_TYPE}
    assert set(operation["responses"]) >= {"200", "400", "401", "402", "404", "413", "415", "422"}
    assert operation["security"] == [{"HTTPBearer": []}]
    for path in document["paths"].values():
        for described in path.values():
            assert described["tags"]
            assert described["description"]
    _check_references(document, document)


def _check_references(part: Any, document: dict[str, Any]) -> None:
    if isinstance(part, dict):
        if "$ref" in part:
            kind, name = part["$ref"].removeprefix("#/components/").split("/")
            assert name in document["components"][kind]
        for value in part.values():
            _check_references(value, document)
    elif isinstance(part, list):
        for value in part:
            _check_references(value, document)
