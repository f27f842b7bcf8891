"""What saturates first on the way from one machine to a hundred: computed, and simulated.

Nothing here runs at such a size. Times are taken from measurements of this repository, as `TIMES`
names them; bytes a row are measured on a scratch database of PostgreSQL that the ledger's own
functions fill. From these follow cores, bytes and connections for each number of calls a second,
and a simulation of queues says how long a call then takes. A call is one image, classified with an
adapter.
Prints tables and writes JSON.

    python benchmarks/scaling.py --json benchmarks/results/scaling.json
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import json
import math
import random
import secrets
from collections import OrderedDict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from craft_server import image_sets
from craft_server.clock import now_ms
from craft_server.database import POSTGRESQL_THREADS, Database
from craft_server.ledger import budgets, calls, charges, keys, leases
from craft_server.settings import Settings
from craft_shared.units import UNITS, Units
from ledger_scale import POSTGRESQL, databases

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PLAN = HERE.parent / "server" / "craft_server" / "plan" / "constants.json"

RATES = (100, 1_000, 10_000)  # calls a second
KEYS = 10_000
ADAPTERS = 100_000
IMAGES = 100_000_000
MODEL = "ViT-B-32"
WIDTH = 512  # of its features
PIXELS = 400 * 400  # of an image before it is resized
CLASSES, WORDS = 102, 512  # of an adapter of the default recipe, with one prompt
ANSWER_BYTES = 2_000
BUSY = 0.7  # how busy cores may be at most
MACHINE_CORES = 16
MAX_CONNECTIONS = 100  # PostgreSQL's own default
SIMULATED_CALLS = 30_000
LINES, ROWS = 2_000, 5_000  # written to measure bytes


def result(name: str) -> Any:
    """What a benchmark has measured."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def times() -> dict[str, float]:
    """Seconds of one core a call, and where they come from."""
    model = json.loads(PLAN.read_text())["models"][MODEL]
    (free,) = (r["free_ms"] for r in result("metering_cost") if r["store"] == "PostgreSQL")
    own = next(r["this"] for r in result("ledger_rate_against") if r["budgets"] == "each key's")
    team = max(
        r["charges_per_second"]
        for r in result("ledger_rate")
        if r["store"] == "PostgreSQL" and r["budgets"] == "one team's" and r["refused"] == 0
    )
    return {
        # By the clock, with the caller's own work: more than a core takes.
        "http": free / 1000,  # metering_cost.json, free_ms
        "ledger": own["cpu_ms"] / 1000,  # ledger_rate_against.json, cpu_ms
        "database": own["postgresql_cpu_ms"] / 1000,  # the same, postgresql_cpu_ms
        "model": model["image_core_seconds"]  # plan/constants.json
        + model["decode_core_seconds"]
        + PIXELS * model["decode_pixel_core_seconds"],
        # A charge on budgets that all share, one after the other: ledger_rate.json.
        "shared_budget": 1 / team,
    }


# --- bytes --------------------------------------------------------------------------------------


def row_bytes(database: Database) -> dict[str, float]:
    """Bytes that a charge and an image take in PostgreSQL, indexes apart from tables."""
    at = now_ms()
    with database.writing() as connection:
        leases.renew(connection, "benchmark", at + 10**7)
        secret = keys.create_key(connection, owner="owner", at=at)
        caller = keys.authenticate(connection, secret, at)
        if caller is None:
            raise SystemExit("the key is unknown")
        for unit in UNITS:
            budgets.set_budget(
                connection, key_id=caller.key_id, unit=unit, window="day", limit=10**12, at=at
            )
    before = _sizes(database)
    units = Units(queries=1, predictions=1, images=1, requests=1)
    work = charges.Work("adapter-predictions", MODEL, "0" * 16, units)
    for _ in range(LINES):
        attempt = calls.Attempt(secrets.token_hex(16), "f" * 64, repeatable=True)
        order = charges.Order(work, caller, caller, attempt)
        with database.writing() as connection:
            (reserved,) = charges.reserve_all(
                connection, [order], holder="benchmark", at=at, lock=False
            )
            if isinstance(reserved, Exception):
                raise reserved
            answer = calls.StoredAnswer(200, "application/json", b"")
            charges.settle_all(connection, [charges.Settlement(reserved, None, answer)], at)
    with database.writing() as connection:
        made = image_sets.create_image_set(connection, "owner", model=MODEL, revision="0" * 16)
        digests = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(ROWS)]
        drawn = np.random.default_rng(0).standard_normal((ROWS, WIDTH), dtype=np.float32)
        features = dict(zip(digests, drawn, strict=True))
        image_sets.add_rows(
            connection, "owner", made.id, first_row=0, digests=digests, features=features
        )
    grown = {name: size - before[name] for name, size in _sizes(database).items()}
    return {
        "line": grown["charges"] / LINES,
        "line_indexes": grown["charges indexes"] / LINES,
        "call": grown["calls"] / LINES,  # without an answer's bytes
        "call_indexes": grown["calls indexes"] / LINES,
        "image": grown["image_features"] / ROWS,
        "image_indexes": grown["image_features indexes"] / ROWS,
        "image_set_row": (grown["image_set_rows"] + grown["image_set_rows indexes"]) / ROWS,
    }


