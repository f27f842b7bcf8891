"""What metering costs a request: a server with the ledger beside one whose ledger does nothing.

Both are the real application behind a real socket, with an engine that answers at once, so that
nothing but HTTP and metering is left to measure. Requests alternate between them, so that both see
the same machine. Prints a table and writes JSON.

    python benchmarks/metering_cost.py \
        --json benchmarks/results/metering_cost.json [--postgresql URL]

Two commits are compared in one run by the processor time that their servers take for the same
requests in turn; the other commit is a checkout beside this one (`git worktree add FOLDER COMMIT`):

    python benchmarks/metering_cost.py --against FOLDER [--postgresql URL URL]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np

HERE = Path(__file__)
MODEL, REVISION = "stub", "0"
WARM_UP = 50


class StubEngine:
    """Answers at once: what `craft_server.api` asks of an engine."""

    name, revision, image_size = MODEL, REVISION, 32
    random_weights, alive = False, True
    facts = SimpleNamespace(images_in="float32", texts_in="float32")

    async def check_prompts(self, *_: Any, **__: Any) -> list[Any]:
        return []

    async def decode_images(self, files: Sequence[bytes], **_: Any) -> list[Any]:
        return [None for _ in files]

    async def encode_images(self, images: Any, **_: Any) -> Any:
        return np.ones((len(images), 8), np.float32)

    async def encode_prompts(self, prompts: Any, classes: Any, **_: Any) -> Any:
        return np.ones((prompts.count, len(classes), 8), np.float32)

    async def score(self, images: Any, texts: Any, dtype: str = "float32", **_: Any) -> Any:
        return np.zeros((len(texts), len(images), texts.shape[1]), dtype)


def serve(port_file: Path, data_dir: Path, url: str | None, *, metered: bool) -> None:
    """Runs a server; what it listens on and a key go into `port_file`."""
    import socket

    import uvicorn

    from craft_server import clock
    from craft_server.api import metering
    from craft_server.app import create_app
    from craft_server.ledger import budgets, keys
    from craft_server.settings import Settings
    from craft_shared.units import UNITS
    from craft_shared.wire import Cost

    app = create_app(Settings(data_dir=data_dir, database_url=url), StubEngine())
    database, at = app.state.services.database, clock.now_ms()
    with database.writing() as connection:
        secret = keys.create_key(connection, owner="benchmark", at=at)
        caller = keys.authenticate(connection, secret, at)
        for unit in UNITS:
            budgets.set_budget(
                connection, key_id=caller.key_id, unit=unit, window="lifetime", limit=10**12, at=at
            )
    if not metered:

        async def no_query(function: Any, *_: Any, **__: Any) -> Any:
            return {keys.admit: (caller, None)}[function]

        async def no_booking(call: Any, work: Any, *_: Any) -> Any:
            cost = Cost(charged=work.units, budgets=[])
            return metering.Booking(cost, False, call.services, work, None, None)

        async def no_settling(self: Any, response: Any) -> Any:
            return response

        database.query = no_query
        metering._book = no_booking
        metering.Booking.settle = no_settling

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    port_file.write_text(json.dumps({"port": listener.getsockname()[1], "key": secret}))
    config = uvicorn.Config(app, log_config=None, access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def serving(
    folder: Path, name: str, url: str | None, checkout: Path | None = None
) -> Iterator[tuple[httpx.Client, int]]:
    """A server process of its own, from this checkout or another: a client of it, and its id."""
    environment, script = dict(os.environ), HERE
    if checkout is not None:
        script = checkout / "benchmarks" / HERE.name  # whose stub fits its server
        parts = (str(checkout.absolute() / part) for part in ("server", "shared", "client"))
        environment["PYTHONPATH"] = os.pathsep.join(parts)
    port_file = folder / f"{name}.json"
    serve_as = name if name == "free" else "metered"
    command = [sys.executable, script, "--serve", serve_as, "--port-file", port_file]
    command += ["--data-dir", folder / name, *(["--postgresql", url] if url else [])]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        deadline = time.monotonic() + 60
        while not port_file.exists() or not port_file.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server '{name}' did not start")
            time.sleep(0.05)
        found = json.loads(port_file.read_text())
        with httpx.Client(
            base_url=f"http://127.0.0.1:{found['port']}",
            headers={"Authorization": f"Bearer {found['key']}"},
            transport=httpx.HTTPTransport(retries=5),
        ) as client:
            yield client, process.pid
    finally:
        process.terminate()
        process.wait(30)


def ask(client: httpx.Client) -> float:
    """Seconds of one prediction: 40 prompts, one picture, ten classes."""
    body = {
        "model": MODEL,
        "classes": [f"class {i}" for i in range(10)],
        "templates": ["a photo of a {}."] * 40,
        "images": ["AAAA"],
    }
    started = time.perf_counter()
    answer = client.post(
        "/v1/predictions", json=body, headers={"Idempotency-Key": uuid.uuid4().hex}
    )
    seconds = time.perf_counter() - started
    answer.raise_for_status()
    return seconds


def measure(store: str, url: str | None, requests: int) -> dict[str, Any]:
    """Alternates requests between the two servers."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        clients = {
            name: stack.enter_context(serving(Path(folder), name, url))[0]
            for name in ("metered", "free")
        }
        seconds: dict[str, list[float]] = {name: [] for name in clients}
        for number in range(WARM_UP + requests):
            for name, client in clients.items():
                taken = ask(client)
                if number >= WARM_UP:
                    seconds[name].append(taken)
    medians = {name: 1000 * statistics.median(taken) for name, taken in seconds.items()}
    differences = [
        1000 * (metered - free)
        for metered, free in zip(seconds["metered"], seconds["free"], strict=True)
    ]
    return {
        "store": store,
        "requests": requests,
        "metered_ms": medians["metered"],
        "free_ms": medians["free"],
        "metering_ms": statistics.median(differences),
    }


