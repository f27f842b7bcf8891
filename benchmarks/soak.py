"""Many clients that tune, publish and predict while processes are killed at random.

A server of several processes on PostgreSQL, clients in processes of their own, each with its own
key of its own owner. Every so often one process of either kind gets SIGKILL: the model's, one that
speaks HTTP, the one that starts these, the supervisor (started again, as a container's runtime
would), or a client (started again; it resumes its run). In the end

- every run's adapter is, byte for byte, the one that a quiet server had led to before, and so are
  the predictions of the served adapter;
- the ledger's sums are exactly the finished rounds' price, and nothing is reserved any more;
- the server's memory (proportional set size of all its processes) and open files are told over
  time, from samples in which no process was missing.

    python benchmarks/soak.py --database-url postgresql://postgres@127.0.0.1/postgres \
        --seconds 600 --json benchmarks/results/soak.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from craft_client.api import Client
from craft_client.cli import app
from craft_client.journal import RUN_FILE, Journal
from craft_client.layouts import load_dataset
from craft_shared.adapter import Adapter

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from options import save
from quickstart import free_port, write_digits

SHOTS = 2
SEEDS = (1, 2, 3, 4)
PICTURES = 8
COUNTED = ("queries", "predictions", "texts")
SAMPLE_SECONDS = 5
MEBIBYTE = 2**20
WORKERS = 2
VICTIMS = ("engine", "http", "forkserver", "supervisor", "client")
# Small, so that they are full after the warm-up and what grows then is not them.
CACHE_BYTES = 32 * MEBIBYTE


@dataclass(frozen=True)
class Expected:
    """What a round with a seed comes to: the adapter's files, the top classes, the price."""

    adapter: dict[str, bytes]
    top: list[str]
    price: dict[str, int]


@dataclass
class Server:
    """A server of several processes, started again where it was killed."""

    folder: Path
    url: str
    env: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    def start(self) -> None:
        command = [Path(sys.executable).parent / "craft-server", "serve", "--workers", str(WORKERS)]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log)
        self.starts += 1

    def keep(self) -> None:
        """Starts it again if it has ended."""
        if self.process is None or self.process.poll() is not None:
            self.start()

    def processes(self) -> dict[str, list[int]]:
        """Ids of its processes by what they are."""
        assert self.process is not None
        found: dict[str, list[int]] = {"supervisor": [self.process.pid]}
        for child in _children(self.process.pid):
            if b"forkserver" in _read(child, "cmdline"):
                found["forkserver"] = [child]
                # In the order of their start: the model's process is the first.
                workers = sorted(_children(child), key=_started)
                by_name = {"engine": [], "http": []}
                for worker in workers:
                    by_name["http" if self._listens(worker) else "engine"].append(worker)
                found |= by_name
            else:
                found["resource tracker"] = [child]
        return found

    def whole(self) -> bool:
        """Whether no process is missing."""
        found = self.processes()
        return len(found.get("engine", [])) == 1 and len(found.get("http", [])) == WORKERS

    def _listens(self, pid: int) -> bool:
        port = f":{int(self.url.rsplit(':', 1)[1]):04X}"
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        inodes = {row[9] for row in rows if row[1].endswith(port) and row[3] == "0A"}
        with suppress(OSError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    if entry.readlink().name.removeprefix("socket:[").rstrip("]") in inodes:
                        return True
        return False


@dataclass
class Watch:
    """Samples of the server's memory and open files."""

    samples: list[dict[str, Any]] = field(default_factory=list)

    def sample(self, server: Server, at: float) -> None:
        if not server.whole():
            return
        pids = [pid for group in server.processes().values() for pid in group]
        try:
            memory = sum(_pss(pid) for pid in pids)
            files = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)
        except OSError:
            return
        self.samples.append(
            {"at": round(at, 1), "mib": round(memory / MEBIBYTE, 1), "files": files}
        )

    def summary(self, seconds: float) -> dict[str, Any]:
        """Medians after the warm-up (the third tenth or so) and at the end (the last fifth)."""

        def median(name: str, begin: float, end: float) -> float:
            return statistics.median(s[name] for s in self.samples if begin <= s["at"] <= end)

        warm, last = (0.2 * seconds, 0.4 * seconds), (0.8 * seconds, seconds)
        return {
            name: {
                "warm": median(name, *warm),
                "last": median(name, *last),
                "growth": round(median(name, *last) / median(name, *warm) - 1, 4),
            }
            for name in ("mib", "files")
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database-url", required=True)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--kill-every", type=float, default=20)
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with _database(arguments.database_url) as url, tempfile.TemporaryDirectory() as folder:
        results = _soak(arguments, url, Path(folder))
    _show(results)
    save(results, arguments.json)
    if results["wrong"] or results["reserved"]:
        raise SystemExit("the soak found something wrong")


