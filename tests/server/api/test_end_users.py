"""Calls that a key makes for its own end users, each within a share of its own."""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from craft_server.clock import now_ms
from craft_server.ledger.budgets import set_budget
from craft_server.ledger.keys import create_key, find_key
from craft_server.ledger.users import set_user_limit
from server.api.test_adapters_api import make, publish
from server.api.test_query_plans import plans  # noqa: F401

Picture = Callable[..., bytes]


@contextmanager
def bounded(server: Any, queries: int | None = None, **attributes: Any) -> Iterator[httpx.Client]:
    """A client with a new key, whose end users may each ask so many queries."""
    with server.database.writing() as connection:
        owner = secrets.token_hex(4)
        key = create_key(connection, owner=owner, at=now_ms(), **attributes)
        if queries is not None:
            key_id = find_key(connection, key.split("_")[1]).key_id
            set_user_limit(connection, key_id, unit="queries", window="lifetime", limit=queries)
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False) as client:
        yield client


def predict(
    client: httpx.Client, picture: bytes, user: str | None = None, prompts: int = 1
) -> httpx.Response:
    (card,) = client.get("/v1/models").json()["models"]
    return client.post(
        "/v1/predictions",
        json={
            "model": card["name"],
            "classes": ["cat", "dog"],
            "templates": ["a photo of a {}."] * prompts,
            "images": [base64.b64encode(picture).decode()],
        },
        headers={} if user is None else {"Craft-User": user},
    )


def spent(client: httpx.Client, user: str) -> tuple[int, int]:
    """What is spent of a user's budget, and what lines say of it."""
    (budget,) = client.get("/v1/budget", params={"user": user}).json()["budgets"]
    assert budget["of"] == "user"
    total = client.get("/v1/usage", params={"user": user}).json()["total"]
    return budget["spent"], total["queries"]


def test_a_user_beyond_its_share_is_refused_and_the_others_go_on(
    server: Any, picture: Picture
) -> None:
    with bounded(server, 3) as client:
        answer = predict(client, picture(), "ann", prompts=2)
        (budget,) = answer.json()["cost"]["budgets"]
        assert (budget["of"], budget["spent"], budget["remaining"]) == ("user", 2, 1)
        refused = predict(client, picture(), "ann", prompts=2)
        assert refused.status_code == 402
        assert refused.json()["detail"] == (
            "this call needs 2 queries and 1 are left in the budget of the end user whom "
            "Craft-User names"
        )
        assert predict(client, picture(), "bob", prompts=3).status_code == 200
        assert predict(client, picture(), prompts=5).status_code == 200
        assert spent(client, "ann") == (2, 2)
        assert spent(client, "bob") == (3, 3)
        assert client.get("/v1/usage").json()["total"]["queries"] == 10
        lines = client.get("/v1/usage").json()["charges"]
        assert [line["user"] for line in lines] == ["ann", "bob", None]


@pytest.mark.parametrize("user", ["", "a b", "=1+1", "-ann", "\u00e4nn", "a" * 129, "a\tb"])
def test_a_name_that_cannot_be_used_is_refused_and_charged_nothing(
    server: Any, picture: Picture, user: str
) -> None:
    with bounded(server, 3) as client:
        (card,) = client.get("/v1/models").json()["models"]
        # What no client should send, but may.
        raw = httpx.Headers({"Craft-User": user.encode("latin-1")})
        answer = client.post("/v1/predictions", json={"model": card["name"]}, headers=raw)
        assert answer.status_code == 422
        (error,) = answer.json()["errors"]
        assert error["field"] == "Craft-User"
        assert client.get("/v1/usage").json()["charges"] == []


@pytest.mark.parametrize(
    "user", ["ann", "user-4711", "_x", "a@example.org", "org:7/u:8", "a" * 128]
)
def test_what_services_call_their_users_can_be_sent(
    server: Any, picture: Picture, user: str
) -> None:
    with bounded(server, 3) as client:
        assert predict(client, picture(), user).status_code == 200
        assert spent(client, user) == (1, 1)


def test_a_key_may_have_to_name_the_user(server: Any, picture: Picture) -> None:
    with bounded(server, require_user=True) as client:
        refused = predict(client, picture())
        assert refused.status_code == 422
        (error,) = refused.json()["errors"]
        assert error["field"] == "Craft-User"
        assert predict(client, picture(), "ann").status_code == 200
        assert client.get("/v1/usage").json()["total"]["requests"] == 1


def test_users_past_the_bound_are_refused(serve: Any, picture: Picture) -> None:
    with serve(users_per_key=1) as server, bounded(server, 3) as client:
        assert predict(client, picture(), "ann").status_code == 200
        refused = predict(client, picture(), "bob")
        assert refused.status_code == 403
        assert refused.json()["type"] == "urn:craftbox:problem:user-limit-reached"
        assert predict(client, picture(), "ann").status_code == 200
        assert client.get("/v1/usage").json()["total"]["requests"] == 2