def processor_seconds(process: int) -> float:
    """What a process has taken so far of all processors."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compare(store: str, urls: list[str | None], requests: int, other: Path) -> dict[str, Any]:
    """Alternates requests between this checkout's server and another's."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers = [
            stack.enter_context(serving(Path(folder), name, url, checkout))
            for name, url, checkout in zip(("this", "other"), urls, (None, other), strict=True)
        ]
        used: list[float] = []
        seconds: list[list[float]] = [[], []]
        for number in range(WARM_UP + requests):
            if number == WARM_UP:
                used = [processor_seconds(process) for _, process in servers]
            for (client, _), taken in zip(servers, seconds, strict=True):
                taken.append(ask(client))
        this, before = (
            1000 * (processor_seconds(process) - begun) / requests
            for (_, process), begun in zip(servers, used, strict=True)
        )
    medians = [1000 * statistics.median(taken[WARM_UP:]) for taken in seconds]
    return {
        "store": store,
        "requests": requests,
        "this_cpu_ms": this,
        "other_cpu_ms": before,
        "cpu_ratio": this / before,
        "wall_ratio": medians[0] / medians[1],
    }


def main() -> None:
    """Measures each store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument(
        "--postgresql", nargs="+", default=[], help="URL of an empty database, or of two"
    )
    parser.add_argument("--against", type=Path, help="another checkout, to be compared with")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", choices=["metered", "free"], help=argparse.SUPPRESS)
    parser.add_argument("--port-file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--data-dir", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        url = next(iter(args.postgresql), None)
        serve(args.port_file, args.data_dir, url, metered=args.serve == "metered")
        return
    if args.against:
        compared = [compare("SQLite", [None, None], args.requests, args.against)]
        if args.postgresql:
            compared.append(compare("PostgreSQL", args.postgresql, args.requests, args.against))
        print("| store | requests | this, CPU ms | other, CPU ms | ratio | of wall time |")
        print("|---|---|---|---|---|---|")
        for c in compared:
            print(
                f"| {c['store']} | {c['requests']} | {c['this_cpu_ms']:.3f} "
                f"| {c['other_cpu_ms']:.3f} | {c['cpu_ratio']:.3f} | {c['wall_ratio']:.3f} |"
            )
        if args.json:
            args.json.write_text(json.dumps(compared, indent=1) + "\n")
        return
    results = [measure("SQLite", None, args.requests)]
    if args.postgresql:
        results.append(measure("PostgreSQL", args.postgresql[0], args.requests))
    print("| store | requests | with ledger, ms | without, ms | metering, ms (median) |")
    print("|---|---|---|---|---|")
    for r in results:
        print(
            f"| {r['store']} | {r['requests']} | {r['metered_ms']:.2f} | {r['free_ms']:.2f} "
            f"| {r['metering_ms']:.2f} |"
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
