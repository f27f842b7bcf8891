"""A database that fails costs nobody anything: 503 with a time, readiness says so, and it heals."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from craft_server.api import metering
from craft_server.database import Unavailable
from craft_server.ledger.tables import CALLS, CHARGES
from craft_shared.problems import OVERLOADED
from server.conftest import POSTGRESQL

Picture = Callable[..., bytes]


def ask(client: httpx.Client, image: bytes, key: str, prompts: int = 1) -> httpx.Response:
    (model,) = client.get("/v1/models").json()["models"]
    return predict(client, model["name"], image, key, prompts)


def predict(
    client: httpx.Client, model: str, image: bytes, key: str, prompts: int = 1
) -> httpx.Response:
    body = {
        "model": model,
        "classes": [f"class {number}" for number in range(40)],
        "templates": [f"{key} {number} {{}}" for number in range(prompts)],
        "images": [base64.b64encode(image).decode()],
    }
    return client.post("/v1/predictions", json=body, headers={"Idempotency-Key": key})


def is_refused(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert answer.json()["type"] == OVERLOADED.uri
    assert int(answer.headers["Retry-After"]) > 0


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def ready(server: Any) -> bool:
    status = httpx.get(f"{server.url}/readyz", trust_env=False).status_code
    assert status in (200, 503)
    return status == 200


def open_reservations(server: Any) -> int:
    with server.database.reading() as connection:
        running = sa.select(sa.func.count()).where(CHARGES.c.state == "reserved")
        begun = sa.select(sa.func.count()).where(~CALLS.c.done)
        return int(connection.execute(running).scalar_one()) + int(
            connection.execute(begun).scalar_one()
        )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_charges_nothing_and_heals(
    serve: Any, small_disk: Path, picture: Picture
) -> None:
    with (
        serve(database_url=f"sqlite:///{small_disk / 'store.db'}", lease_seconds=3) as server,
        server.client(queries=1000) as client,
    ):
        (model,) = [card["name"] for card in client.get("/v1/models").json()["models"]]
        assert predict(client, model, picture(), "before").status_code == 200
        fill(small_disk / "fill")
        keys = [f"call-{number}" for number in range(8)]
        for key in keys:
            # As a client does, which sends the call again.
            is_refused(predict(client, model, picture(), key, prompts=20))
            is_refused(predict(client, model, picture(), key, prompts=20))
        until(lambda: not ready(server))
        assert client.get("/v1/usage").json()["total"]["queries"] == 1
        (small_disk / "fill").unlink()
        until(lambda: ready(server))
        until(lambda: open_reservations(server) == 0)
        for key in keys[:2]:
            assert predict(client, model, picture(), key, prompts=20).status_code == 200
        assert client.get("/v1/usage").json()["total"]["queries"] == 41
        with server.database.reading() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"


def fill(file: Path) -> None:
    """Writes until the disk is full."""
    with file.open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(bytes(4096))


def test_a_database_file_that_is_gone_is_not_made_anew(
    serve: Any, tmp_path: Path, picture: Picture
) -> None:
    with serve(lease_seconds=3) as server, server.client(queries=9) as client:
        assert ask(client, picture(), "one").status_code == 200
        file, away = tmp_path / "craftbox.db", tmp_path / "away.db"
        file.rename(away)
        is_refused(client.get("/v1/usage"))
        is_refused(predict(client, "craft-tiny", picture(), "two"))
        until(lambda: not ready(server))
        assert not file.exists()
        shutil.copyfile(away, file)  # another file with the same content is another database
        is_refused(client.get("/v1/usage"))
        away.replace(file)
        until(lambda: ready(server))
        assert predict(client, "craft-tiny", picture(), "two").status_code == 200
        assert client.get("/v1/usage").json()["total"]["queries"] == 2


class Proxy(socketserver.ThreadingTCPServer):
    """Passes bytes on to PostgreSQL, until it is told to break."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, port: int, target: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", port), _Passing)
        self.target = target
        self.open: list[socket.socket] = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def end(self) -> None:
        self.shutdown()
        self.server_close()
        for one in self.open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class _Passing(socketserver.BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        with socket.create_connection(self.server.target) as other:
            self.server.open += [self.request, other]
            back = threading.Thread(target=_pass_on, args=(other, self.request), daemon=True)
            back.start()
            _pass_on(self.request, other)
            back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@contextmanager
def behind_a_proxy(url: str) -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    """A URL by way of a proxy, and what breaks and mends it."""
    parts = urlsplit(url)
    target = (parts.hostname or "", parts.port or 5432)
    running = [Proxy(0, target)]
    port = running[0].server_address[1]

    def mend() -> None:
        running.append(Proxy(port, target))

    through = make_url(url).set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
    yield through, lambda: running.pop().end(), mend
    if running:
        running.pop().end()


def test_postgresql_that_goes_away_and_comes_back(
    serve: Any, new_postgresql: Callable[[], str], picture: Picture
) -> None:
    with (
        behind_a_proxy(new_postgresql()) as (url, go_away, come_back),
        serve(database_url=url, lease_seconds=3) as server,
        server.client(queries=100) as client,
    ):
        assert ask(client, picture(), "one").status_code == 200
        go_away()
        for key in ("two", "two", "three"):
            is_refused(predict(client, "craft-tiny", picture(), key))
        until(lambda: not ready(server))
        come_back()
        until(lambda: ready(server))
        for key in ("two", "three"):
            assert predict(client, "craft-tiny", picture(), key).status_code == 200
        assert client.get("/v1/usage").json()["total"]["queries"] == 3
        assert open_reservations(server) == 0


def test_no_call_is_lost_on_connections_that_postgresql_has_ended(
    serve: Any, new_postgresql: Callable[[], str], picture: Picture
) -> None:
    url = new_postgresql()
    with serve(database_url=url) as server, server.client(queries=100) as client:
        image = picture()
        with ThreadPoolExecutor(6) as threads:  # one after the other may all use one connection
            before = threads.map(lambda number: ask(client, image, f"before-{number}"), range(12))
            assert {answer.status_code for answer in before} == {200}
        with psycopg.connect(f"{POSTGRESQL}/postgres", autocommit=True) as admin:
            ended = admin.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = %s AND pid <> pg_backend_pid()",
                [make_url(url).database],
            ).fetchone()
        assert ended is not None
        assert ended[0] >= 2
        for number in range(6):
            assert predict(client, "craft-tiny", picture(), f"after-{number}").status_code == 200


