"""Budgets over the API: exact under concurrency, given back on failure, on both stores."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from craft_server.clock import now_ms
from craft_server.database import Database
from craft_server.engine import Overloaded
from craft_server.ledger.budgets import list_budgets, top_up
from craft_server.ledger.keys import authenticate, find_key
from craft_server.ledger.prices import set_prices

Picture = Callable[..., bytes]


def predict(client: httpx.Client, picture: bytes, prompts: int = 1) -> httpx.Response:
    (card,) = client.get("/v1/models").json()["models"]
    return client.post(
        "/v1/predictions",
        json={
            "model": card["name"],
            "classes": ["cat", "dog"],
            "templates": ["a photo of a {}."] * prompts,
            "images": [base64.b64encode(picture).decode()],
        },
    )


def budgets(client: httpx.Client) -> dict[str, tuple[int, int, int]]:
    return {
        budget["unit"]: (budget["spent"], budget["reserved"], budget["remaining"])
        for budget in client.get("/v1/budget").json()["budgets"]
    }


class Failing:
    """An engine whose named method raises; all else is the real engine's."""

    def __init__(self, engine: Any, method: str, error: Exception) -> None:
        self._engine = engine
        self._method = method
        self._error = error

    def __getattr__(self, name: str) -> Any:
        if name != self._method:
            return getattr(self._engine, name)

        async def fail(*_arguments: Any, **_named: Any) -> None:
            raise self._error

        return fail


def test_the_query_past_the_budget_is_refused_until_a_top_up(server: Any, picture: Picture) -> None:
    with server.client(queries=3) as client:
        assert predict(client, picture(), prompts=2).status_code == 200
        refused = predict(client, picture(), prompts=2)
        assert refused.status_code == 402
        assert refused.json()["type"] == "urn:craftbox:problem:budget-exhausted"
        assert "needs 2 queries and 1 are left" in refused.json()["detail"]
        answer = predict(client, picture()).json()
        assert answer["cost"]["budgets"] == [
            {
                "unit": "queries",
                "window": "lifetime",
                "of": "key",
                "limit": 3,
                "spent": 3,
                "reserved": 0,
                "remaining": 0,
                "resets_at": None,
            }
        ]
        assert predict(client, picture()).status_code == 402
        prefix = client.headers["authorization"].split("_")[1]
        with server.database.writing() as connection:
            key_id = find_key(connection, prefix).key_id
            top_up(connection, key_id=key_id, unit="queries", window="lifetime", amount=1)
        assert predict(client, picture()).status_code == 200
        assert predict(client, picture()).status_code == 402
        usage = client.get("/v1/usage").json()
        assert usage["total"]["queries"] == 4
        assert [line["units"]["queries"] for line in usage["charges"]] == [2, 1, 1]


@pytest.mark.parametrize("unit", ["queries", "predictions", "images", "texts", "requests"])
def test_every_unit_can_bound_a_key(server: Any, picture: Picture, unit: str) -> None:
    with server.client(**{unit: 0}) as client:
        answer = predict(client, picture())
        assert answer.status_code == 402
        assert unit in answer.json()["detail"]
        assert budgets(client) == {unit: (0, 0, 0)}


def test_32_callers_get_exactly_the_budget(serve: Any, store_url: str, picture: Picture) -> None:
    budget, calls = 37, 64
    file = picture()
    with serve(database_url=store_url) as server:
        key = server.key(queries=budget, requests=10**6)

        def call(_number: int) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            with httpx.Client(base_url=server.url, headers=headers, timeout=120) as client:
                return predict(client, file).status_code

        with ThreadPoolExecutor(32) as threads:
            statuses = list(threads.map(call, range(calls)))
        assert statuses.count(200) == budget
        assert statuses.count(402) == calls - budget
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=server.url, headers=headers) as client:
            assert budgets(client)["queries"] == (budget, 0, 0)
            assert client.get("/v1/usage").json()["total"]["requests"] == budget


@pytest.mark.parametrize("method", ["encode_images", "encode_prompts", "score"])
def test_a_failing_engine_gives_everything_back(
    serve: Any, tiny_engine: Any, picture: Picture, method: str
) -> None:
    engine = Failing(tiny_engine, method, RuntimeError("secret inside"))
    with serve(engine=engine) as server, server.client(queries=5, images=5) as client:
        answer = predict(client, picture())
        assert answer.status_code == 500
        assert answer.json()["type"] == "urn:craftbox:problem:internal-error"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
        assert "secret" not in answer.text
        assert budgets(client) == {"queries": (0, 0, 5), "images": (0, 0, 5)}
        assert client.get("/v1/usage").json()["charges"] == []


def test_a_failed_upload_adds_nothing(serve: Any, tiny_engine: Any, picture: Picture) -> None:
    engine = Failing(tiny_engine, "encode_images", RuntimeError())
    with serve(engine=engine) as server, server.client(images=5) as client:
        (card,) = client.get("/v1/models").json()["models"]
        made = client.post("/v1/image-sets", json={"model": card["name"]}).json()
        path = f"/v1/image-sets/{made['id']}"
        images = [base64.b64encode(picture()).decode()]
        answer = client.post(f"{path}/images", json={"first_row": 0, "images": images})
        assert answer.status_code == 500
        assert client.get(path).json()["count"] == 0
        assert budgets(client) == {"images": (0, 0, 5)}


