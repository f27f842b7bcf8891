"""Throughput on Ray Serve: two model replicas beside one, with a stub in place of the model.

The stub computes one call at a time and takes a given time for it, as a model on a device does, so
that replicas rather than this machine's cores are what is compared. Both run in one cluster, in
turns: one replica, two, one, two, ... Needs PostgreSQL and the extra `ray`.

    python benchmarks/ray_replicas.py --database-url postgresql://postgres@127.0.0.1/postgres
        --out benchmarks/results/ray_replicas.json
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import secrets
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psycopg
import ray
from PIL import Image
from ray import serve
from rich.console import Console
from rich.table import Table

from craft_server.clock import now_ms
from craft_server.database import Database
from craft_server.engine import ModelFacts
from craft_server.ledger.budgets import list_budgets, set_budget
from craft_server.ledger.keys import create_key, find_key
from craft_server.ray_serve.deployments import Ingress

FACTS = ModelFacts(
    name="pocket",
    revision="0" * 16,
    image_size=8,
    random_weights=True,
    context_length=77,
    preprocess_cfg={"size": 8},
)
BUDGET = 10**9


class StubModel:
    """One call at a time, each for as long as it is told."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._device = asyncio.Lock()

    async def facts(self) -> dict[str, Any]:
        return FACTS.model_dump()

    async def state(self) -> dict[str, Any]:
        cache = {"nbytes": 0, "max_bytes": 0, "hits": 0, "misses": 0}
        return {"waiting": 0.0, "busy_seconds": {}, "text_features": cache}

    async def encode_images(self, pixels: Any, *, tenant: str) -> Any:
        return np.zeros((len(pixels), 1), np.float32)

    async def encode_prompts(self, prompts: Any, classes: list[str], *, tenant: str) -> Any:
        return np.zeros((prompts.count, len(classes), 1), np.float32)

    async def log_probs(self, images: Any, texts: Any, *, tenant: str) -> Any:
        async with self._device:
            await asyncio.sleep(self._seconds)
        return np.zeros((len(texts), len(images), texts.shape[1]), np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database-url", required=True)
    parser.add_argument("--seconds", type=float, default=0.2, help="that the stub computes")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--calls", type=int, default=160, help="of all clients, a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--port", type=int, default=8199)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    name = f"craftbox_ray_{secrets.token_hex(4)}"
    base = arguments.database_url.rsplit("/", 1)[0]
    with psycopg.connect(arguments.database_url, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
        try:
            with tempfile.TemporaryDirectory() as folder:
                measured = _measure(arguments, f"{base}/{name}", Path(folder))
        finally:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    _show(measured)
    if arguments.out:
        arguments.out.write_text(json.dumps(measured, indent=1) + "\n")


def _measure(arguments: argparse.Namespace, url: str, folder: Path) -> dict[str, Any]:
    database = Database.open(url, folder)
    with database.writing() as connection:
        key = create_key(connection, owner="benchmark", at=now_ms())
        key_id = find_key(connection, key.split("_")[1]).key_id
        set_budget(
            connection, key_id=key_id, unit="queries", window="lifetime", limit=BUDGET, at=now_ms()
        )
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=200_000_000,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        runtime_env={"env_vars": {"CRAFT_DATABASE_URL": url, "CRAFT_DATA_DIR": str(folder)}},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})
    turns: list[dict[str, Any]] = []
    for number in range(2 * arguments.turns):
        replicas = 1 + number % 2
        _deploy(replicas, arguments.seconds)
        turns.append({"replicas": replicas, **asyncio.run(_turn(arguments, key))})
    with database.reading() as connection:
        (budget,) = list_budgets(connection, key_id, None, now_ms())
    database.close()
    serve.shutdown()
    ray.shutdown()
    answered = sum(turn["calls"] + arguments.clients for turn in turns)
    rate = {
        n: statistics.median(t["calls_a_second"] for t in turns if t["replicas"] == n)
        for n in (1, 2)
    }
    return {
        "stub_seconds": arguments.seconds,
        "clients": arguments.clients,
        "cores": os.cpu_count(),
        "turns": turns,
        "calls_a_second": {str(n): round(value, 2) for n, value in rate.items()},
        "ratio": round(rate[2] / rate[1], 3),
        "answered": answered,
        "charged": budget.spent,
        "reserved": budget.reserved,
    }


def _deploy(replicas: int, seconds: float) -> None:
    some = {"ray_actor_options": {"num_cpus": 0.1}}
    model = serve.deployment(max_ongoing_requests=64)(StubModel)
    serve.run(
        Ingress.options(num_replicas=2, **some).bind(
            model.options(num_replicas=replicas, **some).bind(seconds)
        )
    )


async def _turn(arguments: argparse.Namespace, key: str) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    body = {
        "model": FACTS.name,
        "classes": ["cat", "dog"],
        "templates": ["a {}"],
        "images": [base64.b64encode(file.getvalue()).decode()],
    }
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{arguments.port}",
        headers={"Authorization": f"Bearer {key}"},
        timeout=60,
        trust_env=False,
    ) as http:

        async def calls(count: int) -> None:
            for _ in range(count):
                (await http.post("/v1/predictions", json=body)).raise_for_status()

        clients = range(arguments.clients)
        await asyncio.gather(*(calls(1) for _ in clients))
        each = arguments.calls // arguments.clients
        began = time.perf_counter()
        await asyncio.gather(*(calls(each) for _ in clients))
        took = time.perf_counter() - began
    count = each * arguments.clients
    return {
        "calls": count,
        "seconds": round(took, 3),
        "calls_a_second": round(count / took, 3),
    }


def _show(measured: dict[str, Any]) -> None:
    table = Table("Model replicas", "Calls a second")
    for replicas, rate in measured["calls_a_second"].items():
        table.add_row(replicas, f"{rate:.2f}")
    console = Console()
    console.print(table)
    console.print(
        f"Ratio {measured['ratio']:.2f}; {measured['answered']} answered, {measured['charged']} "
        f"charged, {measured['reserved']} still reserved"
    )


if __name__ == "__main__":
    main()
