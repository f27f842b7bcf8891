"""The operator's calls over a real socket: what the commands do, and only for admin keys."""

from __future__ import annotations

import base64
import csv
import io
import json
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from craft_server.clock import now_ms
from craft_server.ledger.keys import create_key
from craft_server.ledger.tables import CALLS, KEY_SECRETS

Picture = Callable[..., bytes]


def with_key(server: Any, key: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False)


def with_admin_key(server: Any) -> httpx.Client:
    with server.database.writing() as connection:
        key = create_key(connection, owner="operator", scopes=["admin"], at=now_ms())
    return with_key(server, key)


@pytest.fixture
def admin(server: Any) -> Iterator[httpx.Client]:
    with with_admin_key(server) as made:
        yield made


def create(admin: httpx.Client, **fields: Any) -> dict[str, Any]:
    made = admin.post("/v1/admin/keys", json={"owner": secrets.token_hex(4), **fields})
    assert made.status_code == 201, made.text
    document: dict[str, Any] = made.json()
    return document


def predict(client: httpx.Client, picture: bytes) -> httpx.Response:
    (card,) = client.get("/v1/models").json()["models"]
    return client.post(
        "/v1/predictions",
        json={
            "model": card["name"],
            "classes": ["cat", "dog"],
            "templates": ["a photo of a {}."],
            "images": [base64.b64encode(picture).decode()],
        },
    )


CALLS_OF_ADMIN = [
    ("POST", "/v1/admin/keys", {"owner": "me"}),
    ("GET", "/v1/admin/keys", None),
    ("POST", "/v1/admin/keys/PREFIX/rotate", {}),
    ("DELETE", "/v1/admin/keys/PREFIX", None),
    ("GET", "/v1/admin/keys/PREFIX/policy", None),
    ("PUT", "/v1/admin/keys/PREFIX/policy", {"output": {"level": "label"}}),
    ("PUT", "/v1/admin/keys/PREFIX/budgets", {"budgets": [{"unit": "queries", "limit": 1}]}),
    ("PUT", "/v1/admin/teams/lab/budgets", {"budgets": [{"unit": "queries", "limit": 1}]}),
    ("POST", "/v1/admin/keys/PREFIX/budgets/top-up", {"budgets": [{"unit": "texts", "amount": 1}]}),
    ("POST", "/v1/admin/teams/lab/budgets/top-up", {"budgets": [{"unit": "texts", "amount": 1}]}),
    ("GET", "/v1/admin/prices", None),
    ("PUT", "/v1/admin/prices/tiny", {"micros": {"queries": 1}}),
    ("GET", "/v1/admin/usage", None),
]


def test_the_calls_listed_here_are_all_there_are(server: Any) -> None:
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    described = {
        (method.upper(), path)
        for path, methods in paths.items()
        if path.startswith("/v1/admin")
        for method in methods
    }
    named = {"PREFIX": "{prefix}", "lab": "{name}", "tiny": "{model}"}
    listed = {
        (method, "/".join(named.get(part, part) for part in path.split("/")))
        for method, path, _ in CALLS_OF_ADMIN
    }
    assert described == listed


@pytest.mark.parametrize(("method", "path", "body"), CALLS_OF_ADMIN)
def test_a_key_without_the_scope_may_do_nothing_of_it(
    server: Any, admin: httpx.Client, client: httpx.Client, method: str, path: str, body: Any
) -> None:
    prefix = client.headers["authorization"].split("_")[1]
    before = admin.get("/v1/admin/keys").json()
    refused = client.request(method, path.replace("PREFIX", prefix), json=body)
    assert refused.status_code == 403
    assert refused.json()["type"] == "urn:craftbox:problem:forbidden"
    assert "'admin'" in refused.json()["detail"]
    anonymous = httpx.request(method, server.url + path.replace("PREFIX", prefix), json=body)
    assert anonymous.status_code == 401
    assert admin.get("/v1/admin/keys").json() == before
    assert client.get("/v1/budget").json() == {"budgets": []}


