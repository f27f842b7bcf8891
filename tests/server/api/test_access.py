"""What a key may do: scopes, expiry, rate limits, concurrency, its own and its team's budgets."""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

import httpx
import pytest

from craft_server.clock import now_ms
from craft_server.ledger.budgets import set_budget
from craft_server.ledger.keys import Rates, Scope, create_key, find_key
from craft_server.rate_limits import WINDOW_SECONDS
from craft_shared import codec
from craft_shared.units import Measure
from craft_shared.wire import Window

Picture = Callable[..., bytes]


@contextmanager
def client_with(server: Any, **fields: Any) -> Iterator[httpx.Client]:
    """A client whose key has been made with `fields`."""
    with server.database.writing() as connection:
        secret = create_key(connection, **{"owner": secrets.token_hex(4), "at": now_ms(), **fields})
    headers = {"Authorization": f"Bearer {secret}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False) as made:
        yield made


def bound(server: Any, client: httpx.Client, unit: str, limit: int, **fields: Any) -> None:
    """Sets a budget of the client's key, or of its team with `team=True`."""
    entry = entry_of(server, client)
    team = fields.pop("team", False)
    with server.database.writing() as connection:
        set_budget(
            connection,
            key_id=None if team else entry.key_id,
            team_id=entry.team_id if team else None,
            unit=cast(Measure, unit),
            window=cast(Window, fields.pop("window", "lifetime")),
            limit=limit,
            at=now_ms(),
        )


def entry_of(server: Any, client: httpx.Client) -> Any:
    with server.database.reading() as connection:
        return find_key(connection, client.headers["authorization"].split("_")[1])


def predict(client: httpx.Client, picture: bytes, prompts: int = 1) -> httpx.Response:
    return client.post(
        "/v1/predictions",
        json={
            "model": "craft-tiny",
            "classes": ["cat", "dog"],
            "templates": ["a photo of a {}."] * prompts,
            "images": [base64.b64encode(picture).decode()],
        },
    )


def check(answer: httpx.Response, status: int, slug: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.json()["type"] == f"urn:craftbox:problem:{slug}"


def spent(client: httpx.Client) -> dict[tuple[str, str, str], tuple[int, int]]:
    return {
        (budget["unit"], budget["of"], budget["window"]): (budget["spent"], budget["reserved"])
        for budget in client.get("/v1/budget").json()["budgets"]
    }


@pytest.fixture
def _early_in_a_minute() -> None:
    """Begins early enough in a window that the test ends in it: the next one counts it in part."""
    left = WINDOW_SECONDS - time.time() % WINDOW_SECONDS
    if left < 10:
        time.sleep(left)


# --- scopes and expiry ----------------------------------------------------------------------------

SCOPED: list[tuple[Scope, str, str]] = [
    ("predict", "POST", "/v1/predictions"),
    ("predict", "POST", "/v1/image-sets"),
    ("predict", "GET", "/v1/image-sets/x"),
    ("predict", "DELETE", "/v1/image-sets/x"),
    ("predict", "POST", "/v1/image-sets/x/images"),
    ("predict", "GET", "/v1/adapters"),
    ("predict", "GET", "/v1/adapters/x"),
    ("predict", "POST", "/v1/adapters/x/predictions"),
    ("publish", "POST", "/v1/adapters?name=x"),
    ("publish", "DELETE", "/v1/adapters/x"),
    ("publish", "PATCH", "/v1/adapters/x"),
    ("publish", "PUT", "/v1/adapters/x/restore"),
    ("publish", "GET", "/v1/adapters/x/settings"),
    ("publish", "GET", "/v1/adapters/x/usage"),
    ("predict", "GET", "/v1/adapters/x/versions"),
]


@pytest.mark.parametrize(("scope", "method", "path"), SCOPED)
def test_a_call_needs_its_scope(server: Any, scope: Scope, method: str, path: str) -> None:
    others: list[Scope] = [
        other for other in cast(list[Scope], ["predict", "publish", "admin"]) if other != scope
    ]
    headers = {"Content-Type": codec.MEDIA_TYPE, "Idempotency-Key": "call-1"}
    with client_with(server, scopes=others) as client:
        answer = client.request(method, path, headers=headers)
        check(answer, 403, "forbidden")
        assert f"'{scope}'" in answer.json()["detail"]
    with client_with(server, scopes=[scope]) as client:
        assert client.request(method, path, headers=headers).status_code != 403


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("GET", "/v1/usage"),
        ("GET", "/v1/budget"),
        ("DELETE", "/v1/answers/x"),
    ],
)
def test_a_keys_own_account_needs_no_scope(server: Any, method: str, path: str) -> None:
    with client_with(server, scopes=[]) as client:
        assert client.request(method, path).is_success


