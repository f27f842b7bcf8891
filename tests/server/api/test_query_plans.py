"""Calls take as long on a large ledger as on a small one: SQLite's plans of their statements.

A statement that walks through a whole table that grows is slow one day, however quick it is in a
test. Real calls are made on a server whose database notes the plan of everything that it runs.
"""

from __future__ import annotations

import base64
import re
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from craft_server.clock import now_ms
from craft_server.ledger.budgets import set_budget
from craft_server.ledger.keys import DEFAULT_SCOPES, Rates, create_key, find_key
from craft_server.migrations import METADATA
from craft_shared import codec
from server.api.test_adapters_api import hosted, make

Picture = Callable[..., bytes]

# Tables with a row a process, a model or a server.
SMALL = {"holders", "prices", "stored_bytes", "noise_secrets"}
GROWING = set(METADATA.tables) - SMALL
# Indexes of the calls that run now, and of what everybody is shown.
SHORT = ("ix_calls_running", "ix_charges_reserved", "ix_adapter_settings_public")


class _Cursor(sqlite3.Cursor):
    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        if re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)", sql):
            connection: Any = self.connection
            plan = sqlite3.Cursor(connection).execute(f"EXPLAIN QUERY PLAN {sql}", parameters)
            connection.plans.setdefault(sql, []).extend(step for *_, step in plan.fetchall())
        return super().execute(sql, parameters)