def test_an_admin_key_may_not_predict_unless_it_has_that_scope(
    admin: httpx.Client, picture: Picture
) -> None:
    assert predict(admin, picture()).status_code == 403


def test_a_made_key_works_within_its_budgets_until_it_is_revoked(
    stored: Any, picture: Picture
) -> None:
    with with_admin_key(stored) as admin:
        made = create(admin, name="laptop", budgets=[{"unit": "queries", "limit": 1}])
        assert (made["card"]["name"], made["card"]["prefix"]) == ("laptop", made["prefix"])
        with with_key(stored, made["key"]) as client:
            assert predict(client, picture()).status_code == 200
            assert predict(client, picture()).status_code == 402
            path = f"/v1/admin/keys/{made['prefix']}"
            top_up = {"budgets": [{"unit": "queries", "amount": 1}]}
            answer = admin.post(f"{path}/budgets/top-up", json=top_up)
            assert [budget["limit"] for budget in answer.json()["budgets"]] == [2]
            assert predict(client, picture()).status_code == 200
            revoked = admin.delete(path)
            assert revoked.json()["revoked_at"]
            assert client.get("/v1/budget").status_code == 401
            assert admin.delete(path).json() == revoked.json()


def test_both_secrets_work_while_a_key_is_rotated(server: Any, admin: httpx.Client) -> None:
    made = create(admin)
    path = f"/v1/admin/keys/{made['prefix']}/rotate"
    rotated = admin.post(path, json={"overlap_seconds": 3600}).json()
    keys = [made["key"], rotated["key"]]
    with with_key(server, keys[0]) as old, with_key(server, keys[1]) as new:
        assert (old.get("/v1/budget").status_code, new.get("/v1/budget").status_code) == (200, 200)
        assert admin.post(path, json={"overlap_seconds": 0}).status_code == 200
        assert (old.get("/v1/budget").status_code, new.get("/v1/budget").status_code) == (401, 401)


def test_a_key_expires(server: Any, admin: httpx.Client) -> None:
    made = create(admin, expires_at="2020-01-01T00:00:00+01:00")
    assert made["card"]["expires_at"] == "2019-12-31T23:00:00.000Z"
    with with_key(server, made["key"]) as client:
        assert client.get("/v1/budget").status_code == 401


def test_a_key_may_expire_in_the_last_moment_that_can_be_written(admin: httpx.Client) -> None:
    made = create(admin, expires_at="9999-12-31T23:59:59.999999Z")
    assert made["card"]["expires_at"].startswith("9999-12-31T23:59:59.99")


def test_a_repeated_call_makes_one_key_and_shows_its_secret_once(
    stored: Any,
) -> None:
    headers = {"Idempotency-Key": "make-one"}
    with with_admin_key(stored) as admin:
        first = admin.post("/v1/admin/keys", json={"owner": "me"}, headers=headers)
        again = admin.post("/v1/admin/keys", json={"owner": "me"}, headers=headers)
        assert again.status_code == 201
        assert again.headers["idempotency-replayed"] == "true"
        assert again.json() == {**first.json(), "key": None}
        other = admin.post("/v1/admin/keys", json={"owner": "you"}, headers=headers)
        assert other.json()["type"] == "urn:craftbox:problem:idempotency-key-reused"
        owners = [key["owner"] for key in admin.get("/v1/admin/keys").json()["keys"]]
    assert owners.count("me") == 1
    secret = first.json()["key"].split("_", 2)[2]
    with stored.database.reading() as connection:
        rows = [
            *connection.execute(sa.select(CALLS)).all(),
            *connection.execute(sa.select(KEY_SECRETS)).all(),
        ]
    assert len(rows) == 3
    assert not any(secret in str(value) for row in rows for value in row)


