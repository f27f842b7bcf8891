"""Whether keys and stored answers slow the ledger down: 100 of each, and 10,000 and a million.

The two ledgers stand side by side and are asked in turn, so that both see the same machine. Rows
are written in bulk as `craft_server.ledger` would have written them, one line for each answer.
Prints a table and writes JSON. SQLite always, PostgreSQL where it answers.

    python benchmarks/ledger_scale.py --json benchmarks/results/ledger_scale.json
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from craft_server.clock import now_ms
from craft_server.database import Database
from craft_server.ledger import administration, calls, exports, keys, leases
from craft_server.ledger.calls import Attempt, StoredAnswer
from craft_server.ledger.exports import Place
from craft_server.ledger.selection import Selection
from craft_server.ledger.tables import STORED_BYTES
from craft_shared.units import MEASURES
from craft_shared.wire import KeyCreate

POSTGRESQL = "postgresql://postgres@127.0.0.1:5432"
SIZES = {"small": (100, 100), "large": (10_000, 1_000_000)}
BODY_BYTES = 16
# As many lines as the small ledger has, so that both pages are as long.
exports._LINES_A_PAGE = 100

_NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
_NOTHING = ", ".join("0" for _ in MEASURES)
_BULK = {
    "api_keys": (
        "(owner, name, scopes, created_at)",
        "'owner ' || i, '', 'predict publish', {at}",
    ),
    "key_secrets": (
        "(prefix, key_id, secret_hash, created_at)",
        "'k' || substr('0000000' || i, length('' || i) + 1), i, 'x', {at}",
    ),
    "totals": (
        f"(key_id, lines, {', '.join(MEASURES)})",
        f"i, {{answers}} / {{keys}}, {_NOTHING}",
    ),
    "charges": (
        "(key_id, line, at, closed_at, call, model, revision, state, holder, holds, "
        f"{', '.join(MEASURES)})",
        "1 + (i - 1) % {keys}, 1 + (i - 1) / {keys}, i, i, 'predictions', 'pocket', '0', "
        f"'settled', '', '[]', {_NOTHING}",
    ),
    "calls": (
        "(key_id, idempotency_key, fingerprint, at, holder, charge_id, done, repeatable, status, "
        "media_type, body_bytes, body)",
        "1 + (i - 1) % {keys}, 'call ' || i, 'f', {at}, '', i, {true}, {true}, 200, 'text/plain', "
        f"{BODY_BYTES}, {{body}}",
    ),
}


@dataclass(frozen=True)
class Ledger:
    """A database with keys and stored answers, and what is measured of it."""

    database: Database
    keys: int
    answers: int

    def nothing(self) -> None:
        """Before what needs no preparation."""

    def create_a_key(self) -> None:
        wanted = KeyCreate(owner="new", budgets=[{"unit": "queries", "limit": 9}])
        with self.database.writing() as connection:
            administration.create(connection, wanted, now_ms())

    def look_up_a_key(self) -> None:
        with self.database.reading() as connection:
            keys.find_key(connection, f"k{self.keys // 2:07d}")

    def export_a_page(self) -> None:
        with self.database.reading() as connection:
            # Each line is a millisecond after the one before.
            after = Place(self.answers - 100, self.answers - 100)
            found = exports.page(connection, Selection(), after=after)
        assert len(found.lines) == 100

    def answer(self) -> None:
        """One answer more than is to be kept."""
        attempt = Attempt(secrets.token_hex(8), "f", repeatable=True)
        with self.database.writing() as connection:
            number = calls.begin(connection, 1, attempt, holder="", charge_id=None, at=now_ms())
            calls.finish(connection, number, StoredAnswer(200, "text/plain", bytes(BODY_BYTES)))

    def evict(self) -> None:
        with self.database.writing() as connection:
            calls.evict(connection, most_bytes=self.answers * BODY_BYTES, before=0)

    def keep_a_lease(self) -> None:
        with self.database.writing() as connection:
            leases.renew(connection, "benchmark", now_ms() + 60_000)
        with self.database.writing() as connection:
            leases.release_expired(connection, now_ms())


MEASURED: dict[str, tuple[Callable[[Ledger], None], Callable[[Ledger], None]]] = {
    "create a key": (Ledger.nothing, Ledger.create_a_key),
    "look a key up": (Ledger.nothing, Ledger.look_up_a_key),
    "export a page": (Ledger.nothing, Ledger.export_a_page),
    "evict an answer": (Ledger.answer, Ledger.evict),
    "keep a lease": (Ledger.nothing, Ledger.keep_a_lease),
}


def make(database: Database, size: tuple[int, int]) -> Ledger:
    """Fills a ledger."""
    many, answers = size
    sqlite = database.dialect == "sqlite"
    words = {
        "at": now_ms(),
        "keys": many,
        "answers": answers,
        "true": "1" if sqlite else "TRUE",
        "body": f"zeroblob({BODY_BYTES})"
        if sqlite
        else f"decode(repeat('00', {BODY_BYTES}), 'hex')",
    }
    for table, (columns, values) in _BULK.items():
        count = answers if table in ("charges", "calls") else many
        numbers, row = _NUMBERS.format(count=count), values.format(**words)
        with database.writing() as connection:
            insert = f"INSERT INTO {table} {columns}"
            parts = (numbers, insert) if sqlite else (insert, numbers)
            connection.execute(sa.text(f"{' '.join(parts)} SELECT {row} FROM n"))
    with database.writing() as connection:
        if not sqlite:
            for table in ("api_keys", "charges", "calls"):
                connection.exec_driver_sql(f"ANALYZE {table}")
        connection.execute(
            sa.update(STORED_BYTES)
            .where(STORED_BYTES.c.shard == 0)
            .values(bytes=answers * BODY_BYTES)
        )
    return Ledger(database, many, answers)


def compare(store: str, urls: list[str], rounds: int) -> list[dict[str, Any]]:
    """Asks both ledgers in turn."""
    with tempfile.TemporaryDirectory() as folder:
        ledgers = [
            make(Database.open(url, Path(folder)), size)
            for url, size in zip(urls, SIZES.values(), strict=True)
        ]
        results = []
        for what, (prepare, do) in MEASURED.items():
            wall: list[list[float]] = [[], []]
            cpu: list[list[float]] = [[], []]
            for number in range(rounds + 10):
                for ledger, walls, cpus in zip(ledgers, wall, cpu, strict=True):
                    prepare(ledger)
                    began, used = time.perf_counter(), time.process_time()
                    do(ledger)
                    if number >= 10:
                        walls.append(time.perf_counter() - began)
                        cpus.append(time.process_time() - used)
            small, large = (1000 * statistics.median(taken) for taken in wall)
            small_cpu, large_cpu = (1000 * statistics.median(taken) for taken in cpu)
            results.append(
                {
                    "store": store,
                    "what": what,
                    "small_ms": small,
                    "large_ms": large,
                    "ratio": large / small,
                    "cpu_ratio": large_cpu / small_cpu,
                }
            )
        for ledger in ledgers:
            ledger.database.close()
    return results


@contextmanager
def databases(server: str) -> Iterator[list[str]]:
    """Two empty databases of a PostgreSQL server, dropped at the end; none where none answers."""
    import psycopg

    try:
        admin = psycopg.connect(f"{server}/postgres", autocommit=True, connect_timeout=3)
    except psycopg.OperationalError:
        yield []
        return
    names = [f"craftbox_scale_{secrets.token_hex(4)}" for _ in SIZES]
    with admin:
        for name in names:
            admin.execute(f'CREATE DATABASE "{name}"')
        try:
            yield [f"{server}/{name}" for name in names]
        finally:
            for name in names:
                admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def main() -> None:
    """Measures each store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--postgresql", default=POSTGRESQL, help="URL of a server")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        urls = [f"sqlite:///{folder}/{name}.db" for name in SIZES]
        results = compare("SQLite", urls, args.rounds)
    with databases(args.postgresql) as urls:
        if urls:
            results += compare("PostgreSQL", urls, args.rounds)
    print("| store | what | 100 keys and answers, ms | 10,000 and 1,000,000, ms | ratio | of CPU |")
    print("|---|---|---|---|---|---|")
    for r in results:
        print(
            f"| {r['store']} | {r['what']} | {r['small_ms']:.2f} | {r['large_ms']:.2f} "
            f"| {r['ratio']:.2f} | {r['cpu_ratio']:.2f} |"
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