def test_a_full_queue_refuses_and_gives_everything_back(
    serve: Any, tiny_engine: Any, picture: Picture
) -> None:
    engine = Failing(tiny_engine, "score", Overloaded("full"))
    with serve(engine=engine) as server, server.client(queries=5) as client:
        answer = predict(client, picture())
        assert answer.status_code == 503
        assert answer.json()["type"] == "urn:craftbox:problem:overloaded"
        assert answer.headers["retry-after"]
        assert budgets(client) == {"queries": (0, 0, 5)}


def test_a_call_cut_off_by_the_servers_end_is_refunded(
    serve: Any, tiny_engine: Any, picture: Picture, tmp_path: Path
) -> None:
    begun = threading.Event()

    class Hanging:
        def __getattr__(self, name: str) -> Any:
            return getattr(tiny_engine, name)

        async def score(self, *_arguments: Any, **_named: Any) -> None:
            begun.set()
            await asyncio.Event().wait()

    def call(client: httpx.Client) -> None:
        with contextlib.suppress(httpx.TransportError):
            predict(client, picture())

    with serve(engine=Hanging()) as server:
        client = server.client(queries=5)
        key = client.headers["authorization"].removeprefix("Bearer ")
        caller = threading.Thread(target=call, args=[client])
        caller.start()
        assert begun.wait(30)
        with server.database.reading() as connection:
            assert list_budgets(connection, 1, None, now_ms())[0].reserved == 1
    caller.join(30)
    client.close()
    database = Database.open(None, tmp_path)
    with database.reading() as connection:
        found = authenticate(connection, key, now_ms())
        assert found is not None
        (budget,) = list_budgets(connection, found.key_id, None, now_ms())
    database.close()
    assert (budget.spent, budget.reserved) == (0, 0)


def test_a_dead_model_is_not_ready_and_charges_nothing(
    serve: Any, picture: Picture, tiny_engine: Any
) -> None:
    class Dead:
        alive = False

        def __getattr__(self, name: str) -> Any:
            return getattr(tiny_engine, name)

    with serve(engine=Dead()) as server, server.client(queries=5) as client:
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert ready.headers["retry-after"]
        assert client.get("/livez").status_code == 200
        answer = predict(client, picture())
        assert answer.status_code == 503
        assert answer.json()["type"] == "urn:craftbox:problem:overloaded"
        assert answer.headers["retry-after"]
        assert budgets(client) == {"queries": (0, 0, 5)}


class Together:
    """An engine whose image encoder waits until so many calls are inside."""

    def __init__(self, engine: Any, calls: int) -> None:
        self._engine = engine
        self._missing = calls
        self._all = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def encode_images(self, *arguments: Any, **named: Any) -> Any:
        self._missing -= 1
        if not self._missing:
            self._all.set()
        await asyncio.wait_for(self._all.wait(), 30)
        return await self._engine.encode_images(*arguments, **named)


def test_one_new_image_in_many_uploads_at_once_is_charged_once(
    serve: Any, store_url: str, tiny_engine: Any, picture: Picture
) -> None:
    sets = 8
    engine = Together(tiny_engine, sets)
    with (
        serve(database_url=store_url, engine=engine) as server,
        server.client("owner", images=50, cost_micros=1000) as client,
    ):
        (card,) = client.get("/v1/models").json()["models"]
        with server.database.writing() as connection:
            set_prices(connection, card["name"], {"images": 7, "requests": 1})
        made = [
            client.post("/v1/image-sets", json={"model": card["name"]}).json()["id"]
            for _ in range(sets)
        ]
        images = [base64.b64encode(picture(1)).decode()]

        def upload(image_set: str) -> dict[str, Any]:
            body = {"first_row": 0, "images": images}
            answer = client.post(f"/v1/image-sets/{image_set}/images", json=body)
            assert answer.status_code == 200, answer.text
            return dict(answer.json()["cost"])

        with ThreadPoolExecutor(sets) as threads:
            costs = list(threads.map(upload, made))
        assert sorted(cost["charged"]["images"] for cost in costs) == [0] * 7 + [1]
        assert sorted(cost["cost_micros"] for cost in costs) == [1] * 7 + [8]
        assert budgets(client) == {"images": (1, 0, 49), "cost_micros": (15, 0, 985)}
        usage = client.get("/v1/usage").json()
        assert usage["total"]["images"] == 1
        assert usage["cost_micros"] == 15
        assert sum(line["units"]["images"] for line in usage["charges"]) == 1
        assert sum(line["cost_micros"] for line in usage["charges"]) == 15
        assert all(client.get(f"/v1/image-sets/{one}").json()["count"] == 1 for one in made)


def test_uploads_at_once_to_one_set_are_added_once_and_charged_once(
    serve: Any, store_url: str, picture: Picture
) -> None:
    with serve(database_url=store_url) as server, server.client("owner", requests=100) as client:
        (card,) = client.get("/v1/models").json()["models"]
        path = (
            "/v1/image-sets/"
            + client.post("/v1/image-sets", json={"model": card["name"]}).json()["id"]
        )

        def upload(seed: int) -> int:
            images = [base64.b64encode(picture(seed)).decode()]
            body = {"first_row": 0, "images": images}
            return client.post(f"{path}/images", json=body).status_code

        with ThreadPoolExecutor(8) as threads:
            statuses = list(threads.map(upload, range(8)))
        assert sorted(statuses) == [200] + [422] * 7
        assert client.get(path).json()["count"] == 1
        assert client.get("/v1/usage").json()["total"]["images"] == 1
        assert budgets(client) == {"requests": (1, 0, 99)}