def test_repeated_calls_at_once_top_up_once(stored: Any) -> None:
    with with_admin_key(stored) as admin:
        made = create(admin, budgets=[{"unit": "queries", "limit": 1}])

        def call(_number: int) -> int:
            return admin.post(
                f"/v1/admin/keys/{made['prefix']}/budgets/top-up",
                json={"budgets": [{"unit": "queries", "amount": 5}]},
                headers={"Idempotency-Key": "once"},
            ).status_code

        with ThreadPoolExecutor(8) as threads:
            statuses = list(threads.map(call, range(16)))
        assert set(statuses) <= {200, 409}
        assert 200 in statuses
        with with_key(stored, made["key"]) as client:
            (budget,) = client.get("/v1/budget").json()["budgets"]
    assert budget["limit"] == 6


def test_a_teams_budget_bounds_all_its_keys(stored: Any, picture: Picture) -> None:
    with with_admin_key(stored) as admin:
        first, second = create(admin, team="a/b lab"), create(admin, team="a/b lab")
        body = {"budgets": [{"unit": "queries", "window": "month", "limit": 1}]}
        set_ = admin.put("/v1/admin/teams/a%2Fb%20lab/budgets", json=body)
        assert [budget["of"] for budget in set_.json()["budgets"]] == ["team"]
        with with_key(stored, first["key"]) as one, with_key(stored, second["key"]) as two:
            assert predict(one, picture()).status_code == 200
            refused = predict(two, picture())
            assert refused.status_code == 402
            assert "in the team's budget" in refused.json()["detail"]
            top_up = {"budgets": [{"unit": "queries", "window": "month", "amount": 1}]}
            path = "/v1/admin/teams/a%2Fb%20lab/budgets/top-up"
            assert admin.post(path, json=top_up).status_code == 200
            assert predict(two, picture()).status_code == 200
            assert predict(one, picture()).status_code == 402


def test_prices_bound_a_key_whose_budget_is_money(stored: Any, picture: Picture) -> None:
    name = stored.engine.name
    with with_admin_key(stored) as admin:
        set_ = admin.put(f"/v1/admin/prices/{name}", json={"micros": {"queries": 70, "texts": 15}})
        assert set_.json() == {"micros": {"queries": 70, "texts": 15}}
        assert admin.get("/v1/admin/prices").json()["models"] == {name: set_.json()["micros"]}
        made = create(admin, budgets=[{"unit": "cost_micros", "limit": 199}])
        with with_key(stored, made["key"]) as client:
            assert predict(client, picture()).json()["cost"]["cost_micros"] == 100
            assert predict(client, picture()).status_code == 402
            admin.put(f"/v1/admin/prices/{name}", json={"micros": {"queries": 69}})
            assert predict(client, picture()).json()["cost"]["cost_micros"] == 99
            assert client.get("/v1/usage").json()["cost_micros"] == 199


def test_usage_is_exported_in_both_formats(stored: Any, picture: Picture) -> None:
    with with_admin_key(stored) as admin:
        made, other = create(admin, team="lab"), create(admin)
        for key in (made, other, made):
            with with_key(stored, key["key"]) as client:
                assert predict(client, picture()).status_code == 200
        as_csv = admin.get("/v1/admin/usage", params={"format": "csv"})
        assert as_csv.headers["content-type"].startswith("text/csv")
        rows = list(csv.DictReader(io.StringIO(as_csv.text)))
        params = {"format": "jsonl", "key": made["prefix"]}
        as_lines = admin.get("/v1/admin/usage", params=params)
        assert as_lines.headers["content-type"].startswith("application/jsonl")
        lines = [json.loads(line) for line in as_lines.text.splitlines()]
        assert [row["key"] for row in rows] == [key["prefix"] for key in (made, other, made)]
        assert [line["team"] for line in lines] == ["lab", "lab"]
        assert {line["queries"] for line in lines} == {1}
        (model,) = {line["model"] for line in lines}
        for chosen, found in (
            ({"team": "lab"}, 2),
            ({"model": model}, 3),
            ({"model": model, "team": "lab", "key": other["prefix"]}, 0),
            ({"model": "another"}, 0),
            ({"adapter": "lab/pets"}, 0),
        ):
            answer = admin.get("/v1/admin/usage", params={"format": "jsonl", **chosen})
            assert len(answer.text.splitlines()) == found, chosen
        later = admin.get("/v1/admin/usage", params={"since": "2999-01-01T00:00:00Z"})
        assert list(csv.DictReader(io.StringIO(later.text))) == []


