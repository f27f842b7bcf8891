"""Real processes: craft-server on a free port of 127.0.0.1, and the craft command beside it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from craft_server.cli import app as craft_server
from craft_server.database import FILE_NAME
from e2e.programs import CRAFT, CRAFT_SERVER, Program, run
from quickstart import free_port, write_digits
from server.conftest import migrated_sqlite  # noqa: F401

BIN = Path(sys.executable).parent
SERVE = (BIN / "craft-server", "serve")  # as it is installed
READY_SECONDS = 120


@dataclass
class Server:
    """A running craft-server process and its address; what clients have in their environment."""

    url: str
    folder: Path
    env: dict[str, str]
    process: subprocess.Popen[bytes] | Program
    more: dict[str, str] = field(default_factory=dict)

    def admin(self, *arguments: str) -> str:
        """Runs a craft-server command on the server's own database."""
        done = run(CRAFT_SERVER, arguments, self.env)
        done.check_returncode()
        return done.stdout

    def key(self, *arguments: str, owner: str = "tester") -> str:
        """Makes an API key; arguments such as `--queries 100` set its budgets."""
        words = ["keys", "create", "--owner", owner, "--json", *arguments]
        # In this process: a key a test would be a program a test.
        done = CliRunner().invoke(craft_server, words, env=self.env, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        key: str = json.loads(done.stdout)["key"]
        return key

    def craft(self, key: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs the craft command as a client with this key."""
        env = {**os.environ, "CRAFT_URL": self.url, "CRAFT_API_KEY": key, "COLUMNS": "200"}
        return run(CRAFT, [*map(str, arguments)], {**env, **self.more})

    def craft_json(self, key: str, *arguments: str | Path) -> dict[str, Any]:
        """Runs the craft command, which must succeed, and returns its JSON document."""
        done = self.craft(key, *arguments, "--json")
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document


StartServer = Callable[..., Server]


@contextmanager
def _starting(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[StartServer]:
    started: list[Server] = []

    def start(
        *arguments: str | Path,
        command: str = "serve",
        program: str | Sequence[str | Path] = CRAFT_SERVER,
        **environment: str,
    ) -> Server:
        folder = tmp_path_factory.mktemp("server")
        port = free_port()
        env = {**os.environ, "CRAFT_DATA_DIR": str(folder / "data"), **environment}
        options = ["--port", str(port), *map(str, arguments)]
        log = folder / "server.log"
        process: subprocess.Popen[bytes] | Program
        if isinstance(program, str):
            if "CRAFT_DATA_DIR" not in environment:
                (folder / "data").mkdir(mode=0o700)
                shutil.copy(migrated, folder / "data" / FILE_NAME)
            process = Program(program, [command, *options], env=env, stdout=log, stderr=log)
        else:
            with log.open("wb") as file:
                words = [*map(str, program), *options]
                process = subprocess.Popen(words, env=env, stdout=file, stderr=file)
        server = Server(f"http://127.0.0.1:{port}", folder, env, process)
        started.append(server)
        _wait_until_ready(server)
        return server

    yield start
    for server in started:
        server.process.terminate()
    for server in started:
        assert server.process.wait(30) in (0, -15, -9), (server.folder / "server.log").read_text()


@pytest.fixture(scope="module")
def start_server(
    tmp_path_factory: pytest.TempPathFactory,
    migrated_sqlite: Path,  # noqa: F811
) -> Iterator[StartServer]:
    """Starts servers with given arguments; a module's are stopped at its end, for memory's sake.

    `program` is what has the command: the name of an object, run in a fork on a database that is
    migrated already, or the words of a command, run as it is installed.
    """
    with _starting(tmp_path_factory, migrated_sqlite) as start:
        yield start


def _wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + READY_SECONDS
    with httpx.Client(base_url=server.url) as client:
        while time.monotonic() < deadline:
            assert server.process.poll() is None, (server.folder / "server.log").read_text()
            with suppress(httpx.TransportError):
                if client.get("/readyz").status_code == 200:
                    return
            time.sleep(0.1)
    raise AssertionError(f"not ready in {READY_SECONDS} s")


@pytest.fixture(scope="session")
def server(
    tmp_path_factory: pytest.TempPathFactory,
    migrated_sqlite: Path,  # noqa: F811
) -> Iterator[Server]:
    """The pocket model on SQLite."""
    with _starting(tmp_path_factory, migrated_sqlite) as start:
        yield start("--model", "pocket")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of scikit-learn's digits 24 of each to train and 6 to test, as image folders."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_digits(folder)
    for split, kept in {"train": 24, "test": 6}.items():
        for of_class in (folder / split).iterdir():
            for surplus in sorted(of_class.iterdir())[kept:]:
                surplus.unlink()
    return folder


@pytest.fixture(scope="session")
def digits_adapter(server: Server, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of an adapter for the digits, tuned and published with craft for `tester`."""
    key, run = server.key(), tmp_path_factory.mktemp("tuned") / "digits"
    server.craft_json(key, "tune", "--data", digits, "--shots", "8", "--run", run)
    server.craft_json(key, "publish", run, "--name", "digits-8-shots")
    return "digits-8-shots"
