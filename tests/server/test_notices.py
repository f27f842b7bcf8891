"""Notices reach real receivers, however often these fail first, each under one id."""

from __future__ import annotations

import base64
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import sqlalchemy as sa
import structlog

from craft_server import notices
from craft_server.clock import now_ms
from craft_server.database import Database
from craft_server.ledger import leases
from craft_server.ledger.charges import Settlement, Work, reserve, settle_all
from craft_server.ledger.keys import Caller
from craft_server.ledger.tables import NOTICES
from craft_server.notices import Notices
from craft_server.telemetry import REGISTRY
from craft_shared.units import Units
from waiting import until

SECRET = b"a secret of thirty-two characters"


@dataclass
class Receiver:
    """A receiver of webhooks on a socket.

    Attributes:
        answers: the statuses that it gives, the last one from then on.
        seen: what arrived: the header fields, and the body.
    """

    url: str
    answers: list[int]
    seen: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.seen]

    @property
    def percents(self) -> list[int]:
        return [json.loads(body)["data"]["percent"] for _, body in self.seen]


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def receiving(*answers: int, refused: int | None = None) -> Iterator[Receiver]:
    """A receiver that never takes notices of the percent that is `refused`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            given = receiver.answers
            status = given.pop(0) if len(given) > 1 else given[0]
            receiver.seen.append(({k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(500 if receiver.percents[-1] == refused else status)
            self.send_header("content-length", "0")
            self.send_header("location", f"{receiver.url}/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with listening(Handler) as url:
        receiver = Receiver(f"{url}/hook/T0/secret-path", list(answers) or [204])
        yield receiver


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(notices, "_FIRST_WAIT_SECONDS", 0.05)


@contextmanager
def sending(store: Database, *receivers: Receiver) -> Iterator[None]:
    sender = Notices(store, [one.url for one in receivers], SECRET)
    try:
        yield
    finally:
        sender.close()


def spend(store: Database, caller: Caller, queries: int) -> None:
    """Spends of the key's ten queries, in one charge."""
    at = now_ms()
    with store.writing() as connection:
        leases.renew(connection, "a server", at + 60_000)
        work = Work("predictions", "tiny", "r1", Units(queries=queries))
        taken = reserve(connection, caller, work, holder="a server", at=at)
        settle_all(connection, [Settlement(taken, notify_at=(50, 100))], at)


def waiting(store: Database) -> int:
    with store.reading() as connection:
        left = sa.select(sa.func.count()).where(NOTICES.c.closed_at.is_(None))
        return int(connection.execute(left).scalar_one())


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("craft_notices_total", {"outcome": outcome}) or 0


def test_a_receiver_that_fails_first_gets_each_notice_under_one_id(
    store: Database, caller: Caller
) -> None:
    before = counted("sent"), counted("failed")
    with receiving(500, 302, 404, 204) as receiver, sending(store, receiver):
        spend(store, caller, 5)
        until(lambda: not waiting(store))
        spend(store, caller, 5)
        until(lambda: not waiting(store))
    assert receiver.percents == [50, 50, 50, 50, 100]
    assert len(set(receiver.ids[:4])) == 1
    assert receiver.ids[4] != receiver.ids[0]
    assert (counted("sent") - before[0], counted("failed") - before[1]) == (2, 3)


def test_a_notice_is_signed_over_its_id_time_and_body(store: Database, caller: Caller) -> None:
    with receiving() as receiver, sending(store, receiver):
        spend(store, caller, 6)
        until(lambda: not waiting(store))
    ((headers, body),) = receiver.seen
    signed = b".".join(
        (headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body)
    )
    expected = base64.b64encode(hmac.digest(SECRET, signed, "sha256")).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    message = json.loads(body)
    assert message["type"] == "budget.spent"
    data = message["data"]
    assert (data["key"], data["unit"], data["spent"], data["limit"]) == (
        caller.prefix,
        "queries",
        6,
        10,
    )


def test_who_was_told_is_not_told_again_while_another_fails(
    store: Database, caller: Caller
) -> None:
    with receiving() as well, receiving(503, 503, 204) as ill, sending(store, well, ill):
        spend(store, caller, 5)
        until(lambda: not waiting(store))
    assert (len(well.seen), len(ill.seen)) == (1, 3)


def test_an_address_that_cannot_be_looked_up_keeps_no_other_from_being_told_once(
    store: Database, caller: Caller
) -> None:
    before = counted("failed")
    nowhere = Receiver(f"http://{'a' * 64}/", [204])  # longer than a label of a name may be
    with receiving() as well, sending(store, nowhere, well):
        spend(store, caller, 5)
        until(lambda: counted("failed") >= before + 3)
    assert len(well.seen) == 1


