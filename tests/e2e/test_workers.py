"""`craft-server serve --workers N`: one model process, several that speak HTTP, one behaviour."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from craft_client.api import Client
from craft_shared.wire import PredictionRequest
from e2e.bounds import check_bounds
from e2e.conftest import BIN, SERVE, Server, StartServer
from e2e.metering.caller import PICTURE
from waiting import until

CLASSES = ["cat", "dog", "handwritten digit"]
PATIENCE_SECONDS = 60
CLIENTS = 4


@pytest.fixture(scope="module")
def workers(start_server: StartServer) -> Server:
    return start_server(
        "--workers", "2", program=SERVE, CRAFT_DRAIN_SECONDS="0", CRAFT_LEASE_SECONDS="2"
    )


def test_several_processes_answer_what_one_does_bit_for_bit(
    server: Server, workers: Server, picture: Callable[..., bytes]
) -> None:
    files = [base64.b64encode(picture(seed)).decode() for seed in range(40)]
    body = {
        "model": "pocket",
        "classes": CLASSES,
        "templates": ["a photo of a {}."],
        "context": {"init": "a photo of a", "dim": 4, "seed": 1, "scale": 1.0},
        "codes": [[0.5, -1.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0]],
        "images": files,
    }
    one, several = (_post(each, each.key(), body) for each in (server, workers))
    assert one["log_probs"] == several["log_probs"]
    assert one["revision"] == several["revision"]
    assert one["cost"]["charged"] == several["cost"]["charged"]


def test_a_refused_call_names_the_same_fields_in_either(server: Server, workers: Server) -> None:
    body = {"model": "pocket", "classes": ["cat", "cat"], "templates": ["a {}"], "images": ["AA=="]}
    problems = [
        httpx.post(f"{each.url}/v1/predictions", json=body, headers=_headers(each.key())).json()
        for each in (server, workers)
    ]
    assert problems[0]["errors"] == problems[1]["errors"]


def test_several_processes_bound_connections_as_one_does(server: Server, workers: Server) -> None:
    for each in (server, workers):
        check_bounds(each.url)


@pytest.mark.parametrize("victim", ["engine", "http"])
def test_a_killed_process_is_replaced_and_costs_no_answer(workers: Server, victim: str) -> None:
    key, stop = workers.key("--queries", "100000"), threading.Event()

    def call_on(number: int) -> int:
        answered = 0
        with Client(workers.url, key) as client:
            while not stop.is_set():
                template = f"{number} {answered} {{}}"
                client.predict(
                    PredictionRequest(model="pocket", classes=CLASSES, templates=[template]),
                    images=[_pixel()],
                )
                answered += 1
        return answered

    with ThreadPoolExecutor(CLIENTS) as threads:
        calls = [threads.submit(call_on, number) for number in range(CLIENTS)]
        try:
            time.sleep(1)
            before = _processes(workers)[victim]
            os.kill(before[0], signal.SIGKILL)
            until(lambda: _replaced(before[0], before, _processes(workers)[victim]))
            time.sleep(2)
        finally:
            stop.set()
        answered = sum(call.result(PATIENCE_SECONDS) for call in calls)
    (budget,) = _get(workers, key, "/v1/budget")["budgets"]
    assert (budget["spent"], budget["reserved"]) == (answered, 0)


def test_measurements_are_those_of_all_processes(workers: Server) -> None:
    key, admin = workers.key(), workers.key("--scope", "admin")
    before = _settled(workers, admin)
    for number in range(12):  # each on a connection of its own, so that both processes get some
        _post(
            workers,
            key,
            {
                "model": "pocket",
                "classes": CLASSES,
                "templates": [f"{number} {{}}"],
                "images": [base64.b64encode(_pixel()).decode()],
            },
        )
    for _ in range(8):
        assert _settled(workers, admin) == before + 12


def test_sigterm_ends_every_process_with_exit_code_0(start_server: StartServer) -> None:
    server = start_server("--workers", "2", program=SERVE, CRAFT_DRAIN_SECONDS="0")
    running = [pid for pids in _processes(server).values() for pid in pids]
    server.process.terminate()
    assert server.process.wait(PATIENCE_SECONDS) == 0
    until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in running))
    assert "process died" not in (server.folder / "server.log").read_text()


def test_processes_end_with_the_one_that_started_them(workers: Server) -> None:
    """The last test of these processes."""
    running = [pid for pids in _processes(workers).values() for pid in pids]
    assert len(running) == 3
    workers.process.kill()
    workers.process.wait()
    until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in running))


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--model", "RN5000"], "Error: unknown model 'RN5000'", 1),
        (["--profile", "flaky"], "Error: --profile: a simulated provider is one process", 2),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(
    tmp_path: Path, arguments: list[str], message: str, code: int
) -> None:
    command = [BIN / "craft-server", "serve", "--workers", "2", "--port", "0", *arguments]
    done = subprocess.run(
        [*command, "--data-dir", tmp_path], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code
    assert done.stderr.splitlines()[-1].startswith(message)
    assert "Traceback" not in done.stderr


def _replaced(killed: int, before: list[int], now: list[int]) -> bool:
    return killed not in now and len(now) == len(before)


def _processes(server: Server) -> dict[str, list[int]]:
    """The server's processes by what they are, told by the socket that they listen on."""
    port = int(server.url.rsplit(":", 1)[1])
    listening = _inodes(f":{port:04X}")
    found: dict[str, list[int]] = {"engine": [], "http": []}
    forkservers = _children(server.process.pid)
    for pid in [child for forkserver in forkservers for child in _children(forkserver)]:
        inodes = _sockets(pid)
        if inodes & listening:
            found["http"].append(pid)
        elif inodes:
            found["engine"].append(pid)
    return found


def _children(pid: int) -> list[int]:
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _sockets(pid: int) -> set[str]:
    found = set()
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            target = entry.readlink().name
            if target.startswith("socket:["):
                found.add(target[8:-1])
    except OSError:
        pass
    return found


def _inodes(port: str) -> set[str]:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[1].endswith(port) and row[3] == "0A"}


def _headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def _get(server: Server, key: str, path: str) -> dict[str, Any]:
    response = httpx.get(server.url + path, headers=_headers(key), timeout=60)
    response.raise_for_status()
    document: dict[str, Any] = response.json()
    return document


def _post(server: Server, key: str, body: dict[str, Any]) -> dict[str, Any]:
    response = httpx.post(
        f"{server.url}/v1/predictions", json=body, headers=_headers(key), timeout=60
    )
    assert response.status_code == 200, json.dumps(response.json())
    document: dict[str, Any] = response.json()
    return document


def _settled(server: Server, admin: str) -> float:
    response = httpx.get(f"{server.url}/metrics", headers=_headers(admin), timeout=60)
    (line,) = [
        line
        for line in response.text.splitlines()
        if line.startswith("craft_charges_settled_total ")
    ]
    return float(line.split()[1])


def _pixel() -> bytes:
    return base64.b64decode(PICTURE)
