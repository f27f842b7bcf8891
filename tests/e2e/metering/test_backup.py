"""The ledger copied under load, and a server that goes on from the copy after losing its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from craft_client.api import Client
from craft_server.database import FILE_NAME, Database
from craft_server.ledger.tables import BUDGETS, CHARGES, TOTALS
from craft_shared.wire import PredictionRequest
from e2e.metering.slow_servers import PATIENCE_SECONDS, SlowServers
from e2e.programs import CRAFT_SERVER, run
from waiting import until

CLIENTS = 8
LIMIT = 10**6
REQUEST = PredictionRequest(model="stub", classes=["cat", "dog"], templates=["a {}", "the {}"])


def ledger(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run(CRAFT_SERVER, ["ledger", *map(str, arguments)], os.environ)


def states(file: Path) -> Counter[str]:
    """The ledger's lines by state, its sums having been found to hold."""
    opened = shutil.copy(file, file.with_name("opened.db"))
    database = Database.open(f"sqlite:///{opened}", file.parent)
    with database.reading() as connection:
        lines = connection.execute(sa.select(CHARGES)).all()
        totals = connection.execute(sa.select(TOTALS)).all()
        (budget,) = connection.execute(sa.select(BUDGETS)).all()
    database.close()
    settled = sum(line.queries for line in lines if line.state == "settled")
    reserved = [line for line in lines if line.state == "reserved"]
    held = sum(hold["amount"] for line in reserved for hold in json.loads(line.holds))
    assert (budget.spent, budget.reserved, budget.limit) == (settled, held, LIMIT)
    assert sum(row.queries for row in totals) == settled
    return Counter(line.state for line in lines)


def test_a_copy_taken_under_load_holds_and_a_server_goes_on_from_it(
    slow_servers: SlowServers, tmp_path: Path
) -> None:
    key, enough, answered = slow_servers.key(queries=LIMIT), threading.Event(), [0] * CLIENTS
    copy, folder = tmp_path / "copy.db", slow_servers.folder

    def call_on(number: int) -> None:
        with Client(slow_servers.url, key) as client:
            while not enough.is_set():
                client.predict(REQUEST, images=[b"\0"])
                answered[number] += 1

    process = slow_servers.start(SLOW_SERVER_WORK_SECONDS="0.5")
    deadline = time.monotonic() + PATIENCE_SECONDS
    with ThreadPoolExecutor(CLIENTS) as threads:
        calling = [threads.submit(call_on, number) for number in range(CLIENTS)]
        try:
            until(lambda: min(answered) >= 2)
            found: Counter[str] = Counter()
            while not found["reserved"]:  # until a copy was taken while a call was under way
                assert time.monotonic() < deadline
                copy.unlink(missing_ok=True)
                before = sum(answered)
                done = ledger("backup", copy, "--data-dir", folder)
                assert done.returncode == 0, done.stderr
                at_copy, found = sum(answered), states(copy)
                assert before <= found["settled"] <= at_copy + CLIENTS
            goal = min(answered) + 2
            until(lambda: min(answered) >= goal)
            refused = ledger("restore", copy, "--data-dir", folder)
        finally:
            enough.set()
        for call in calling:
            call.result()
    assert refused.returncode == 1
    assert "stop the server and move 'craftbox.db' away" in refused.stderr
    assert ledger("backup", copy, "--data-dir", folder).returncode == 1  # it would be replaced

    process.kill()
    process.wait()
    for lost in folder.glob(f"{FILE_NAME}*"):
        lost.unlink()
    restored = ledger("restore", copy, "--data-dir", folder)
    assert restored.returncode == 0, restored.stderr
    assert f"{found['reserved']} open reservations given back" in restored.stdout
    expected = Counter(settled=found["settled"], refunded=found["reserved"])
    assert states(folder / FILE_NAME) == expected

    slow_servers.start()
    with Client(slow_servers.url, key) as client:
        client.predict(REQUEST, images=[b"\0"])
        assert client.usage().total.requests == found["settled"] + 1


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "there is no backup"), (b"no database" * 100, "file is not a database")],
)
def test_what_is_no_backup_is_refused_and_leaves_nothing(
    tmp_path: Path, content: bytes | None, told: str
) -> None:
    file, folder = tmp_path / "file", tmp_path / "data"
    if content is not None:
        file.write_bytes(content)
    refused = ledger("restore", file, "--data-dir", folder)
    assert refused.returncode == 1
    assert told in refused.stderr
    assert not list(folder.glob("*"))


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_postgresql_has_its_own_commands(tmp_path: Path, command: str) -> None:
    url = "postgresql://user@127.0.0.1/none"
    refused = ledger(command, tmp_path / "file", "--database-url", url)
    assert refused.returncode == 1
    assert "pg_dump" in refused.stderr or "pg_restore" in refused.stderr