def _soak(arguments: argparse.Namespace, url: str, folder: Path) -> dict[str, Any]:
    write_digits(folder / "digits")
    port = free_port()
    server = Server(
        folder,
        f"http://127.0.0.1:{port}",
        {
            **os.environ,
            "CRAFT_DATABASE_URL": url,
            "CRAFT_DATA_DIR": str(folder / "data"),
            "CRAFT_PORT": str(port),
            "CRAFT_LEASE_SECONDS": "5",
            "CRAFT_DRAIN_SECONDS": "0",
            "CRAFT_TEXTS_CACHE_BYTES": str(CACHE_BYTES),
            "CRAFT_FEATURES_CACHE_BYTES": str(CACHE_BYTES),
            "CRAFT_ADAPTERS_CACHE_BYTES": str(CACHE_BYTES),
        },
    )
    server.start()
    try:
        _wait_until_ready(server)
        expected = {seed: _reference(server, folder, seed) for seed in SEEDS}
        keys = [_key(server, f"client-{number}") for number in range(arguments.clients)]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["soak", "craft_client.tune", "craft_client.remote"])
        stop = folder / "stop"

        def client(number: int) -> Any:
            process = context.Process(
                target=_client,
                args=(number, folder, server.url, keys[number], expected, stop),
                daemon=True,
            )
            process.start()
            return process

        clients = [client(number) for number in range(arguments.clients)]
        watch, kills, chance = Watch(), Counter(), random.Random(arguments.seed)
        began = time.monotonic()
        next_kill, next_sample = arguments.kill_every, 0.0
        while any(process.is_alive() or process.exitcode != 0 for process in clients):
            at = time.monotonic() - began
            if at > arguments.seconds:
                stop.touch()
            elif at > next_kill:
                next_kill += arguments.kill_every
                kills[_kill(server, clients, arguments.victims, chance)] += 1
            if next_sample < at < arguments.seconds:
                next_sample = at + SAMPLE_SECONDS
                watch.sample(server, at)
            server.keep()
            for number, process in enumerate(clients):
                if not process.is_alive() and process.exitcode != 0:
                    clients[number] = client(number)
            time.sleep(0.2)
        took = time.monotonic() - began
        time.sleep(10)  # two leases: what killed processes held is given back
        return {
            "clients": arguments.clients,
            "seconds": round(took, 1),
            "victims": arguments.victims,
            "kills": dict(kills),
            "server_starts": server.starts,
            **_verdict(server, folder, keys, expected),
            **watch.summary(arguments.seconds),
            "samples": watch.samples,
        }
    finally:
        if server.process is not None:
            server.process.terminate()
            server.process.wait(60)


def _kill(server: Server, clients: list[Any], victims: list[str], chance: random.Random) -> str:
    """Kills one process and tells what it was."""
    groups = server.processes()
    what = chance.choice(victims)
    pids = [process.pid for process in clients if process.is_alive()]
    running = pids if what == "client" else groups.get(what, [])
    if not running:
        return "nobody"
    with suppress(ProcessLookupError):
        os.kill(chance.choice(running), signal.SIGKILL)
    return what


def _client(
    number: int, folder: Path, url: str, key: str, expected: dict[int, Expected], stop: Path
) -> None:
    """Rounds of tuning, publishing and predicting, resumed where it was killed."""
    mine = folder / f"client-{number}"
    mine.mkdir(exist_ok=True)
    with (mine / "log").open("a") as log:
        os.dup2(log.fileno(), 2)
    done = len(list(mine.glob("*/done")))
    while True:
        if stop.exists() and not (mine / f"{done}" / RUN_FILE).exists():
            return
        # Always the same: which pictures are encoded together changes the last bits of features.
        seed = SEEDS[number % len(SEEDS)]
        wrong = _round(mine / f"{done}", f"soak-{number}-{done}", folder, url, key, seed, expected)
        (mine / f"{done}" / "done").write_text(json.dumps({"seed": seed, "wrong": wrong}))
        done += 1


def _round(
    run: Path,
    name: str,
    folder: Path,
    url: str,
    key: str,
    seed: int,
    expected: dict[int, Expected],
) -> list[str]:
    """One round, from wherever it stands; what was wrong with it."""
    adapter, top = _tune_and_use(run, name, folder, url, key, seed)
    return [
        what
        for what, same in (
            ("adapter", adapter == expected[seed].adapter),
            ("predictions", top == expected[seed].top),
        )
        if not same
    ]