def test_a_key_ends_when_it_expires(server: Any) -> None:
    with client_with(server, expires_at=now_ms() + 3_600_000) as client:
        assert client.get("/v1/models").status_code == 200
    with client_with(server, expires_at=now_ms()) as client:
        check(client.get("/v1/models"), 401, "unauthenticated")


def test_a_refused_call_does_not_use_an_idempotency_key(server: Any, picture: Picture) -> None:
    with client_with(server, scopes=["publish"]) as client:
        client.headers["Idempotency-Key"] = "call-1"
        check(predict(client, picture()), 403, "forbidden")
        assert client.get("/v1/usage").json()["charges"] == []


# --- rate limits ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("_early_in_a_minute")
def test_requests_past_the_rate_are_told_to_wait(server: Any) -> None:
    with client_with(server, rates=Rates(requests_per_minute=3)) as client:
        for left in (2, 1, 0):
            answer = client.get("/v1/models")
            assert answer.status_code == 200
            assert answer.headers["ratelimit-policy"] == f'"requests";q=3;w={WINDOW_SECONDS}'
            assert re.fullmatch(rf'"requests";r={left};t=\d+', answer.headers["ratelimit"])
        refused = client.get("/v1/models")
        check(refused, 429, "rate-limited")
        assert 1 <= int(refused.headers["retry-after"]) <= WINDOW_SECONDS
        assert '"requests";r=0;' in refused.headers["ratelimit"]
        assert refused.headers["ratelimit-policy"]
        assert "requests" in refused.json()["detail"]


@pytest.mark.usefixtures("_early_in_a_minute")
def test_predictions_past_the_rate_are_told_to_wait_and_cost_nothing(
    server: Any, picture: Picture
) -> None:
    rates = Rates(requests_per_minute=100, predictions_per_minute=5)
    with client_with(server, rates=rates) as client:
        answer = predict(client, picture(), prompts=4)
        assert answer.status_code == 200
        assert answer.headers["ratelimit-policy"].split(", ")[1] == '"predictions";q=5;w=60'
        assert answer.headers["ratelimit"].split(", ")[1].startswith('"predictions";r=1;t=')
        refused = predict(client, picture(), prompts=2)
        check(refused, 429, "rate-limited")
        assert refused.headers["retry-after"]
        assert "needs 2 predictions and 1 of 5" in refused.json()["detail"]
        assert client.get("/v1/usage").json()["total"]["queries"] == 4
        assert predict(client, picture()).status_code == 200, "a refused call used the limit"


@pytest.mark.usefixtures("_early_in_a_minute")
def test_a_call_larger_than_the_rate_is_not_told_to_wait(server: Any, picture: Picture) -> None:
    with client_with(server, rates=Rates(predictions_per_minute=5)) as client:
        refused = predict(client, picture(), prompts=6)
        check(refused, 429, "rate-limited")
        assert "retry-after" not in refused.headers
        assert "ask for less" in refused.json()["detail"]


def test_a_key_without_a_rate_is_told_none(client: httpx.Client) -> None:
    answer = client.get("/v1/models")
    assert "ratelimit" not in answer.headers
    assert "ratelimit-policy" not in answer.headers


@pytest.mark.usefixtures("_early_in_a_minute")
def test_a_key_that_is_not_valid_uses_no_rate(server: Any) -> None:
    with client_with(server, rates=Rates(requests_per_minute=1)) as client:
        prefix = client.headers["authorization"].split("_")[1]
        wrong = {"Authorization": f"Bearer craft_{prefix}_{'x' * 43}"}
        assert client.get("/v1/models", headers=wrong).status_code == 401
        assert client.get("/v1/models").status_code == 200


def test_calls_wait_for_a_storage_of_rates_that_does_not_answer(serve: Any) -> None:
    with (
        serve(rate_limits_url="redis://127.0.0.1:1") as server,
        client_with(server, rates=Rates(requests_per_minute=1)) as client,
    ):
        answer = client.get("/v1/models")
        check(answer, 503, "overloaded")
        assert answer.headers["retry-after"]


# --- concurrency ----------------------------------------------------------------------------------