def test_an_export_of_many_pages_lists_every_line_once(
    server: Any, admin: httpx.Client, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("craft_server.ledger.exports.LINES_A_PAGE", 2)
    made = create(admin)
    with with_key(server, made["key"]) as client:
        for _ in range(5):
            assert predict(client, picture()).status_code == 200
        ids = [line["id"] for line in client.get("/v1/usage").json()["charges"]]
    params = {"format": "jsonl", "key": made["prefix"]}
    with admin.stream("GET", "/v1/admin/usage", params=params) as answer:
        assert "content-length" not in answer.headers
        assert [json.loads(line)["line"] for line in answer.iter_lines()] == ids


BAD_ORDERS: list[tuple[str, str, Any, int, str]] = [
    ("POST", "keys", {"owner": ""}, 422, "owner"),
    ("POST", "keys", {"owner": "a\0b"}, 422, "owner"),
    ("POST", "keys", {"owner": "me", "scopes": ["root"]}, 422, "scopes[0]"),
    ("POST", "keys", {"owner": "me", "scopes": []}, 422, "scopes"),
    ("POST", "keys", {"owner": "me", "expires_at": "2030-01-01T00:00:00"}, 422, "expires_at"),
    ("POST", "keys", {"owner": "me", "expires_at": "9999-12-31T23:59:59-00:01"}, 422, "9999"),
    ("POST", "keys", {"owner": "me", "expires_at": "0001-01-01T00:00:00+00:01"}, 422, "9999"),
    ("POST", "keys", {"owner": "me", "concurrency": 0}, 422, "concurrency"),
    ("POST", "keys", {"owner": "me", "budgets": [{"unit": "x"}]}, 422, "budgets[0].unit"),
    ("POST", "keys/abcdefgh/rotate", {}, 404, "no key"),
    ("POST", "keys/abcdefgh/rotate", {"overlap_seconds": -1}, 422, "overlap_seconds"),
    ("DELETE", "keys/abcdefgh", None, 404, "no key"),
    ("PUT", "keys/a%00/budgets", {"budgets": [{"unit": "texts", "limit": 1}]}, 404, "no key"),
    ("PUT", "teams/nobody/budgets", {"budgets": [{"unit": "texts", "limit": 1}]}, 404, "team"),
    ("PUT", "teams/a%00/budgets", {"budgets": [{"unit": "texts", "limit": 1}]}, 422, "name"),
    ("PUT", "prices/a%00", {"micros": {"queries": 1}}, 422, "model"),
    ("PUT", "prices/tiny", {"micros": {"cost_micros": 1}}, 422, "micros"),
    ("PUT", "prices/tiny", {"micros": {"queries": 10**10}}, 422, "1000000000"),
    ("GET", "usage?format=xlsx", None, 422, "format"),
    ("GET", "usage?since=yesterday", None, 422, "since"),
    ("GET", "usage?key=abcdefgh", None, 404, "no key"),
    ("GET", "usage?team=nobody", None, 404, "no team"),
    *(("GET", f"usage?{name}=a%00", None, 422, name) for name in ("team", "model", "adapter")),
]


def test_a_bad_order_is_told(stored: Any) -> None:
    with with_admin_key(stored) as admin:
        for method, path, body, status, words in BAD_ORDERS:
            refused = admin.request(method, f"/v1/admin/{path}", json=body)
            assert refused.status_code == status, (path, body, refused.text)
            assert refused.headers["content-type"] == "application/problem+json"
            assert words in refused.json()["detail"]


def test_what_cannot_be_set_or_added_changes_nothing(
    server: Any, admin: httpx.Client, picture: Picture
) -> None:
    made = create(admin, budgets=[{"unit": "queries", "limit": 5}])
    path = f"/v1/admin/keys/{made['prefix']}/budgets"
    with with_key(server, made["key"]) as client:
        assert predict(client, picture()).status_code == 200
        before = client.get("/v1/budget").json()
        limits = [{"unit": "texts", "limit": 7}, {"unit": "queries", "limit": 0}]
        refused = admin.put(path, json={"budgets": limits})
        assert refused.status_code == 422
        assert "1 queries (lifetime) are spent" in refused.json()["detail"]
        amounts = [{"unit": "queries", "amount": 1}, {"unit": "images", "amount": 1}]
        refused = admin.post(f"{path}/top-up", json={"budgets": amounts})
        assert refused.status_code == 422
        assert "no budget on images (lifetime)" in refused.json()["detail"]
        amounts = [{"unit": "queries", "amount": 10**15}] * 100
        refused = admin.post(f"{path}/top-up", json={"budgets": amounts})
        assert refused.status_code == 422
        assert "queries (lifetime) would be more than" in refused.json()["detail"]
        assert client.get("/v1/budget").json() == before
    admin.delete(f"/v1/admin/keys/{made['prefix']}")
    refused = admin.post(f"/v1/admin/keys/{made['prefix']}/rotate", json={})
    assert refused.status_code == 422
    assert "revoked" in refused.json()["detail"]


def test_a_policy_is_made_with_its_key_shown_and_changed_at_once(
    stored: Any, picture: Picture
) -> None:
    with with_admin_key(stored) as admin:
        made = create(admin, policies=[{"output": {"level": "label"}}])
        path = f"/v1/admin/keys/{made['prefix']}/policy"
        shown = admin.get(path).json()["policies"]
        assert [(one["model"], one["output"]["level"]) for one in shown] == [(None, "label")]
        with with_key(stored, made["key"]) as client:
            assert "log_probs" not in predict(client, picture()).json()
            (card,) = client.get("/v1/models").json()["models"]
            wanted = {
                "model": card["name"],
                "output": {"level": "probs", "decimals": 2, "noise": 0.5},
                "prompts_per_image_set": 9,
            }
            answer = admin.put(path, json=wanted)
            assert answer.status_code == 200, answer.text
            assert [one["model"] for one in answer.json()["policies"]] == [None, card["name"]]
            assert admin.get(path).json() == answer.json()
            (card,) = client.get("/v1/models").json()["models"]
            assert card["prompts_per_image_set"] == 9
            assert "probs" in predict(client, picture()).json()
            assert admin.put(path, json={"model": card["name"]}).status_code == 200
            assert "log_probs" in predict(client, picture()).json()


def test_a_policy_that_contradicts_itself_or_is_nobodys_is_refused(admin: httpx.Client) -> None:
    path = f"/v1/admin/keys/{create(admin)['prefix']}/policy"
    for output in ({"level": "top_k"}, {"level": "label", "k": 1}, {"noise": -1}):
        answer = admin.put(path, json={"output": output})
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["field"].startswith("output")
    assert admin.get(path).json() == {"policies": []}
    assert admin.put("/v1/admin/keys/aaaaaaaa/policy", json={}).status_code == 404
    assert admin.get("/v1/admin/keys/aaaaaaaa/policy").status_code == 404


def test_keys_can_be_asked_for_in_pages(serve: Any) -> None:
    with serve() as server, with_admin_key(server) as admin:
        made = [create(admin)["prefix"] for _ in range(4)]
        rotated = admin.post(f"/v1/admin/keys/{made[1]}/rotate", json={}).json()["prefix"]
        whole = admin.get("/v1/admin/keys").json()
        pages, after = [], 0
        while after is not None:
            page = admin.get("/v1/admin/keys", params={"limit": 2, "after": after}).json()
            pages.append(page["keys"])
            after = page["next_after"]
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [card for page in pages for card in page] == whole["keys"]
    assert whole["next_after"] is None
    assert [card["prefix"] for card in whole["keys"]][1:] == [made[0], rotated, *made[2:]]
    assert whole["keys"][2]["prefixes"] == [rotated, made[1]]
