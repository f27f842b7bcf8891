"""Heads, bodies and answers that never end, and connections by the hundred, over real sockets."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import pytest

from craft_server.serving import connections
from craft_server.serving.connections import MAX_HEAD_BYTES, MAX_HEADERS

LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
DEADLINE = 15  # seconds, of what takes one at most


@contextmanager
def connected(
    server: Any, *sent: bytes, source: str = "127.0.0.1", unread: int | None = None
) -> Iterator[socket.socket]:
    """A connection from an address, on which something was sent and little may wait to be read."""
    with socket.socket() as connection:
        if unread is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, unread)
        connection.bind((source, 0))
        connection.settimeout(DEADLINE)
        connection.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        for piece in sent:
            connection.sendall(piece)
        yield connection


def rest_of(connection: socket.socket) -> bytes:
    """All that the server sends until it ends the connection."""
    received = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    return received


def status_of(connection: socket.socket) -> int:
    return int(re.fullmatch(rb"HTTP/1\.1 (\d{3}).*", connection.recv(65536), re.DOTALL)[1])


def problem_of(answer: bytes) -> tuple[int, str]:
    """Status and kind, of an answer that ends its connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Connection: close" in head.split(b"\r\n")
    assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")
    problem = json.loads(body)
    assert int(head.split()[1]) == problem["status"]
    assert problem["remedy"]
    return problem["status"], problem["type"].rpartition(":")[2]


def until_cut_off(connection: socket.socket, more: bytes) -> bool:
    """Sends without reading; whether the server ends the connection."""
    connection.settimeout(1)
    deadline = time.monotonic() + DEADLINE
    try:
        while time.monotonic() < deadline:
            with suppress(TimeoutError):
                connection.sendall(more)
    except ConnectionError:
        return True
    return False


def is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def post(server: Any, length: int | None = 1000, key: str = "") -> bytes:
    """The head of a prediction, whose body has a length or comes in chunks."""
    how = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return (
        f"POST /v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key or server.key()}\r\n{how}\r\n\r\n"
    ).encode()


# Heads.


def head_of(size: int) -> bytes:
    start = LIVEZ + b"X-A: "
    return start + b"a" * (size - len(start) - 4) + b"\r\n\r\n"


def test_a_head_may_have_64_kib_and_no_more(server: Any) -> None:
    with connected(server, head_of(MAX_HEAD_BYTES)) as connection:
        assert status_of(connection) == 200
        connection.sendall(head_of(MAX_HEAD_BYTES))  # the next one on the same connection
        assert status_of(connection) == 200
        connection.sendall(head_of(MAX_HEAD_BYTES + 1))
        assert problem_of(rest_of(connection)) == (431, "head-too-large")


def test_a_head_may_have_100_fields_and_no_more(server: Any) -> None:
    more = [b"X-%d: 1\r\n" % number for number in range(MAX_HEADERS - 1)]
    with connected(server, LIVEZ, *more, b"\r\n") as connection:
        assert status_of(connection) == 200
    with connected(server, LIVEZ, *more, b"X: 1\r\n\r\n") as connection:
        assert problem_of(rest_of(connection)) == (431, "head-too-large")


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (LIVEZ + b"X-A: ", b"a" * 65536),
        (LIVEZ, b"X-A: a\r\n" * 8192),
        (LIVEZ + b"X", b"a" * 65536),
        (LIVEZ, b"X:" + b" " * 65536),
        (b"GET /", b"a" * 65536),
        (b"", b"\r\n" * 32768),
    ],
    ids=["value", "fields", "name", "spaces", "address", "blank lines"],
)
def test_a_head_without_end_is_cut_off(server: Any, start: bytes, more: bytes) -> None:
    with connected(server, start) as connection:
        began = time.monotonic()
        with suppress(OSError):
            for _ in range(200):
                connection.sendall(more)
                assert time.monotonic() - began < DEADLINE
        answer = b""
        with suppress(OSError):
            answer = rest_of(connection)
    assert answer == b"" or problem_of(answer) == (431, "head-too-large")
    assert httpx.get(f"{server.url}/livez").status_code == 200


def test_a_head_that_is_too_large_is_answered_while_it_is_sent(server: Any) -> None:
    with connected(server, LIVEZ + b"X-A: " + b"a" * MAX_HEAD_BYTES) as connection:
        assert problem_of(rest_of(connection)) == (431, "head-too-large")


