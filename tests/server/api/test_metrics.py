"""What operators see of a running server."""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families

from craft_server.clock import now_ms
from craft_server.engine import Overloaded
from craft_server.ledger.keys import create_key
from craft_server.ledger.tables import BUDGETS

DASHBOARD = Path(__file__).parents[3] / "deploy/grafana/dashboards/craftbox.json"


def read(server: Any) -> dict[tuple[str, str], float]:
    """Each measurement by its name and its label."""
    with server.database.writing() as connection:
        key = create_key(connection, owner="operator", scopes=["admin"], at=now_ms())
    answer = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, "".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_a_tenants_key_does_not_open_them(client: httpx.Client) -> None:
    assert client.get("/metrics").status_code == 403


def test_caches_show_their_use_and_their_bounds(serve: Any, picture: Callable[..., bytes]) -> None:
    with serve(features_cache_bytes=5000) as server, server.client() as client:
        (card,) = client.get("/v1/models").json()["models"]
        before = read(server)
        question = {
            "model": card["name"],
            "classes": [secrets.token_hex(4), "dog"],
            "templates": ["a photo of a {}."],
            "images": [base64.b64encode(picture()).decode()],
        }
        for _ in range(3):
            client.post("/v1/predictions", json=question).raise_for_status()
        after = read(server)

    def grown(name: str, cache: str) -> float:
        return after[name, cache] - before[name, cache]

    assert grown("craft_cache_misses_total", "text_features") == 1
    assert grown("craft_cache_hits_total", "text_features") == 2
    assert grown("craft_cache_bytes", "text_features") == 2 * 32 * 4
    assert after["craft_cache_max_bytes", "image_features"] == 5000
    assert grown("craft_engine_busy_seconds_total", "texts") > 0
    assert grown("craft_engine_busy_seconds_total", "scores") > 0
    assert after["process_resident_memory_bytes", ""] > 0
    assert after["craft_engine_alive", ""] == 1
    assert after["craft_engine_waiting_turns", ""] == 0


def test_memory_of_a_gpu_is_shown_by_kind(serve: Any, tiny_engine: Any) -> None:
    class OnGpu:
        def __getattr__(self, name: str) -> Any:
            return getattr(tiny_engine, name)

        async def state(self) -> Any:
            memory = {"allocated": 3, "reserved": 5, "peak": 4}
            return (await tiny_engine.state()).model_copy(update={"device_memory": memory})

    with serve(engine=OnGpu()) as server:
        found = read(server)
    shown = {kind: value for (name, kind), value in found.items() if "device_memory" in name}
    assert shown == {"allocated": 3, "reserved": 5, "peak": 4}


class SometimesFull:
    """An engine that takes nothing while it is full."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def score(self, *arguments: Any, **named: Any) -> Any:
        if self.full:
            raise Overloaded("full")
        return await self._engine.score(*arguments, **named)


def families(server: Any) -> set[str]:
    """The names of all metrics as a query would write them, without histograms' parts."""
    with server.database.writing() as connection:
        key = create_key(connection, owner="operator", scopes=["admin"], at=now_ms())
    answer = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {key}"})
    return {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(answer.text)
    }


def test_each_metric_is_in_the_operators_table_and_nothing_else_is(server: Any) -> None:
    page = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    assert families(server) == set(re.findall(r"^\| `((?:craft|process)_\w+)` \|", page, re.M))


def test_calls_are_counted_by_operation_and_status(server: Any, client: httpx.Client) -> None:
    before = read(server)
    client.get("/v1/budget").raise_for_status()
    client.get("/v1/usage?limit=x")
    client.get(f"/v1/{secrets.token_hex(8)}")
    after = read(server)

    def grown(name: str, labels: str) -> float:
        return after.get((name, labels), 0) - before.get((name, labels), 0)

    assert grown("craft_http_requests_total", "get_budget200") == 1
    assert grown("craft_http_requests_total", "get_usage422") == 1
    assert grown("craft_http_requests_total", "none404") == 1
    assert grown("craft_http_request_duration_seconds_count", "get_budget") == 1
    assert 0 < grown("craft_http_request_duration_seconds_sum", "get_budget") < 60
    assert grown("craft_problems_total", "invalid-request") == 1
    assert after["craft_http_requests_in_flight", ""] == 1  # the call that asks