def _sizes(database: Database) -> dict[str, int]:
    sizes = {}
    with database.reading() as connection:
        for table in ("charges", "calls", "image_features", "image_set_rows"):
            query = f"SELECT pg_table_size('{table}'), pg_indexes_size('{table}')"
            sizes[table], sizes[f"{table} indexes"] = connection.execute(sa.text(query)).one()
    return sizes


# --- queues -------------------------------------------------------------------------------------


def simulate(rate: float, cores: dict[str, int], route: Sequence[tuple[str, float]]) -> list[float]:
    """Seconds of each of `SIMULATED_CALLS` calls, which come by chance (Poisson).

    A call passes stations in turn; what it takes of a core there is exponential with that mean. The
    first fifth of the calls is left out.
    """
    rng = random.Random(0)
    # Calls that wait for a core, each with its step, the longest waiting first.
    waiting: dict[str, deque[tuple[int, int]]] = {name: deque() for name in cores}
    free = dict(cores)
    began = np.cumsum([rng.expovariate(rate) for _ in range(SIMULATED_CALLS)])
    ended = np.zeros(SIMULATED_CALLS)
    events = [(at, number, 0, False) for number, at in enumerate(began)]
    heapq.heapify(events)

    def start(at: float, number: int, step: int) -> None:
        seconds = rng.expovariate(1 / route[step][1])
        heapq.heappush(events, (at + seconds, number, step, True))

    while events:
        at, number, step, done = heapq.heappop(events)
        station = route[step][0]
        if not done:
            if free[station]:
                free[station] -= 1
                start(at, number, step)
            else:
                waiting[station].append((number, step))
            continue
        if waiting[station]:
            start(at, *waiting[station].popleft())
        else:
            free[station] += 1
        if step + 1 < len(route):
            heapq.heappush(events, (at, number, step + 1, False))
        else:
            ended[number] = at
    return list((ended - began)[SIMULATED_CALLS // 5 :])


def deployment(rate: int, taken: dict[str, float], stored: dict[str, float]) -> dict[str, Any]:
    """What so many calls a second need, and how long one takes on it."""
    ingress = taken["http"] + taken["ledger"]
    needed = {"ingress": ingress, "database": taken["database"], "model": taken["model"]}
    cores = {name: math.ceil(rate * seconds / BUSY) for name, seconds in needed.items()}
    route = [
        ("ingress", ingress / 2),
        ("database", taken["database"] / 2),
        ("model", taken["model"]),
        ("ingress", ingress / 2),
        ("database", taken["database"] / 2),
    ]
    seconds = simulate(rate, cores, route)
    line = stored["line"] + stored["line_indexes"]
    call = stored["call"] + stored["call_indexes"]
    processes = cores["ingress"]  # Python computes on one core a process
    return {
        "calls_a_second": rate,
        "cores": cores,
        "machines": math.ceil((cores["ingress"] + cores["model"]) / MACHINE_CORES) + 1,
        "p50_ms": 1000 * float(np.quantile(seconds, 0.5)),
        "p99_ms": 1000 * float(np.quantile(seconds, 0.99)),
        "connections": processes * POSTGRESQL_THREADS,
        "lines_a_day": rate * 86_400,
        "line_gigabytes_a_day": rate * 86_400 * line / 1e9,
        # Records of calls and answers stay for a day.
        "call_gigabytes": rate * 86_400 * call / 1e9,
        "answer_megabytes_a_second": rate * ANSWER_BYTES / 1e6,
        "answers_kept_seconds": Settings.model_fields["answers_bytes"].default
        / (rate * ANSWER_BYTES),
        "largest_owner_calls_a_second": rate * float(zipf(KEYS)[0]),
        "largest_adapter_calls_a_second": rate * float(zipf(ADAPTERS)[0]),
    }


# --- what is shared unevenly --------------------------------------------------------------------


def zipf(count: int) -> np.ndarray:
    """Shares of holders of whom the n-th has 1/n of what the first one has."""
    weights = 1 / np.arange(1, count + 1)
    return weights / weights.sum()


def divided(shards: int) -> dict[str, float]:
    """How even a ledger is that is divided by owner: each owner's calls are in one part."""
    shares = zipf(KEYS)
    where = [int(hashlib.sha256(str(n).encode()).hexdigest(), 16) % shards for n in range(KEYS)]
    loads = np.bincount(where, weights=shares, minlength=shards)
    return {"parts": shards, "largest_share": float(loads.max()), "even_share": 1 / shards}


def adapter_bytes() -> int:
    """Bytes of one adapter in memory: its prompt's text features, and its head's matrix."""
    texts = CLASSES + WORDS
    return 4 * (texts * WIDTH + texts * CLASSES)


def missed(processes: int, *, by_name: bool, gibibytes: int = 1) -> dict[str, Any]:
    """How often a process must fetch an adapter, of 100,000 that are asked for unevenly.

    Args:
        by_name: whether whatever stands before the processes sends all calls of an adapter to the
            same one.
        gibibytes: of each process's memory for adapters.
    """
    most = gibibytes * 2**30 // adapter_bytes()
    asked = np.random.default_rng(0).choice(ADAPTERS, 400_000, p=zipf(ADAPTERS))
    if by_name:
        asked = asked[asked % processes == 0]
    cache: OrderedDict[int, None] = OrderedDict()
    misses, counted = 0, 0
    for number, adapter in enumerate(asked.tolist()):
        missing = adapter not in cache
        cache[adapter] = None
        cache.move_to_end(adapter)
        if len(cache) > most:
            cache.popitem(last=False)
        if number >= len(asked) // 2:
            misses, counted = misses + missing, counted + 1
    return {
        "processes": processes,
        "by_name": by_name,
        "gibibytes": gibibytes,
        "adapters_in_memory": most,
        "missed": misses / counted,
    }


def main() -> None:
    """Computes all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--postgresql", default=POSTGRESQL, help="URL of a server")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with databases(args.postgresql) as urls:
        if not urls:
            raise SystemExit("PostgreSQL does not answer")
        database = Database.open(urls[0], HERE)
        stored = row_bytes(database)
        database.close()
    taken = times()
    found = {
        "model": MODEL,
        "core_seconds_a_call": taken,
        "bytes": stored,
        "deployments": [deployment(rate, taken, stored) for rate in RATES],
        "shared_budget_charges_a_second": 1 / taken["shared_budget"],
        "largest_owner_share": float(zipf(KEYS)[0]),
        "divided": [divided(shards) for shards in (4, 8, 16)],
        "processes_at_default_connections": MAX_CONNECTIONS // POSTGRESQL_THREADS,
        "adapter_bytes": adapter_bytes(),
        "adapters_gigabytes": ADAPTERS * adapter_bytes() / 1e9,
        "adapter_caches": [
            missed(1, by_name=False),
            missed(1, by_name=False, gibibytes=16),
            missed(7, by_name=True),
            missed(7, by_name=True, gibibytes=8),
            missed(62, by_name=True),
        ],
        "image_gigabytes": IMAGES * (stored["image"] + stored["image_set_row"]) / 1e9,
        "image_index_gigabytes": IMAGES * stored["image_indexes"] / 1e9,
    }
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
