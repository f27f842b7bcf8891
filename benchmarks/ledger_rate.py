"""How many charges a second the ledger takes: reservation, settlement and stored answer of each.

Processes with the server's own services book calls as the API does, with an engine that does
nothing and without HTTP. Budgets on all five units are either each key's own or one team's, which
all keys share. The last measurement of each store lets the budgets run out, and counts whether more
was ever given than they allow. Prints a table and writes JSON.

    python benchmarks/ledger_rate.py --json benchmarks/results/ledger_rate.json [--postgresql URL]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from fastapi.responses import Response

from craft_server.api.idempotency import Call
from craft_server.api.metering import booking
from craft_server.app import create_app
from craft_server.clock import now_ms
from craft_server.database import Database
from craft_server.ledger import budgets, keys
from craft_server.ledger.calls import Attempt
from craft_server.ledger.charges import BudgetExhausted, Work
from craft_server.ledger.keys import Caller
from craft_server.ledger.tables import BUDGETS, CHARGES, TOTALS
from craft_server.settings import Settings
from craft_shared.units import UNITS, Units
from metering_cost import MODEL, REVISION, StubEngine

UNITS_A_CALL = Units(queries=40, predictions=4000, texts=400, requests=1)
WORK = Work("predictions", MODEL, REVISION, UNITS_A_CALL)
ANSWER = b"x" * 2000
ENDLESS = 10**12


@dataclass(frozen=True)
class Load:
    """What books calls.

    Attributes:
        url: of the database.
        processes: that share it.
        calls: at a time, in each process.
        keys: that the calls are spread over.
        shared: whether the keys have one team's budgets rather than their own.
        limit: calls that the budgets cover, of each holder.
        seconds: how long it lasts.
    """

    url: str
    processes: int
    calls: int
    keys: int
    shared: bool
    limit: int
    seconds: float


def prepare(load: Load, folder: Path) -> list[Caller]:
    """Keys and budgets."""
    database, at = Database.open(load.url, folder), now_ms()
    team = f"team-{uuid.uuid4().hex}" if load.shared else None
    with database.writing() as connection:
        secrets = [
            keys.create_key(connection, owner="benchmark", team=team, at=at)
            for _ in range(load.keys)
        ]
        callers = [keys.authenticate(connection, secret, at) for secret in secrets]
        for unit in UNITS:
            limit = load.limit * max(UNITS_A_CALL[unit], 1)
            for caller in callers[:1] if load.shared else callers:
                holder = {"team_id": caller.team_id} if team else {"key_id": caller.key_id}
                budgets.set_budget(
                    connection, **holder, unit=unit, window="lifetime", limit=limit, at=at
                )
    database.close()
    return callers


async def book(services: Any, callers: Sequence[Caller], load: Load, number: int) -> Counter[str]:
    """Books calls until the time is over; how they ended, and milliseconds of each."""
    ended: Counter[str] = Counter()
    until = time.monotonic() + load.seconds

    async def one_after_another(first: int) -> list[float]:
        taken = []
        turn = first
        while (began := time.monotonic()) < until:
            turn += 1
            caller = callers[turn % len(callers)]
            request: Any = None
            call = Call(request, services, caller, Attempt(uuid.uuid4().hex, "fingerprint", True))
            try:
                async with booking(call, WORK) as booked:
                    await booked.settle(Response(ANSWER, media_type="application/json"))
                ended["settled"] += 1
                taken.append(1000 * (time.monotonic() - began))
            except BudgetExhausted:
                ended["refused"] += 1
        return taken

    lanes = [one_after_another(number * load.calls + lane) for lane in range(load.calls)]
    taken = [ms for lane in await asyncio.gather(*lanes) for ms in lane]
    ended["median_us"] = round(1000 * statistics.median(taken)) if taken else 0
    return ended


def run_process(
    load: Load, callers: list[Caller], number: int, folder: str, ready: Any, results: Any
) -> None:
    """One server process' worth of calls."""
    app = create_app(Settings(data_dir=Path(folder), database_url=load.url), StubEngine())
    services = app.state.services
    ready.wait()
    used = time.process_time()
    ended = asyncio.run(book(services, callers, load, number))
    results.put({**ended, "cpu_ms": round(1000 * (time.process_time() - used))})
    services.lease.close()
    services.database.close()


def measure(store: str, load: Load, folder: Path) -> dict[str, Any]:
    """Runs a load on fresh keys, and checks the ledger after it."""
    callers = prepare(load, folder)
    spawn = multiprocessing.get_context("spawn")
    ready, results = spawn.Barrier(load.processes), spawn.Queue()
    processes = [
        spawn.Process(target=run_process, args=(load, callers, number, str(folder), ready, results))
        for number in range(load.processes)
    ]
    for process in processes:
        process.start()
    used = postgresql_ms()
    ended = [results.get(timeout=load.seconds + 120) for _ in processes]
    used = postgresql_ms() - used
    for process in processes:
        process.join()
    settled = sum(one.get("settled", 0) for one in ended)
    return {
        "store": store,
        "processes": load.processes,
        "calls_at_a_time": load.processes * load.calls,
        "keys": load.keys,
        "budgets": "one team's" if load.shared else "each key's",
        "seconds": load.seconds,
        "settled": settled,
        "refused": sum(one.get("refused", 0) for one in ended),
        "charges_per_second": settled / load.seconds,
        "median_ms": statistics.median(one["median_us"] for one in ended) / 1000,
        "cpu_ms": sum(one["cpu_ms"] for one in ended) / max(1, settled),
        "postgresql_cpu_ms": used / max(1, settled) if store == "PostgreSQL" else 0,
        **check(load, callers, settled, folder),
    }


