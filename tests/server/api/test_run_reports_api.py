"""`/v1/runs` over a socket."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from craft_server.clock import now_ms
from craft_server.ledger.keys import Rates, create_key

REPORT = {"title": "digits", "budget": 72}
POINT = {"sequence": 0, "generation": 0, "queries": 32, "loss": 1.5, "accuracy": 80.0}


def test_a_run_reports_itself_and_is_shown(client: httpx.Client) -> None:
    made = client.put("/v1/runs/run-1", json=REPORT)
    assert made.status_code == 200, made.text
    added = client.put("/v1/runs/run-1/points", json={"points": [POINT]})
    assert added.json()["points"] == 1
    curve = client.get("/v1/runs/run-1").json()
    assert curve["points"][0]["accuracy"] == 80.0
    assert client.get("/v1/runs").json()["runs"] == [curve["card"]]
    assert client.delete("/v1/runs/run-1").status_code == 204
    assert client.get("/v1/runs/run-1").status_code == 404


def test_reports_are_free(server: Any) -> None:
    with server.client(queries=0, requests=0) as client:
        client.put("/v1/runs/run-1", json=REPORT).raise_for_status()
        client.put("/v1/runs/run-1/points", json={"points": [POINT]}).raise_for_status()
        usage = client.get("/v1/usage").json()
    assert usage["charges"] == []


def test_reports_take_nothing_of_the_keys_rate(server: Any) -> None:
    with server.database.writing() as connection:
        key = create_key(connection, owner="slow", rates=Rates(requests_per_minute=1), at=now_ms())
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=server.url, headers=headers, trust_env=False) as client:
        for _ in range(5):
            client.put("/v1/runs/run-1", json=REPORT).raise_for_status()
        assert client.get("/v1/usage").status_code == 200


def test_another_owners_run_is_not_there(client: httpx.Client, server: Any) -> None:
    client.put("/v1/runs/run-1", json=REPORT).raise_for_status()
    with server.client() as other:
        assert other.get("/v1/runs/run-1").status_code == 404
        assert other.delete("/v1/runs/run-1").status_code == 404
        assert other.put("/v1/runs/run-1/points", json={"points": [POINT]}).status_code == 404
        assert other.get("/v1/runs").json() == {"runs": []}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("bad%20name", REPORT),
        ("-x", REPORT),
        ("x" * 201, REPORT),
        ("run-1", {}),
        ("run-1", {**REPORT, "title": "x" * 201}),
        ("run-1", {**REPORT, "state": "happy"}),
        ("run-1", {**REPORT, "extra": 1}),
    ],
)
def test_a_report_that_is_not_valid_is_refused(
    client: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    assert client.put(f"/v1/runs/{path}", json=body).status_code == 422


@pytest.mark.parametrize(
    "points",
    [
        [],
        [POINT] * 501,
        [{**POINT, "sequence": -1}],
        [{**POINT, "accuracy": 101}],
        [{**POINT, "queries": 10**16}],
    ],
)
def test_points_that_are_not_valid_are_refused(
    client: httpx.Client, points: list[dict[str, Any]]
) -> None:
    client.put("/v1/runs/run-1", json=REPORT).raise_for_status()
    assert client.put("/v1/runs/run-1/points", json={"points": points}).status_code == 422


def test_points_are_bounded_in_a_minute(client: httpx.Client) -> None:
    client.put("/v1/runs/run-1", json=REPORT).raise_for_status()
    stored = 0
    for call in range(13):
        points = [{**POINT, "sequence": 500 * call + number} for number in range(500)]
        answer = client.put("/v1/runs/run-1/points", json={"points": points})
        stored += 500 * answer.is_success
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0
    # The count of a sliding window is approximate around a minute's end.
    assert stored <= 6500
