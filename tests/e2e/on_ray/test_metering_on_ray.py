"""What holds of one server's budgets holds of replicas on Ray Serve that share a PostgreSQL."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from craft_server.database import Database
from e2e.metering.caller import FULL, Caller
from e2e.metering.conftest import Servers
from e2e.metering.stub_server import KILL_POINTS
from e2e.on_ray.programs import READY_SECONDS, running
from quickstart import free_port
from server.conftest import new_postgresql  # noqa: F401

pytest.importorskip("ray")

MODEL = "pocket"
CLIENTS, BUDGET = (64, 1000) if FULL else (32, 200)
KILLS = 4 if FULL else 1
POINTS = KILL_POINTS if FULL else ("after the work", "before the answer")
LOAD_CLIENTS = 8


@dataclass(frozen=True)
class Cluster(Servers):
    """Two ingress and two model replicas behind one port."""

    def caller(self, key: str) -> Caller:
        return Caller(self.port, key, MODEL)

    def replicas(self, deployment: str) -> set[int]:
        """Process ids of a deployment's replicas."""
        title = f"ray::ServeReplica:default:{deployment}"
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                is_one = (process / "cmdline").read_bytes().startswith(title.encode())
            except OSError:
                continue
            if is_one:
                found.add(int(process.name))
        return found


@pytest.fixture(scope="module")
def cluster(
    new_postgresql: Callable[[], str],  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Cluster]:
    folder, port, url = tmp_path_factory.mktemp("ray"), free_port(), new_postgresql()
    with (
        running(
            "e2e.on_ray.cluster",
            *(port, 2, 2, 0.02),
            folder=folder,
            CRAFT_DATABASE_URL=url,
            CRAFT_DATA_DIR=folder,
            CRAFT_LEASE_SECONDS=0.5,
        ),
        closing(Database.open(url, folder)) as database,
    ):
        yield Cluster(port, database)


@pytest.mark.timeout(READY_SECONDS + 120)
def test_many_clients_get_exactly_the_budget(cluster: Cluster) -> None:
    key = cluster.key(BUDGET)

    def use_up(client: int) -> int:
        caller, delivered = cluster.caller(key), 0
        for prompts in (1 + client % 24, 1):
            while (answer := caller.predict(prompts)).status == 200:
                delivered += len(answer.body["log_probs"])
        caller.close()
        return delivered

    with ThreadPoolExecutor(CLIENTS) as threads:
        delivered = sum(threads.map(use_up, range(CLIENTS)))
    assert (delivered, *_counted(cluster, key)) == (BUDGET, BUDGET, 0, BUDGET)


@pytest.mark.timeout(600)
def test_a_model_replica_killed_under_load_costs_no_answer_and_no_charge(
    cluster: Cluster,
) -> None:
    key, stop = cluster.key(100_000), threading.Event()
    answered, longest = [0] * LOAD_CLIENTS, [0.0] * LOAD_CLIENTS

    def call_on(number: int) -> None:
        caller = cluster.caller(key)
        while not stop.is_set():
            began = time.monotonic()
            assert caller.predict().status == 200
            answered[number] += 1
            longest[number] = max(longest[number], time.monotonic() - began)
        caller.close()

    with ThreadPoolExecutor(LOAD_CLIENTS) as threads:
        calls = [threads.submit(call_on, number) for number in range(LOAD_CLIENTS)]
        try:
            for _ in range(KILLS):
                before, goal = cluster.replicas("StubModel"), sum(answered) + 2 * LOAD_CLIENTS
                assert len(before) == 2
                os.kill(min(before), signal.SIGKILL)
                # The other replica answers everybody; nobody waits for a new one.
                _seconds_until(lambda goal=goal: sum(answered) >= goal or _failed(calls))
                assert cluster.replicas("StubModel") < before
                took = _seconds_until(lambda b=before: len(cluster.replicas("StubModel") - b) == 1)
                print(json.dumps({"new_replica_after_seconds": round(took, 1)}))
        finally:
            stop.set()
        for call in calls:
            call.result()
    total = sum(answered)
    print(json.dumps({"answered": total, "longest_seconds": round(max(longest), 2)}))
    assert _counted(cluster, key) == (total, 0, total)


@pytest.mark.timeout(900)
def test_an_ingress_killed_at_any_point_loses_no_answer_and_charges_none_twice(
    cluster: Cluster,
) -> None:
    calls = KILLS * len(POINTS)
    key = cluster.key(calls)
    caller = cluster.caller(key)
    for _ in range(KILLS):
        for point in POINTS:
            # Both replicas, so that the answer never waits for one to start.
            _seconds_until(lambda: len(cluster.replicas("DyingIngress")) == 2)
            before = caller.retries
            assert caller.predict(kill_at=point).status == 200
            assert caller.retries > before, f"the ingress was not killed {point}"
    caller.close()
    lines = cluster.caller(key).get("/v1/usage?limit=1000")["charges"]
    assert [line["state"] for line in lines] == ["settled"] * calls
    assert _counted(cluster, key) == (calls, 0, calls)


def _failed(calls: list[Future[None]]) -> bool:
    return any(call.done() for call in calls)


def _counted(cluster: Cluster, key: str) -> tuple[Any, Any, Any]:
    """What the key has spent and reserved of its budget, and what it was charged."""
    caller = cluster.caller(key)
    (budget,) = caller.get("/v1/budget")["budgets"]
    total = caller.get("/v1/usage")["total"]["queries"]
    caller.close()
    return budget["spent"], budget["reserved"], total


def _seconds_until(condition: Callable[[], bool], most: float = 240) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < most, f"not within {most} s"
        time.sleep(0.05)
    return time.monotonic() - began