def postgresql_ms() -> float:
    """What all of this machine's PostgreSQL processes that still run have taken of processors."""
    ticks = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            name, _, rest = (process / "stat").read_text().rpartition(")")
            if name.endswith("(postgres"):
                fields = rest.split()
                ticks += int(fields[11]) + int(fields[12])
    return 1000 * ticks / os.sysconf("SC_CLK_TCK")


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures this checkout and another in turn, on PostgreSQL and without bounds that bind."""
    compared = []
    for number in (2, 3):
        rounds: dict[str, list[dict[str, Any]]] = {"this": [], "other": []}
        for _ in range(args.rounds):
            for which, checkout in (("other", args.against), ("this", Path(__file__).parents[1])):
                parts = (str(checkout.absolute() / part) for part in ("server", "shared", "client"))
                command = [sys.executable, __file__, "--only", str(number)]
                command += ["--seconds", str(args.seconds), "--postgresql", args.postgresql]
                done = subprocess.run(
                    command,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(parts)},
                    capture_output=True,
                    text=True,
                    check=True,
                )
                rounds[which].append(json.loads(done.stdout.splitlines()[-1]))
                print(which, done.stdout.splitlines()[-1], flush=True)
        results = {
            which: {
                name: statistics.median(one[name] for one in of_it)
                for name in ("charges_per_second", "median_ms", "cpu_ms", "postgresql_cpu_ms")
            }
            for which, of_it in rounds.items()
        }
        wrong = sum(one["overshoot"] + one["miscounted"] for one in rounds["this"])
        first = rounds["this"][0]
        shape = {name: first[name] for name in ("processes", "calls_at_a_time", "budgets")}
        compared.append({**shape, "rounds": args.rounds, "wrong": wrong, **results})
        print(json.dumps(compared[-1]), flush=True)
    return compared


def check(load: Load, callers: list[Caller], settled: int, folder: Path) -> dict[str, int]:
    """Overshoot, and what ledger, totals and budgets differ in from what was answered."""
    ids = [caller.key_id for caller in callers]
    queries = UNITS_A_CALL.queries
    database = Database.open(load.url, folder)
    with database.reading() as connection:
        of_load = (
            BUDGETS.c.team_id == callers[0].team_id if load.shared else BUDGETS.c.key_id.in_(ids)
        )
        held = connection.execute(
            sa.select(BUDGETS).where(of_load, BUDGETS.c.unit == "queries")
        ).all()
        lines = connection.execute(
            sa.select(sa.func.count()).where(
                CHARGES.c.key_id.in_(ids), CHARGES.c.state == "settled"
            )
        ).scalar_one()
        total = connection.execute(
            sa.select(sa.func.sum(TOTALS.c.queries)).where(TOTALS.c.key_id.in_(ids))
        ).scalar_one()
    database.close()
    spent = sum(row.spent for row in held)
    return {
        "overshoot": sum(row.spent + row.reserved > row.limit for row in held)
        + max(0, settled - load.limit * len(held)),
        "left_reserved": sum(row.reserved for row in held),
        "miscounted": abs(lines - settled)
        + abs(int(total) - queries * settled)
        + abs(spent - queries * settled),
    }


def loads(url: str, seconds: float, limit: int) -> list[Load]:
    """Own budgets, shared ones, and ones that run out."""
    return [
        Load(url, 1, 8, 8, False, ENDLESS, seconds),
        Load(url, 2, 8, 8, False, ENDLESS, seconds),
        Load(url, 4, 4, 8, False, ENDLESS, seconds),
        Load(url, 2, 8, 8, True, ENDLESS, seconds),
        Load(url, 2, 8, 8, False, limit, seconds),
        Load(url, 2, 8, 8, True, limit, seconds),
    ]


def main() -> None:
    """Measures each store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--limit", type=int, default=100, help="calls that small budgets cover")
    parser.add_argument("--postgresql", help="URL of an empty database")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--against", type=Path, help="another checkout, to be compared with")
    parser.add_argument("--rounds", type=int, default=3, help="of a comparison")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only is not None:
        load = loads(args.postgresql, args.seconds, args.limit)[args.only]
        with tempfile.TemporaryDirectory() as name:
            print(json.dumps(measure("PostgreSQL", load, Path(name))))
        return
    if args.against:
        compared = compare(args)
        if args.json:
            args.json.write_text(json.dumps(compared, indent=1) + "\n")
        return
    results = []
    print("| store | processes | calls at a time | budgets | charges/s | median, ms | refused |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores = {"SQLite": f"sqlite:///{folder / 'rate.db'}"}
        if args.postgresql:
            stores["PostgreSQL"] = args.postgresql
        for store, url in stores.items():
            for load in loads(url, args.seconds, args.limit):
                r = measure(store, load, folder)
                results.append(r)
                print(
                    f"| {store} | {r['processes']} | {r['calls_at_a_time']} | {r['budgets']} "
                    f"| {r['charges_per_second']:.0f} | {r['median_ms']:.1f} | {r['refused']} |",
                    flush=True,
                )
                wrong = {k: r[k] for k in ("overshoot", "left_reserved", "miscounted") if r[k]}
                if wrong:
                    raise SystemExit(f"the ledger is wrong: {wrong}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
