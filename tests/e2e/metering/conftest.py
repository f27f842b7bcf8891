"""Stub servers on each store, as real processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from craft_server.clock import now_ms
from craft_server.database import FILE_NAME, Database
from craft_server.ledger.budgets import set_budget
from craft_server.ledger.keys import create_key, find_key
from craft_server.ledger.users import set_user_limit
from e2e.metering.slow_servers import SlowServers
from server.conftest import migrated_sqlite, new_postgresql  # noqa: F401


@dataclass(frozen=True)
class Servers:
    """Server processes behind one port."""

    port: int
    database: Database

    def key(self, queries: int, per_user: int | None = None) -> str:
        """A new key that may ask so many queries, and each of its end users so many."""
        with self.database.writing() as connection:
            secret = create_key(connection, owner="e2e", at=now_ms())
            key_id = find_key(connection, secret.split("_")[1]).key_id
            set_budget(
                connection,
                key_id=key_id,
                unit="queries",
                window="lifetime",
                limit=queries,
                at=now_ms(),
            )
            if per_user is not None:
                set_user_limit(
                    connection, key_id, unit="queries", window="lifetime", limit=per_user
                )
        return secret


@pytest.fixture(scope="session")
def stub() -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """Gives orders to the process that forks servers."""
    command = [sys.executable, "-m", "e2e.metering.stub_server"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def order(message: dict[str, Any]) -> dict[str, Any]:
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        return answer

    yield order
    process.stdin.close()
    assert process.wait(30) == 0
    process.stdout.close()


@pytest.fixture
def start_servers(
    stub: Any,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    migrated_sqlite: Path,  # noqa: F811
) -> Iterator[Any]:
    """Starts servers on a store of their own: `start_servers("sqlite", processes=1)`."""
    started: dict[str, Database] = {}

    def start(store: str, *, processes: int = 1, lease_seconds: float = 30, **more: Any) -> Servers:
        name = f"{tmp_path.name}-{len(started)}"
        if store == "sqlite":
            url = f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path / f'{name}.db')}"
        else:
            url = request.getfixturevalue("new_postgresql")()
        database = Database.open(url, tmp_path)
        settings = {
            "data_dir": str(tmp_path),
            "database_url": url,
            "lease_seconds": lease_seconds,
            **more,
        }
        answer = stub({"start": name, "processes": processes, "settings": settings})
        started[name] = database
        return Servers(answer["port"], database)

    yield start
    for name, database in started.items():
        stub({"stop": name})
        database.close()


@pytest.fixture
def slow_servers(
    tmp_path: Path,
    migrated_sqlite: Path,  # noqa: F811
) -> Iterator[SlowServers]:
    """Real `craft-server` processes whose model takes a moment: `slow_servers.start()`."""
    shutil.copy(migrated_sqlite, tmp_path / FILE_NAME)
    servers = SlowServers(tmp_path)
    yield servers
    servers.end()