# Time.


@pytest.fixture
def hurried(serve: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server that waits for nobody longer than a second."""
    monkeypatch.setattr(connections, "_TICK_SECONDS", 0.05)
    with serve(head_seconds=0.3, body_seconds=0.3, keep_alive_seconds=1) as server:
        yield server


@pytest.mark.parametrize("started", [b"", b"\r\n", b"GET", LIVEZ, LIVEZ + b"X-A: "])
def test_a_head_that_is_not_whole_in_time_is_answered_and_cut_off(
    hurried: Any, started: bytes
) -> None:
    with connected(hurried, started) as connection:
        assert problem_of(rest_of(connection)) == (408, "request-timeout")


def test_a_head_that_drips_is_cut_off_all_the_same(hurried: Any) -> None:
    with connected(hurried, LIVEZ) as connection:
        connection.settimeout(0.05)
        deadline = time.monotonic() + DEADLINE
        answer = b""
        while not answer:
            assert time.monotonic() < deadline
            with suppress(TimeoutError):
                connection.sendall(b"X: 1\r\n")
                answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_the_next_head_on_a_connection_has_as_little_time(hurried: Any) -> None:
    with connected(hurried, LIVEZ + b"\r\n") as connection:
        assert status_of(connection) == 200
        connection.sendall(b"GET /liv")
        assert problem_of(rest_of(connection)) == (408, "request-timeout")


def test_a_connection_at_rest_is_ended_without_a_word(hurried: Any) -> None:
    with connected(hurried, LIVEZ + b"\r\n") as connection:
        assert status_of(connection) == 200
        assert rest_of(connection) == b""


@pytest.mark.parametrize("length", [1000, None])
@pytest.mark.parametrize("keyed", [True, False])
def test_a_body_that_does_not_end_is_cut_off(hurried: Any, length: int | None, keyed: bool) -> None:
    start = b"5\r\n{    \r\n" if length is None else b"{"
    head = post(hurried, length, "" if keyed else "craft_aaaaaaaa_b")
    with connected(hurried, head, start) as connection:
        answer = rest_of(connection)
    if keyed:
        assert problem_of(answer) == (408, "request-timeout")
    else:
        assert answer.startswith(b"HTTP/1.1 401 ")


def test_a_body_that_drips_is_cut_off_all_the_same(hurried: Any) -> None:
    with connected(hurried, post(hurried, 10**6), b"{") as connection:
        connection.settimeout(0.05)
        deadline = time.monotonic() + DEADLINE
        answer = b""
        while not answer:
            assert time.monotonic() < deadline
            with suppress(TimeoutError):
                connection.sendall(b" ")
                answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_body_that_keeps_coming_is_waited_for(hurried: Any) -> None:
    pieces = 20
    with connected(hurried, post(hurried, 8192 * pieces)) as connection:
        for _ in range(pieces):  # two seconds
            connection.sendall(b" " * 8192)
            time.sleep(0.1)
        assert status_of(connection) == 400


def test_a_client_that_waits_to_be_asked_for_its_body_is_asked(hurried: Any) -> None:
    head = post(hurried, 2).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
    with connected(hurried, head) as connection:
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"{}")
        assert status_of(connection) == 422
    with connected(hurried, head.replace(b"Bearer ", b"Bearer x")) as connection:
        assert rest_of(connection).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    "more",
    [b"a" * 65536, b"\r\n" + b"1\r\na\r\n" * 8192, b"=1\r\n1\r\na\r\n0\r\n" + b"X: 1\r\n" * 10_000],
    ids=["extension", "chunks of a byte", "trailers"],
)
def test_framing_without_end_is_cut_off(server: Any, more: bytes) -> None:
    with connected(server, post(server, None), b"1;a") as connection:
        assert until_cut_off(connection, more)


def test_a_refused_call_is_answered_though_its_body_is_still_being_sent(server: Any) -> None:
    with connected(server, post(server, 10**6, "craft_aaaaaaaa_b")) as connection:
        for _ in range(100):
            connection.sendall(b" " * 10_000)
        assert status_of(connection) == 401
        connection.sendall(LIVEZ + b"\r\n")  # the connection is still good
        assert status_of(connection) == 200


def test_an_answer_that_nobody_reads_is_not_kept(
    hurried: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.3)
    with connected(hurried, unread=4096) as connection:
        assert until_cut_off(connection, b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 10)


def test_calls_in_a_row_are_answered_in_order_and_bounded(server: Any) -> None:
    with connected(server, (LIVEZ + b"\r\n") * 16) as connection:
        answers = b""
        while answers.count(b"HTTP/1.1 200 ") < 16:
            piece = connection.recv(65536)
            assert piece
            answers += piece
    with connected(server, (LIVEZ + b"\r\n") * 2000) as connection:
        assert rest_of(connection).count(b"HTTP/1.1 200 ") < 20


def test_an_upgrade_does_not_lead_out_of_the_bounds(hurried: Any) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: aaaa\r\n"
    with connected(hurried, LIVEZ + upgrade + b"Sec-WebSocket-Version: 13\r\n\r\n") as connection:
        assert status_of(connection) == 200
        assert rest_of(connection) == b""


# How many.


def test_idle_connections_lock_nobody_out(serve: Any) -> None:
    with serve(connections=20) as server, ExitStack() as held:
        started = [b"", LIVEZ, LIVEZ + b"\r\n", post(server, key="craft_aaaaaaaa_b")]
        idle = [held.enter_context(connected(server, started[number % 4])) for number in range(100)]
        for _ in range(5):
            began = time.monotonic()
            assert httpx.get(f"{server.url}/livez").status_code == 200
            assert time.monotonic() - began < 2
        assert sum(map(is_open, idle)) < 20


def test_connections_are_bounded_by_address(serve: Any) -> None:
    with serve(connections_per_address=5) as server, ExitStack() as held:
        other = held.enter_context(connected(server, source="127.0.0.3"))
        # The proxy's own machine, for which the bound is not meant.
        proxied = [held.enter_context(connected(server)) for _ in range(10)]
        many = [held.enter_context(connected(server, source="127.0.0.2")) for _ in range(20)]
        with connected(server, LIVEZ + b"\r\n", source="127.0.0.2") as newest:
            assert status_of(newest) == 200
        assert all(map(is_open, [other, *proxied]))
        deadline = time.monotonic() + DEADLINE
        while sum(map(is_open, many)) > 5:
            assert time.monotonic() < deadline
        assert sum(map(is_open, many[-3:])) == 3  # the longest idle ones went first


def test_calls_that_are_being_made_do_not_give_way(serve: Any) -> None:
    with serve(connections=3) as server, ExitStack() as held:
        key = server.key()
        calls = [
            held.enter_context(connected(server, post(server, key=key), b"{")) for _ in range(3)
        ]
        deadline = time.monotonic() + DEADLINE
        while True:
            with connected(server, LIVEZ + b"\r\n") as one_more:
                answer = rest_of(one_more)
            if answer.startswith(b"HTTP/1.1 503 "):
                break
            assert time.monotonic() < deadline  # the calls were not seen as such yet
        assert problem_of(answer) == (503, "overloaded")
        assert b"\r\nRetry-After: 5\r\n" in answer
        calls[0].sendall(b"}" + b" " * 998)
        assert status_of(calls[0]) == 422
        assert httpx.get(f"{server.url}/livez").status_code == 200


def test_a_process_opens_no_more_connections_than_it_may_open_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    settings = connections.Settings(data_dir=tmp_path, connections=5000)
    for allowed, most in [(100_000, 5000), (1024, 768), (256, 192)]:
        monkeypatch.setattr(connections, "descriptors", lambda allowed=allowed: allowed)
        assert connections.Bounds.of(settings).most == most


@pytest.mark.parametrize(
    ("peer", "counted"),
    [
        ("10.0.0.1", None),
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        (None, None),
        ("", None),
    ],
)
def test_an_address_counts_as_one_whatever_form_it_has(
    peer: str | None, counted: str | None
) -> None:
    bounds = connections.Bounds(1, 1, 1, 1, 1)
    registry = connections.Connections(bounds, "proxy.example, 10.0.0.0/8")
    assert registry._counted_address(peer) == counted
    assert connections.Connections(bounds, "*")._counted_address("192.0.2.7") is None