def test_a_key_has_only_so_many_calls_at_a_time(
    serve: Any, tiny_engine: Any, store_url: str, picture: Picture
) -> None:
    inside, let_through = threading.Semaphore(0), threading.Event()

    class Waiting:
        def __getattr__(self, name: str) -> Any:
            return getattr(tiny_engine, name)

        async def score(self, *arguments: Any, **named: Any) -> Any:
            inside.release()
            assert await asyncio.to_thread(let_through.wait, 30)
            return await tiny_engine.score(*arguments, **named)

    file = picture()
    with (
        serve(engine=Waiting(), database_url=store_url) as server,
        client_with(server, rates=Rates(concurrency=3)) as client,
        client_with(server) as other,
        ThreadPoolExecutor(20) as threads,
    ):
        try:
            calls = [threads.submit(predict, client, file) for _ in range(20)]
            for _ in range(3):
                assert inside.acquire(timeout=30)
            deadline = time.monotonic() + 30
            while sum(call.done() for call in calls) < 17:
                assert time.monotonic() < deadline, "calls past the concurrency wait or run"
                time.sleep(0.01)
            bystander = threads.submit(predict, other, file)
            assert inside.acquire(timeout=30), "another key's calls were counted"
        finally:
            let_through.set()
        answers = [call.result(30) for call in calls]
        refused = [answer for answer in answers if answer.status_code != 200]
        assert len(refused) == 17
        for answer in refused:
            check(answer, 429, "rate-limited")
            assert int(answer.headers["retry-after"]) > 0
        assert bystander.result(30).status_code == 200
        assert predict(client, file).status_code == 200
        assert client.get("/v1/usage").json()["total"]["queries"] == 4


# --- several budgets ------------------------------------------------------------------------------


def test_the_keys_and_the_teams_budgets_all_hold(server: Any, picture: Picture) -> None:
    team = secrets.token_hex(4)
    with client_with(server, team=team) as first, client_with(server, team=team) as second:
        bound(server, first, "queries", 3)
        bound(server, first, "queries", 5, team=True)
        assert predict(first, picture(), prompts=3).status_code == 200
        refused = predict(first, picture())
        check(refused, 402, "budget-exhausted")
        assert "team" not in refused.json()["detail"]
        assert predict(second, picture(), prompts=2).status_code == 200
        refused = predict(second, picture())
        check(refused, 402, "budget-exhausted")
        assert "needs 1 queries and 0 are left in the team's budget" in refused.json()["detail"]
        assert spent(first) == {
            ("queries", "key", "lifetime"): (3, 0),
            ("queries", "team", "lifetime"): (5, 0),
        }
        assert spent(second) == {("queries", "team", "lifetime"): (5, 0)}


def test_a_refusal_by_one_budget_takes_nothing_of_the_others(server: Any, picture: Picture) -> None:
    with client_with(server, team=secrets.token_hex(4)) as client:
        bound(server, client, "queries", 10)
        bound(server, client, "predictions", 10, window="month")
        bound(server, client, "texts", 1, team=True)
        check(predict(client, picture()), 402, "budget-exhausted")
        assert set(spent(client).values()) == {(0, 0)}


def test_an_answer_states_all_budgets_after_it(server: Any, picture: Picture) -> None:
    with client_with(server, team=secrets.token_hex(4)) as client:
        bound(server, client, "queries", 10, window="day")
        bound(server, client, "queries", 100)
        bound(server, client, "images", 7, team=True)
        told = predict(client, picture(), prompts=2).json()["cost"]["budgets"]
        assert told == client.get("/v1/budget").json()["budgets"]
        assert [(b["unit"], b["of"], b["window"], b["remaining"]) for b in told] == [
            ("queries", "key", "day", 8),
            ("queries", "key", "lifetime", 98),
            ("images", "team", "lifetime", 6),
        ]
        assert told[0]["resets_at"].endswith("T00:00:00.000Z")


def test_a_windows_refusal_says_when_it_ends(server: Any, picture: Picture) -> None:
    with client_with(server) as client:
        bound(server, client, "queries", 0, window="hour")
        refused = predict(client, picture())
        check(refused, 402, "budget-exhausted")
        assert re.search(r" until \d{4}-\d\d-\d\dT\d\d:00:00.000Z", refused.json()["detail"])


def test_a_teams_budget_is_exact_under_calls_of_all_its_keys(
    serve: Any, store_url: str, picture: Picture
) -> None:
    file = picture()
    with serve(database_url=store_url) as server:
        team = secrets.token_hex(4)
        with client_with(server, team=team) as one, client_with(server, team=team) as two:
            bound(server, one, "queries", 13, team=True)
            bound(server, two, "queries", 5)
            with ThreadPoolExecutor(16) as threads:
                answers = list(threads.map(lambda n: predict((one, two)[n % 2], file), range(40)))
            assert sum(answer.status_code == 200 for answer in answers) == 13
            assert spent(one)["queries", "team", "lifetime"] == (13, 0)
            assert spent(two)["queries", "key", "lifetime"][0] <= 5