def test_charges_refusals_and_replays_are_counted_as_the_ledger_has_them(
    serve: Any, tiny_engine: Any, picture: Callable[..., bytes]
) -> None:
    engine = SometimesFull(tiny_engine)
    with serve(engine=engine) as server, server.client(queries=3) as client:
        (card,) = client.get("/v1/models").json()["models"]
        question = {
            "model": card["name"],
            "classes": ["cat", "dog"],
            "templates": ["a photo of a {}.", "the {}"],
            "images": [base64.b64encode(picture()).decode()],
        }
        before = read(server)

        def ask() -> int:
            headers = {"Idempotency-Key": "one"}
            return client.post("/v1/predictions", json=question, headers=headers).status_code

        assert [ask(), ask()] == [200, 200]
        assert client.post("/v1/predictions", json=question).status_code == 402
        client.delete("/v1/answers/one").raise_for_status()
        assert ask() == 200
        client.delete("/v1/answers/one").raise_for_status()
        engine.full = True
        assert ask() == 503
        for _ in range(2):
            refused = client.post("/v1/predictions", json={**question, "templates": ["a {}"]})
            assert refused.status_code == 503
        after = read(server)

    def grown(name: str, labels: str = "") -> float:
        return after.get((name, labels), 0) - before.get((name, labels), 0)

    assert grown("craft_charges_settled_total") == 1
    assert grown("craft_charges_refunded_total") == 2
    assert grown("craft_idempotent_recomputations_total") == 1
    assert grown("craft_problems_total", "budget-exhausted") == 1
    assert grown("craft_problems_total", "overloaded") == 3
    assert grown("craft_idempotent_replays_total") == 1
    assert grown("craft_engine_batch_tasks_count") > 0
    assert grown("craft_ledger_settled_units_total", "queries") == 2
    assert grown("craft_ledger_settled_units_total", "requests") == 1
    assert after["craft_ledger_open_reservations", ""] == 0
    assert after["craft_ledger_overshoot", ""] == 0


def test_an_overshoot_would_be_seen_and_a_budget_that_is_used_up_is_none(serve: Any) -> None:
    with serve() as server:
        with server.client(queries=3), server.database.writing() as connection:
            connection.execute(sa.update(BUDGETS).values(spent=2, reserved=1))
        assert read(server)["craft_ledger_overshoot", ""] == 0
        with server.client(queries=3) as client, server.database.writing() as connection:
            connection.exec_driver_sql("PRAGMA ignore_check_constraints = ON")
            connection.execute(
                sa.update(BUDGETS).where(BUDGETS.c.spent == 0).values(spent=2, reserved=2)
            )
            connection.exec_driver_sql("PRAGMA ignore_check_constraints = OFF")
            assert client.base_url == server.url
        assert read(server)["craft_ledger_overshoot", ""] == 1


def test_no_label_names_what_a_client_writes(server: Any) -> None:
    owner = f"owner-{secrets.token_hex(4)}"
    with server.client(owner) as client:
        assert client.get(f"/v1/adapters/{owner}").status_code == 404
    assert not [labels for _, labels in read(server) if owner in labels]


def test_every_metric_that_the_dashboard_asks_for_is_shown(serve: Any) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {
        name for query in queries for name in re.findall(r"\b(?:craft|process)_[a-z_]+", query)
    }
    with serve() as server:
        with server.database.writing() as connection:
            key = create_key(connection, owner="operator", scopes=["admin"], at=now_ms())
        text = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {key}"}).text
    shown: set[str] = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        shown |= {name + suffix for suffix in suffixes}
    assert asked <= shown, asked - shown
