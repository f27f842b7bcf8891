"""A model whose device fails, injected into running servers, of one process and of several."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from e2e.conftest import Server, StartServer
from e2e.metering.caller import PICTURE
from e2e.programs import Program

PATIENCE_SECONDS = 60
FAILING_SERVER = "e2e.failing_server:app"
# Processes that it starts import it anew.
WITH_WORKERS = (sys.executable, Path(__file__).with_name("failing_server.py"), "serve")


@dataclass(frozen=True)
class Failing:
    """A server, and the file that says how its model fails."""

    server: Server
    flag: Path

    def fail(self, kind: str, where: str) -> None:
        self.flag.write_text(f"{kind} {where}")

    def mend(self) -> None:
        self.flag.write_text("")

    def predict(self, key: str) -> httpx.Response:
        """Asks what nobody has asked before."""
        body = {
            "model": "pocket",
            "classes": ["cat", "dog", secrets.token_hex(4)],
            "templates": [f"a {secrets.token_hex(4)} of a {{}}."],
            "images": [PICTURE] * 2,
        }
        return httpx.post(
            f"{self.server.url}/v1/predictions",
            json=body,
            headers={"Authorization": f"Bearer {key}"},
            timeout=60,
        )

    def status(self, probe: str) -> int | None:
        try:
            return httpx.get(f"{self.server.url}/{probe}", timeout=60).status_code
        except httpx.TransportError:
            return None

    def budget(self, key: str) -> tuple[int, int]:
        answer = httpx.get(
            f"{self.server.url}/v1/budget", headers={"Authorization": f"Bearer {key}"}, timeout=60
        )
        (budget,) = answer.raise_for_status().json()["budgets"]
        return budget["spent"], budget["reserved"]

    def metric(self, name: str) -> float:
        key = self.server.key("--scope", "admin")
        answer = httpx.get(
            f"{self.server.url}/metrics", headers={"Authorization": f"Bearer {key}"}, timeout=60
        )
        (line,) = [line for line in answer.text.splitlines() if line.startswith(f"{name} ")]
        return float(line.split()[1])


def _start(
    start_server: StartServer, folder: Path, *arguments: str, program: str | tuple[str | Path, ...]
) -> Failing:
    flag = folder / "failure"
    flag.write_text("")
    settings = {"CRAFT_DRAIN_SECONDS": "0", "CRAFT_LEASE_SECONDS": "2", "FAILURE": str(flag)}
    settings["PYTHONPATH"] = str(Path(__file__).parents[1])
    return Failing(start_server(*arguments, program=program, **settings), flag)


@pytest.fixture(scope="module")
def one(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Failing:
    return _start(start_server, tmp_path_factory.mktemp("one"), program=FAILING_SERVER)


@pytest.fixture(scope="module")
def several(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Failing:
    folder = tmp_path_factory.mktemp("several")
    return _start(start_server, folder, "--workers", "2", program=WITH_WORKERS)


@pytest.fixture(params=["one", "several"])
def failing(request: pytest.FixtureRequest) -> Failing:
    found: Failing = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("where", ["texts", "images"])
def test_out_of_memory_is_tried_in_halves_and_costs_no_answer(failing: Failing, where: str) -> None:
    key = failing.server.key("--queries", "5")
    before = failing.metric("craft_engine_out_of_memory_total")
    failing.fail("once-out-of-memory", where)
    assert failing.predict(key).status_code == 200
    assert failing.budget(key) == (1, 0)
    assert failing.metric("craft_engine_out_of_memory_total") == before + 1


@pytest.mark.parametrize(
    ("kind", "status", "problem", "retried"),
    [
        ("out-of-memory", 503, "overloaded", True),
        ("not-finite", 500, "internal-error", False),
    ],
)
@pytest.mark.parametrize("where", ["texts", "images"])
def test_what_fails_for_good_is_refused_uncharged_and_the_next_call_is_answered(
    failing: Failing, kind: str, where: str, status: int, problem: str, retried: bool
) -> None:
    key = failing.server.key("--queries", "5")
    failing.fail(kind, where)
    for _ in range(2):
        answer = failing.predict(key)
        assert answer.status_code == status, answer.text
        assert answer.json()["type"].endswith(f":{problem}")
        assert ("Retry-After" in answer.headers) == retried
    assert failing.budget(key) == (0, 0)
    assert (failing.status("livez"), failing.status("readyz")) == (200, 200)
    failing.mend()
    assert failing.predict(key).status_code == 200
    assert failing.budget(key) == (1, 0)


@pytest.mark.parametrize("kind", ["lost", "ended"])
def test_one_process_ends_itself_with_its_device(one: Failing, kind: str) -> None:
    key = one.server.key("--queries", "5")
    one.fail(kind, "texts")
    answer = one.predict(key)
    assert answer.status_code == 503, answer.text
    assert "Retry-After" in answer.headers
    assert one.status("readyz") in (503, None)
    assert one.server.process.wait(PATIENCE_SECONDS) == 1
    one.mend()
    _start_again(one.server)
    _wait_for(lambda: one.status("readyz") == 200)
    assert one.budget(key) == (0, 0)
    assert one.predict(key).status_code == 200
    assert one.budget(key) == (1, 0)


@pytest.mark.parametrize(("kind", "where"), [("lost", "texts"), ("ended", "images")])
def test_the_models_process_of_several_is_started_anew(
    several: Failing, kind: str, where: str
) -> None:
    key = several.server.key("--queries", "5")
    several.fail(kind, where)
    answer = several.predict(key)
    assert answer.status_code == 503, answer.text
    assert "Retry-After" in answer.headers
    assert several.status("readyz") == 503
    assert several.status("livez") == 200
    assert several.budget(key) == (0, 0)
    several.mend()
    _wait_for(lambda: several.status("readyz") == 200)
    # Where one process of the two has seen it back, the other may still pause.
    _wait_for(lambda: several.predict(key).status_code == 200)
    assert several.budget(key) == (1, 0)


def _start_again(server: Server) -> None:
    """As a supervisor does with a process that has ended."""
    port, log = server.url.rpartition(":")[2], server.folder / "server.log"
    options = ["serve", "--port", port]
    server.process = Program(FAILING_SERVER, options, env=server.env, stdout=log, stderr=log)


def _wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS} s"
        time.sleep(0.05)
