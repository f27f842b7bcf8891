"""Whether the ledger slows down as it grows: its calls at 1,000 and at 1,000,000 lines.

The two ledgers stand side by side and are asked in turn, so that both see the same machine. Lines
are written in bulk as `craft_server.ledger` would have written them. Prints a table, writes JSON.

    python benchmarks/ledger_growth.py \
        --json benchmarks/results/ledger_growth.json [--postgresql URL URL]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from craft_server.clock import now_ms
from craft_server.database import Database
from craft_server.ledger import account, budgets, charges, keys, leases
from craft_server.ledger.keys import Caller
from craft_server.ledger.tables import CHARGES, TOTALS
from craft_shared.units import UNITS, Units
from options import print_ratios, save

SMALL, LARGE = 1_000, 1_000_000
CHUNK = 20_000
UNITS_A_CALL = Units(queries=40, predictions=4000, texts=400, requests=1)
WORK = charges.Work("predictions", "pocket", "0", UNITS_A_CALL)


@dataclass(frozen=True)
class Ledger:
    """A database with lines of one key."""

    database: Database
    caller: Caller

    def usage(self) -> None:
        with self.database.reading() as connection:
            account.usage(connection, self.caller.key_id, after=0, limit=100)

    def last_page(self) -> None:
        with self.database.reading() as connection:
            account.usage(connection, self.caller.key_id, after=SMALL - 100, limit=100)

    def budget(self) -> None:
        with self.database.reading() as connection:
            budgets.list_budgets(connection, self.caller.key_id, self.caller.team_id, now_ms())

    def reservation(self) -> None:
        with self.database.writing() as connection:
            reserved = charges.reserve(
                connection, self.caller, WORK, holder="benchmark", at=now_ms()
            )
        with self.database.writing() as connection:
            charges.settle(connection, reserved, now_ms())


def make(database: Database, lines: int) -> Ledger:
    """Fills a ledger."""
    at = now_ms()
    with database.writing() as connection:
        caller = keys.authenticate(
            connection, keys.create_key(connection, owner="benchmark", at=at), at
        )
        assert caller is not None
        for unit in UNITS:
            budgets.set_budget(
                connection, key_id=caller.key_id, unit=unit, window="lifetime", limit=10**15, at=at
            )
        leases.renew(connection, "benchmark", at + 3_600_000)
    line = {
        "key_id": caller.key_id,
        "at": at,
        "closed_at": at,
        "call": WORK.call,
        "model": WORK.model,
        "revision": WORK.revision,
        "state": "settled",
        "holder": "",
        "holds": "[]",
        "cost_micros": 0,
        **UNITS_A_CALL.model_dump(),
    }
    for start in range(0, lines, CHUNK):
        numbers = range(start + 1, min(start + CHUNK, lines) + 1)
        with database.writing() as connection:
            connection.execute(sa.insert(CHARGES), [{**line, "line": n} for n in numbers])
    with database.writing() as connection:
        sums = {unit: amount * lines for unit, amount in UNITS_A_CALL.model_dump().items()}
        connection.execute(
            sa.update(TOTALS).where(TOTALS.c.key_id == caller.key_id).values(lines=lines, **sums)
        )
    return Ledger(database, caller)


def timed(action: Callable[[], None]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def compare(store: str, urls: tuple[str | None, str | None], rounds: int) -> list[dict[str, Any]]:
    """Asks both ledgers in turn."""
    with tempfile.TemporaryDirectory() as folder:
        ledgers = [
            make(Database.open(url, Path(folder) / str(lines)), lines)
            for url, lines in zip(urls, (SMALL, LARGE), strict=True)
        ]
        results = []
        for name in ("usage", "last_page", "budget", "reservation"):
            seconds: list[list[float]] = [[], []]
            for number in range(rounds + 20):
                for ledger, taken in zip(ledgers, seconds, strict=True):
                    second = timed(getattr(ledger, name))
                    if number >= 20:
                        taken.append(second)
            small, large = (1000 * statistics.median(taken) for taken in seconds)
            results.append(
                {
                    "store": store,
                    "what": name.replace("_", " "),
                    "small_ms": small,
                    "large_ms": large,
                    "ratio": large / small,
                }
            )
        for ledger in ledgers:
            ledger.database.close()
    return results


def main() -> None:
    """Measures each store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--postgresql", nargs=2, help="URLs of two empty databases")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = compare("SQLite", (None, None), args.rounds)
    if args.postgresql:
        results += compare("PostgreSQL", tuple(args.postgresql), args.rounds)
    print_ratios(results, f"{SMALL:,} lines", f"{LARGE:,} lines")
    save(results, args.json)


if __name__ == "__main__":
    main()