def test_a_call_whose_booking_failed_is_not_at_work(
    stored: Any, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise sa.exc.OperationalError("", None, Exception("the disk is full"))

    with stored.client(queries=10) as client:
        assert ask(client, picture(), "before").status_code == 200
        with monkeypatch.context() as full:
            full.setattr(metering.charges, "settle_all", fail)
            full.setattr(metering, "_refund", fail)
            full.setattr("craft_server.lease.leases.give_back", fail)
            for _ in range(3):
                is_refused(predict(client, "craft-tiny", picture(), "one"))
        until(lambda: open_reservations(stored) == 0)
        assert predict(client, "craft-tiny", picture(), "one").status_code == 200
        assert client.get("/v1/usage").json()["total"]["queries"] == 2


def test_a_reservation_whose_connection_broke_as_it_was_made_is_given_back(
    stored: Any, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = stored.database
    write = database.write_together

    async def write_and_break(*args: Any, **kwargs: Any) -> None:
        await write(*args, **kwargs)
        raise Unavailable("the connection broke", disconnected=True)

    with stored.client(queries=10) as client:
        assert ask(client, picture(), "before").status_code == 200
        with monkeypatch.context() as breaking:
            breaking.setattr(database, "write_together", write_and_break)
            is_refused(predict(client, "craft-tiny", picture(), "one"))
        until(lambda: open_reservations(stored) == 0)
        assert predict(client, "craft-tiny", picture(), "one").status_code == 200
        (budget,) = client.get("/v1/budget").json()["budgets"]
        assert (budget["spent"], budget["reserved"]) == (2, 0)
