"""Whether keys and adapters slow each other down: 100 of each, and 10,000.

Two servers stand side by side, the real application behind a real socket with an engine that
answers at once, and are asked in turn, so that both see the same machine. Rows of keys and adapters
are copied in bulk from those that the server made itself. Half of the adapters belong to one owner,
who asks; the other half to others: some public, some granted to the caller's key.
Prints a table and writes JSON. SQLite always, PostgreSQL where it answers.

    python benchmarks/many_adapters.py --json benchmarks/results/many_adapters.json
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import sqlalchemy as sa

from craft_server.adapters.tables import (
    ADAPTER_GRANTS,
    ADAPTER_SETTINGS,
    ADAPTER_TOTALS,
    ADAPTERS,
)
from craft_server.database import Database
from craft_server.ledger.keys import prefix_of
from craft_server.ledger.tables import API_KEYS, BUDGETS, KEY_SECRETS, TOTALS
from craft_shared import codec
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import Unrefined
from craft_shared.units import UNITS
from ledger_scale import POSTGRESQL, databases
from metering_cost import MODEL, REVISION, serving
from options import print_ratios, save

SIZES = (100, 10_000)
OWNER = "benchmark"  # as `metering_cost` names the owner of its key
CLASSES = [f"class {number}" for number in range(10)]
WARM_UP = 5
PAGE = 50  # so that a page of the caller's own adapters is full in both


class Caller:
    """Calls a server that has so many keys and adapters.

    Attributes:
        api: an HTTP client with an admin's key, which may predict and publish, too.
        browser: the same, signed in at the console.
    """

    def __init__(self, api: httpx.Client, database: Database, many: int) -> None:
        self.api = api
        self.many = many
        self.prefix = prefix_of(api.headers["Authorization"])
        with database.writing() as connection:
            connection.execute(sa.update(API_KEYS).values(scopes="predict publish admin"))
        self.publish("made-0")
        with database.writing() as connection:
            self._fill(connection)
            if database.dialect == "postgresql":
                for table in (ADAPTERS, ADAPTER_SETTINGS, ADAPTER_GRANTS, API_KEYS, BUDGETS):
                    connection.exec_driver_sql(f"ANALYZE {table.name}")
        self.browser = httpx.Client(base_url=api.base_url, follow_redirects=False, timeout=60)
        key = api.headers["Authorization"].removeprefix("Bearer ")
        signed_in = self.browser.post("/console/sign-in", data={"key": key, "next": ""})
        if signed_in.status_code != 303:
            raise SystemExit("cannot sign in at the console")
        self.published = 0

    def _fill(self, connection: sa.Connection) -> None:
        half = range(self.many // 2)
        others = [f"owner {number}" for number in half]
        adapter = dict(connection.execute(sa.select(ADAPTERS)).one()._mapping)
        first = adapter.pop("id")
        names = [(OWNER, f"own-{number:05d}") for number in half] + [
            (owner, "pets") for owner in others
        ]
        _insert(connection, ADAPTERS, [{**adapter, "owner": o, "name": n} for o, n in names])
        total = {"calls": 0, **dict.fromkeys(UNITS, 0)}
        ids = connection.execute(sa.select(ADAPTERS.c.id).where(ADAPTERS.c.id != first)).scalars()
        _insert(connection, ADAPTER_TOTALS, [{"adapter_id": n, **total} for n in ids])
        _insert(
            connection,
            ADAPTER_SETTINGS,
            [
                {"owner": o, "name": n, "public": o != OWNER and int(o.split()[1]) % 2 == 0}
                for o, n in names
            ],
        )
        # Of the rest, as many as in the small one: what is granted to one key is not how many are.
        _insert(
            connection,
            ADAPTER_GRANTS,
            [
                {"owner": o, "name": "pets", "kind": "key", "grantee": self.prefix}
                for o in others[1:50:2]
            ],
        )
        key = dict(connection.execute(sa.select(API_KEYS)).one()._mapping)
        key_id = key.pop("id")
        secret = dict(connection.execute(sa.select(KEY_SECRETS)).one()._mapping)
        totals = dict(connection.execute(sa.select(TOTALS)).one()._mapping)
        budgets = [dict(row._mapping) for row in connection.execute(sa.select(BUDGETS))]
        for budget in budgets:
            budget.pop("id")
        owners = [f"owner {number}" for number in range(self.many - 1)]
        _insert(connection, API_KEYS, [{**key, "owner": owner} for owner in owners])
        ids = list(
            connection.execute(sa.select(API_KEYS.c.id).where(API_KEYS.c.id != key_id)).scalars()
        )
        _insert(
            connection,
            KEY_SECRETS,
            [{**secret, "key_id": n, "prefix": f"k{n:07d}"} for n in ids],
        )
        _insert(connection, TOTALS, [{**totals, "key_id": n} for n in ids])
        _insert(connection, BUDGETS, [{**budget, "key_id": n} for n in ids for budget in budgets])

    def publish(self, name: str) -> None:
        """Publishes an adapter under a new name."""
        config = AdapterConfig(
            model=MODEL, revision=REVISION, classes=CLASSES, templates=["a {}."], head="none"
        )
        body = Adapter(config, np.zeros((0, 0), np.float32), Unrefined()).to_bytes()
        answer = self.api.post(
            "/v1/adapters",
            params={"name": name},
            content=body,
            headers={"Content-Type": codec.MEDIA_TYPE},
        )
        if answer.status_code != 201:
            raise SystemExit(answer.text)

    def publish_another(self) -> None:
        self.published += 1
        self.publish(f"new-{self.published}")

    def predict(self, reference: str) -> None:
        self._done(
            self.api.post(f"/v1/adapters/{reference}/predictions", json={"images": ["AAAA"]})
        )

    def get(self, path: str) -> None:
        self._done(self.api.get(path))

    def look_at(self, path: str) -> None:
        self._done(self.browser.get(path))

    def create_a_key(self) -> None:
        wanted = {"owner": "new", "budgets": [{"unit": "queries", "limit": 9}]}
        self._done(self.api.post("/v1/admin/keys", json=wanted))

    @staticmethod
    def _done(answer: httpx.Response) -> None:
        if not answer.is_success:
            raise SystemExit(f"{answer.request.url}: {answer.status_code} {answer.text[:300]}")


def _insert(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    connection.execute(sa.insert(table), rows)


# Whatever is asked for in the middle is at the same place in both lists.
ASKED: dict[str, Callable[[Caller], None]] = {
    "an adapter's card": lambda caller: caller.get("/v1/adapters/own-00025"),
    "a page of own adapters": lambda caller: caller.get(f"/v1/adapters?limit={PAGE}"),
    "a page of others' adapters": lambda caller: caller.get(
        f"/v1/adapters?limit={PAGE // 2}&after=owner 0/pets"
    ),
    "an adapter's versions": lambda caller: caller.get("/v1/adapters/own-00025/versions"),
    "a page of keys": lambda caller: caller.get(f"/v1/admin/keys?limit={PAGE}&after=20"),
    "a new key": Caller.create_a_key,
    "publish": Caller.publish_another,
    "predict, own": lambda caller: caller.predict("own-00025"),
    "predict, public": lambda caller: caller.predict("owner 2/pets"),
    "predict, granted": lambda caller: caller.predict("owner 1/pets"),
    "the key's usage": lambda caller: caller.get("/v1/usage?limit=10"),
    "console: overview": lambda caller: caller.look_at("/"),
    "console: adapters": lambda caller: caller.look_at("/console/adapters"),
    "console: an adapter": lambda caller: caller.look_at("/console/adapters/own-00025"),
    "console: try one": lambda caller: caller.look_at("/console/try"),
    "console: keys": lambda caller: caller.look_at("/console/admin/keys"),
    "console: a key": lambda caller: caller.look_at(f"/console/admin/keys/{caller.prefix}"),
    "all adapters, no page": lambda caller: caller.get("/v1/adapters"),
    "all keys, no page": lambda caller: caller.get("/v1/admin/keys"),
}
GROW = ("all adapters, no page", "all keys, no page")  # their answers are a hundred times as long


def compare(store: str, urls: list[str | None], rounds: int) -> list[dict[str, Any]]:
    """Asks both servers in turn."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        callers = []
        for many, url in zip(SIZES, urls, strict=True):
            name = f"metered-{many}"
            client = stack.enter_context(serving(Path(folder), name, url))[0]
            client.timeout = 120
            database = Database.open(url, Path(folder) / name)
            stack.callback(database.close)
            callers.append(Caller(client, database, many))
        results = []
        for what, ask in ASKED.items():
            times = 5 if what in GROW else rounds
            seconds: list[list[float]] = [[], []]
            for number in range(WARM_UP + times):
                # Each goes first as often as the other.
                for which in (0, 1) if number % 2 else (1, 0):
                    caller, taken = callers[which], seconds[which]
                    began = time.perf_counter()
                    ask(caller)
                    if number >= WARM_UP:
                        taken.append(time.perf_counter() - began)
            small, large = (1000 * statistics.median(taken) for taken in seconds)
            results.append(
                {
                    "store": store,
                    "what": what,
                    "rounds": times,
                    "small_ms": small,
                    "large_ms": large,
                    "ratio": large / small,
                }
            )
    return results


def main() -> None:
    """Measures each store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--postgresql", default=POSTGRESQL, help="URL of a server")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = compare("SQLite", [None, None], args.rounds)
    with databases(args.postgresql) as urls:
        if urls:
            results += compare("PostgreSQL", list(urls), args.rounds)
    print_ratios(results, "100", "10,000")
    save(results, args.json)


if __name__ == "__main__":
    main()