class _Connection(sqlite3.Connection):
    plans: dict[str, list[str]]

    def cursor(self, *_: Any) -> Any:
        return super().cursor(_Cursor)

    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        # Its own way to a cursor is another one.
        return self.cursor().execute(sql, parameters)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The plans of all statements that any connection that is opened from now on runs."""
    connect, found = sqlite3.dbapi2.connect, {}

    def noting(*args: Any, **kwargs: Any) -> Any:
        made: Any = connect(*args, **kwargs, factory=_Connection)
        made.plans = found
        return made

    monkeypatch.setattr("sqlite3.dbapi2.connect", noting)
    return found


def walks(sql: str, plan: list[str]) -> set[str]:
    """The steps of a plan that walk through a table which grows, from its beginning to its end."""
    names = {alias: table for table, alias in re.findall(r"(\w+) AS (\w+)", sql)}
    return {
        step
        for step in plan
        if (scanned := re.match(r"SCAN (\w+)", step))
        and names.get(scanned[1], scanned[1]) in GROWING
        and not step.endswith(SHORT)
        # Rows that refer to a new one are looked for only where a constraint was deferred.
        and not (sql.startswith("INSERT") and scanned[1] not in sql)
        # In an index's order, and not to its end.
        and not (" USING " in step and "LIMIT" in sql and not any("B-TREE" in s for s in plan))
    }


@pytest.fixture
def calls(
    plans: dict[str, list[str]], serve: Any, picture: Picture
) -> Iterator[tuple[httpx.Client, dict[str, list[str]]]]:
    """A server on which each call was made once, and the plans of what it took."""
    told = {"notice_urls": "http://127.0.0.1:9", "notice_secret": f"whsec_{'AAAA' * 8}"}
    with serve(answers_bytes=1000, lease_seconds=0.3, **told) as server:
        with server.database.writing() as connection:
            key = create_key(
                connection,
                owner="lab",
                team="team",
                scopes=["admin", *DEFAULT_SCOPES],
                rates=Rates(concurrency=4),
                at=now_ms(),
            )
            entry = find_key(connection, key.split("_")[1])
            for holder in ({"key_id": entry.key_id}, {"team_id": entry.team_id}):
                set_budget(
                    connection, unit="queries", window="day", limit=10**6, at=now_ms(), **holder
                )
        with httpx.Client(
            base_url=server.url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=60,
            trust_env=False,
        ) as client:
            plans.clear()
            make_calls(client, picture)
            yield client, plans


def make_calls(client: httpx.Client, picture: Picture) -> None:
    def done(method: str, path: str, **request: Any) -> Any:
        answer = client.request(method, path, **request)
        assert answer.is_success, answer.text
        return answer

    image = base64.b64encode(picture()).decode()
    name = hosted(client)["name"]
    image_set = done("POST", "/v1/image-sets", json={"model": name}).json()["id"]
    rows = {"first_row": 0, "images": [image]}
    done("POST", f"/v1/image-sets/{image_set}/images", json=rows)
    asked = {"model": name, "classes": ["cat", "dog"], "templates": ["a {}."]}
    named = {"Idempotency-Key": "one", "Craft-Run": "run"}
    for pictures in ({"image_set": image_set}, {"images": [image]}):
        for _ in range(2):
            done("POST", "/v1/predictions", json={**asked, **pictures}, headers=named)
        done("DELETE", "/v1/answers/one")
        named["Idempotency-Key"] = "two"
    prefix = client.headers["Authorization"].split("_")[1]
    of_users = {"budgets": [{"unit": "queries", "limit": 9, "per_user": True}]}
    done("PUT", f"/v1/admin/keys/{prefix}/budgets", json=of_users)
    for _ in range(2):
        pictures = {"images": [image]}
        done("POST", "/v1/predictions", json={**asked, **pictures}, headers={"Craft-User": "ann"})
    for path in (
        "usage",
        "budget",
        "usage?user=ann",
        "budget?user=ann",
        "receipts?run=run",
        "receipts?since=2026-01-01T00:00:00Z",
    ):
        done("GET", f"/v1/{path}")
    body, media = make(client).to_bytes(), {"Content-Type": codec.MEDIA_TYPE}
    done("POST", "/v1/adapters?name=pets", content=body, headers=media)
    done("PATCH", "/v1/adapters/pets", json={"public": True, "aliases": {"best": 1}})
    for reference in ("pets", "lab/pets@best"):
        done("POST", f"/v1/adapters/{reference}/predictions", json={"images": [image]})
        done("GET", f"/v1/adapters/{reference}")
    for path in ("", "/pets/usage", "/pets/versions", "/pets/settings"):
        done("GET", f"/v1/adapters{path}")
    done("DELETE", "/v1/adapters/pets")
    done("PUT", "/v1/runs/run", json={"title": "digits"})
    point = {"sequence": 0, "generation": 0, "queries": 32}
    done("PUT", "/v1/runs/run/points", json={"points": [point]})
    for path in ("", "/run"):
        done("GET", f"/v1/runs{path}")
    done("DELETE", "/v1/runs/run")
    made = done("POST", "/v1/admin/keys", json={"owner": "new", "team": "team"}).json()["prefix"]
    limits = {"budgets": [{"unit": "texts", "limit": 9}]}
    for holder in (f"keys/{made}", "teams/team"):
        done("PUT", f"/v1/admin/{holder}/budgets", json=limits)
        more = {"budgets": [{"unit": "texts", "amount": 1}]}
        done("POST", f"/v1/admin/{holder}/budgets/top-up", json=more)
    done("PUT", f"/v1/admin/keys/{made}/policy", json={})
    done("POST", f"/v1/admin/keys/{made}/rotate", json={})
    for query in ("", f"?key={made}", "?since=2026-01-01T00:00:00Z"):
        done("GET", f"/v1/admin/usage{query}")
    done("DELETE", f"/v1/admin/keys/{made}")
    done("DELETE", f"/v1/image-sets/{image_set}")
    key = client.headers["Authorization"].removeprefix("Bearer ")
    signed_in = client.post("/console/sign-in", data={"key": key, "next": ""})
    assert signed_in.status_code == 303
    done("PUT", "/v1/adapters/pets/restore")
    for path in ("adapters?limit=1", "adapters?limit=1&after=lab/a", "admin/keys?limit=1"):
        done("GET", f"/v1/{path}")
    for path in (
        "",
        "console/runs",
        "console/adapters",
        "console/adapters/pets",
        "console/try",
        "console/usage",
        "console/usage?period=2026",
        "console/usage/charges",
        "console/usage/charges?team=team&model=m&adapter=a/b&after=9999999999999-1",
        f"console/usage/charges?key={made}&after=9999999999999-1",
        "console/usage/charges.csv",
        "console/usage/sums.csv?by=team&by=month",
        "console/usage/statement?team=team",
        "console/usage/statement.csv",
        "console/admin/keys",
        "console/admin/keys?after=2",
        f"console/admin/keys/{made}",
    ):
        assert client.get(f"/{path}").status_code == 200, path


def test_no_call_walks_through_a_table_that_grows(
    calls: tuple[httpx.Client, dict[str, list[str]]],
) -> None:
    _, plans = calls
    found = {sql: steps for sql, plan in plans.items() if (steps := walks(sql, plan))}
    assert len(plans) > 60, "few statements were noted"
    assert found == {}, "\n".join(f"{steps}: {sql}" for sql, steps in found.items())