def test_several_servers_send_a_notice_once(store: Database, caller: Caller) -> None:
    with receiving() as receiver, sending(store, receiver), sending(store, receiver):
        for _ in range(5):
            spend(store, caller, 2)
        until(lambda: not waiting(store))
    assert sorted(receiver.percents) == [50, 100]


def test_what_was_not_sent_when_a_server_ended_is_sent_by_the_next(
    store: Database, caller: Caller
) -> None:
    with receiving(500, 204) as receiver:
        with sending(store, receiver):
            spend(store, caller, 5)
            until(lambda: receiver.seen)
        with sending(store, receiver):
            until(lambda: not waiting(store))
    assert len(set(receiver.ids)) == 1


def test_nothing_secret_is_logged(
    store: Database, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    with structlog.testing.capture_logs() as log:
        monkeypatch.setattr(notices, "_log", structlog.get_logger())
        with receiving(500, 204) as receiver, sending(store, receiver):
            spend(store, caller, 5)
            until(lambda: not waiting(store))
    (line,) = [line for line in log if line["event"] == "notice not sent"]
    assert (line["host"], line["error"]) == ("127.0.0.1", "HTTP 500")
    assert "secret" not in str(log)


def test_a_notice_that_nobody_takes_is_given_up_in_the_end(
    store: Database, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "_GIVEN_UP_SECONDS", 0.1)
    monkeypatch.setattr(notices, "_TIDY_SECONDS", 0.05)
    before = counted("given_up")
    with receiving(500) as receiver, sending(store, receiver):
        spend(store, caller, 5)
        until(lambda: not waiting(store))
    assert counted("given_up") == before + 1
    assert receiver.seen


def test_what_was_to_be_sent_when_no_address_is_set_any_more_is_given_up_in_the_end(
    store: Database, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    spend(store, caller, 5)
    with sending(store):
        assert waiting(store) == 1  # another server may have addresses
    monkeypatch.setattr(notices, "_GIVEN_UP_SECONDS", 0)
    with sending(store):
        until(lambda: not waiting(store))


@contextmanager
def dripping() -> Iterator[Receiver]:
    """A receiver whose answer begins, and goes on, byte by byte, for ever."""
    over = threading.Event()

    class Dripping(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.seen.append(({k.lower(): v for k, v in self.headers.items()}, b""))
            with suppress(OSError):
                self.wfile.write(b"HTTP/1.1 200 OK\r\nx: ")
                while not over.wait(0.02):
                    self.wfile.write(b"x")

        def log_message(self, *_: object) -> None:
            pass

    with listening(Dripping) as url:
        receiver = Receiver(f"{url}/", [])
        try:
            yield receiver
        finally:
            over.set()


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_an_answer_that_never_ends_is_waited_for_once_before_others_have_had_all_notices(
    store: Database, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "_PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(notices, "_FIRST_WAIT_SECONDS", 60.0)
    before = counted("failed")
    spend(store, caller, 10)
    assert waiting(store) == 2
    with dripping() as ill, receiving() as well, sending(store, ill, well):
        until(lambda: len(well.seen) == 2)
        assert (len(ill.seen), counted("failed") - before) == (1, 1)


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_a_notice_that_an_address_never_takes_keeps_no_other_from_it(
    store: Database, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "_LOOK_SECONDS", 0.3)  # when both are due again
    spend(store, caller, 5)
    spend(store, caller, 5)
    with receiving(refused=50) as receiver, sending(store, receiver):
        until(lambda: waiting(store) == 1)
    assert receiver.percents.count(100) == 1


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_waits_grow_up_to_hours(store: Database) -> None:
    waits = [notices._wait(attempts) for attempts in (1, 2, 3, 40)]
    assert waits == sorted(waits)
    assert waits[-1] == notices._LONGEST_WAIT_SECONDS


def test_a_call_is_answered_while_a_receiver_hangs(
    serve: Callable[..., Any], picture: Callable[..., bytes]
) -> None:
    arrived, go = threading.Event(), threading.Event()

    class Hanging(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            arrived.set()
            go.wait(60)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hanging) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{receiver.server_address[1]}/"
        secret = f"whsec_{base64.b64encode(SECRET).decode()}"
        with (
            serve(notice_urls=url, notice_secret=secret) as server,
            server.client(queries=2) as client,
        ):
            (card,) = client.get("/v1/models").json()["models"]
            question = {
                "model": card["name"],
                "classes": ["cat", "dog"],
                "templates": ["a {}."],
                "images": [base64.b64encode(picture()).decode()],
            }
            assert client.post("/v1/predictions", json=question).status_code == 200
            assert arrived.wait(60)
            assert client.post("/v1/predictions", json=question).status_code == 200
            go.set()
            receiver.shutdown()