def _tune_and_use(
    run: Path, name: str, folder: Path, url: str, key: str, seed: int
) -> tuple[dict[str, bytes], list[str]]:
    """The adapter's files, and the classes that it is served to tell of some pictures."""
    dataset = load_dataset(folder / "digits")
    if not (run / RUN_FILE).exists():
        shutil.rmtree(run, ignore_errors=True)
        of_data = ("--data", folder / "digits", "--shots", SHOTS, "--seed", seed)
        _tune(url, key, *of_data, "--run", run)
    elif not Journal.open(run).finished:
        _tune(url, key, "--resume", run)
    promise = run / "idempotency-key"
    if not promise.exists():
        promise.write_text(uuid.uuid4().hex)
    files = [sample.path.read_bytes() for sample in dataset.split("test")[::50][:PICTURES]]
    with Client(url, key) as client:
        client.publish(name, Adapter.load(run / "adapter"))
        answer = client.adapter_predict(name, images=files, idempotency_key=promise.read_text())
    top = [answer.classes[best] for best in answer.log_probs.argmax(axis=1)]
    return {path.name: path.read_bytes() for path in sorted((run / "adapter").iterdir())}, top


def _tune(url: str, key: str, *words: object) -> None:
    # In this process, so that it dies with its client.
    env = {"CRAFT_URL": url, "CRAFT_API_KEY": key}
    done = CliRunner().invoke(app, ["tune", *map(str, words)], env=env)
    if done.exit_code:
        raise RuntimeError(done.output)


def _reference(server: Server, folder: Path, seed: int) -> Expected:
    """A round on a quiet server."""
    key = _key(server, f"reference-{seed}")
    run = folder / f"reference-{seed}"
    adapter, top = _tune_and_use(run, f"reference-{seed}", folder, server.url, key, seed)
    with Client(server.url, key) as client:
        total = client.usage().total.model_dump()
    return Expected(adapter, top, {unit: total[unit] for unit in COUNTED})


def _verdict(
    server: Server, folder: Path, keys: list[str], expected: dict[int, Expected]
) -> dict[str, Any]:
    rounds, wrong = 0, []
    reserved = 0
    for number, key in enumerate(keys):
        done = [json.loads(f.read_text()) for f in (folder / f"client-{number}").glob("*/done")]
        rounds += len(done)
        wrong += [f"client {number}: {what}" for one in done for what in one["wrong"]]
        with Client(server.url, key) as client:
            total = client.usage().total.model_dump()
            reserved += sum(budget.reserved for budget in client.budgets())
        for unit in COUNTED:
            price = sum(expected[one["seed"]].price[unit] for one in done)
            if total[unit] != price:
                wrong.append(f"client {number}: {total[unit]} {unit} charged, not {price}")
    admin = _key(server, "operator", "--scope", "admin")
    page = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {admin}"}).text
    ledger = {
        line.split()[0]: float(line.split()[1])
        for line in page.splitlines()
        if line.startswith(("craft_ledger_overshoot", "craft_ledger_open_reservations"))
    }
    reserved += int(ledger["craft_ledger_open_reservations"])
    if ledger["craft_ledger_overshoot"]:
        wrong.append("a budget is overshot")
    return {"rounds": rounds, "wrong": wrong, "reserved": reserved}


def _key(server: Server, owner: str, *options: str) -> str:
    command = [Path(sys.executable).parent / "craft-server", "keys", "create", "--json"]
    done = subprocess.run(
        [*command, "--owner", owner, "--queries", "1000000", *options],
        env=server.env,
        check=True,
        capture_output=True,
        text=True,
    )
    secret: str = json.loads(done.stdout)["key"]
    return secret


def _wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/readyz").status_code == 200:
                return
        time.sleep(0.2)
    raise SystemExit("the server did not start")


@contextmanager
def _database(url: str) -> Iterator[str]:
    name = f"craftbox_soak_{secrets.token_hex(4)}"
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
        try:
            yield f"{url.rsplit('/', 1)[0]}/{name}"
        finally:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _children(pid: int) -> list[int]:
    return [int(child) for child in _read(pid, f"task/{pid}/children").split()]


def _started(pid: int) -> int:
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return int(fields[19]) if fields else 0


def _pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _show(results: dict[str, Any]) -> None:
    table = Table("", "After warm-up", "At the end", "Growth")
    for name, title in (("mib", "Memory (MiB)"), ("files", "Open files")):
        one = results[name]
        table.add_row(title, f"{one['warm']:.0f}", f"{one['last']:.0f}", f"{one['growth']:+.1%}")
    console = Console()
    console.print(table)
    kills = ", ".join(f"{count} {what}" for what, count in results["kills"].items())
    console.print(
        f"{results['clients']} clients, {results['rounds']} rounds in {results['seconds']:.0f} s; "
        f"killed: {kills}; wrong: {results['wrong'] or 'nothing'}; reserved: {results['reserved']}"
    )


if __name__ == "__main__":
    main()