def test_a_key_with_nothing_left_takes_no_places_of_users(serve: Any, picture: Picture) -> None:
    with serve(users_per_key=1) as server, bounded(server, 3) as client:
        prefix = client.headers["Authorization"].split("_")[1]
        with server.database.writing() as connection:
            key_id, at = find_key(connection, prefix).key_id, now_ms()
            one = {"unit": "queries", "window": "lifetime", "limit": 1}
            set_budget(connection, key_id=key_id, team_id=None, at=at, **one)
        assert predict(client, picture()).status_code == 200
        assert predict(client, picture(), "ann").status_code == 402
        assert predict(client, picture(), "bob").status_code == 402


def test_callers_at_once_get_exactly_each_users_share(stored: Any, picture: Picture) -> None:
    share, calls = 5, 24
    file = picture()
    with bounded(stored, share) as client:

        def call(number: int) -> int:
            return predict(client, file, f"user-{number % 3}").status_code

        with ThreadPoolExecutor(8) as threads:
            statuses = list(threads.map(call, range(calls)))
        assert (statuses.count(200), statuses.count(402)) == (3 * share, calls - 3 * share)
        for number in range(3):
            assert spent(client, f"user-{number}") == (share, share)


def test_an_answer_that_is_given_again_counts_once(server: Any, picture: Picture) -> None:
    with bounded(server, 1) as client:
        client.headers["Idempotency-Key"] = "one"
        assert predict(client, picture(), "ann").status_code == 200
        again = predict(client, picture(), "ann")
        assert (again.status_code, again.headers["Idempotency-Replayed"]) == (200, "true")
        assert spent(client, "ann") == (1, 1)
        assert predict(client, picture(), "bob").json()["type"].endswith("idempotency-key-reused")


def test_who_pays_for_a_call_learns_nothing_of_its_users_and_runs(
    server: Any, picture: Picture
) -> None:
    image = base64.b64encode(picture()).decode()
    with bounded(server) as publisher, bounded(server, 0) as client:
        name = f"p{secrets.token_hex(6)}"
        assert publish(publisher, make(publisher), name).status_code == 201
        terms = {"public": True, "pays": "publisher"}
        owner = publisher.patch(f"/v1/adapters/{name}", json=terms).json()["owner"]
        answer = client.post(
            f"/v1/adapters/{owner}/{name}/predictions",
            json={"images": [image]},
            headers={"Craft-User": "ann", "Craft-Run": "unreleased-product"},
        )
        assert answer.status_code == 200, answer.text
        lines = publisher.get("/v1/usage").json()["charges"]
        assert [(line["user"], line["run"]) for line in lines] == [(None, None)] * 2
        assert spent(client, "ann") == (0, 0)
        assert publisher.get("/v1/usage", params={"user": "ann"}).json()["charges"] == []


def test_an_operator_bounds_each_user_over_the_api(server: Any, picture: Picture) -> None:
    with bounded(server, scopes=["admin"]) as admin:
        wanted = {
            "owner": "bot",
            "require_user": True,
            "budgets": [
                {"unit": "queries", "limit": 9},
                {"unit": "queries", "limit": 2, "window": "day", "per_user": True},
            ],
        }
        made = admin.post("/v1/admin/keys", json=wanted).json()
        assert made["card"]["require_user"] is True
        with httpx.Client(
            base_url=server.url, headers={"Authorization": f"Bearer {made['key']}"}
        ) as client:
            assert predict(client, picture(), "ann", prompts=3).status_code == 402
            budgets = f"/v1/admin/keys/{made['prefix']}/budgets"
            more = {"unit": "queries", "limit": 4, "window": "day", "per_user": True}
            shown = admin.put(budgets, json={"budgets": [more]}).json()["budgets"]
            assert [(b["of"], b["window"], b["limit"]) for b in shown] == [
                ("key", "lifetime", 9),
                ("user", "day", 4),
            ]
            assert predict(client, picture(), "ann", prompts=3).status_code == 200
    with bounded(server, scopes=["admin"], team="a team of users") as admin:
        wanted = {"budgets": [{"unit": "queries", "limit": 1, "per_user": True}]}
        refused = admin.put("/v1/admin/teams/a team of users/budgets", json=wanted)
        assert refused.status_code == 422
        assert "per_user" in refused.text


def test_a_call_that_names_nobody_asks_the_database_nothing_of_users(
    plans: dict[str, list[str]],  # noqa: F811
    serve: Any,
    picture: Picture,
) -> None:
    with serve() as server, bounded(server, 3) as client:
        predict(client, picture())
        plans.clear()
        assert predict(client, picture()).status_code == 200
        without = set(plans)
        assert any(re.match("INSERT INTO charges", sql) for sql in without)
        assert not any("user_limits" in sql for sql in without)
