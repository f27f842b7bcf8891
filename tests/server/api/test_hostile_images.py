"""Hostile images of one key, beside another key's call, on real sockets."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from hostile_images import encoded, jpeg_with_scans, png_of, shown

DEADLINE = 30.0
Picture = Callable[..., bytes]

# Each holds a decoder for seconds, and each is allowed to by its size.
HEAVY = {
    "JPEG, 99 scans": lambda: jpeg_with_scans(99, side=6000),
    "PNG, 49 million pixels": lambda: png_of(7000, 7000, bytes_a_row=21_000),
}


def question(client: httpx.Client, *files: bytes, **fields: Any) -> dict[str, Any]:
    (card,) = client.get("/v1/models").json()["models"]
    return {
        "model": card["name"],
        "classes": ["cat", "dog"],
        "templates": ["a {}"],
        "images": [base64.b64encode(file).decode() for file in files],
        **fields,
    }


@contextmanager
def asking(client: httpx.Client, body: dict[str, Any]) -> Iterator[socket.socket]:
    """A call on a socket of its own, which is closed at the block's end, whatever was answered."""
    content = json.dumps(body).encode()
    address = urlsplit(str(client.base_url))
    head = (
        f"POST /v1/predictions HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Authorization: {client.headers['authorization']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    assert address.hostname is not None
    with socket.create_connection((address.hostname, address.port or 80)) as connection:
        connection.sendall(head.encode() + content)
        yield connection


def decoders() -> list[int]:
    """The processes of this one that decode."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        found += [int(pid) for pid in (task / "children").read_text().split()]
    name = b"craft_server.decoding"
    return [pid for pid in found if name in _command(pid)]


def work() -> float:
    """Seconds of a core that this process and its decoders have had, those that ended too."""
    ticks = 0
    for pid in decoders():
        with suppress(FileNotFoundError):
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(stat[11]) + int(stat[12])
    times = os.times()
    ended = times.children_user + times.children_system
    return ticks / os.sysconf("SC_CLK_TCK") + ended + time.process_time()


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@pytest.mark.parametrize("name", HEAVY)
def test_a_keys_heavy_images_do_not_hold_up_another_keys(
    serve: Any, picture: Picture, name: str
) -> None:
    """They held every key's images until they were decoded."""
    file = HEAVY[name]()
    with serve() as server, server.client() as attacker, server.client() as victim:
        small = question(victim, picture(1))
        assert victim.post("/v1/predictions", json=small).status_code == 200
        with asking(attacker, question(attacker, *[file] * 8 * (os.cpu_count() or 1))):
            before = work()
            until(lambda: work() > before + 0.4, "no image of the attacker's is decoded")
            asked = work()
            answer = victim.post("/v1/predictions", json=small)
            assert answer.status_code == 200
            # All of the attacker's images take several times as long.
            assert work() - asked < 2.5
            assert victim.get("/livez").status_code == 200
            assert victim.get("/readyz").status_code == 200


def test_the_decoding_of_a_call_that_hung_up_ends(serve: Any, picture: Picture) -> None:
    """It went on to the last image."""
    with serve() as server, server.client() as client:
        client.post("/v1/predictions", json=question(client, picture(1)))
        body = question(client, *[HEAVY["JPEG, 99 scans"]()] * 8)
        before = work()
        with asking(client, body):
            until(lambda: work() > before + 0.4, "no image is decoded")
        hung_up = work()

        def still() -> bool:
            then = work()
            time.sleep(0.3)
            return work() - then < 0.05

        until(still, "it goes on")
        # One such image takes several times as long.
        assert work() - hung_up < 2


def test_a_killed_decoder_costs_nobody_a_call(serve: Any, picture: Picture) -> None:
    with serve() as server, server.client() as client:
        body = question(client, picture(1), picture(2))
        first = client.post("/v1/predictions", json=body)
        for pid in decoders():
            os.kill(pid, signal.SIGKILL)
        again = client.post("/v1/predictions", json=body)
        assert again.status_code == 200
        assert again.json()["log_probs"] == first.json()["log_probs"]
        assert client.get("/readyz").status_code == 200


def test_without_a_process_to_decode_it_an_image_is_not_blamed(
    serve: Any, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of descriptors, a sound image was called damaged."""

    def none(*_: Any, **__: Any) -> Any:
        raise OSError(24, "Too many open files")

    with serve() as server, server.client(queries=5) as client:
        for pid in decoders():
            os.kill(pid, signal.SIGKILL)
        monkeypatch.setattr("craft_server.decoding.decoders.socket.socketpair", none)
        answer = client.post("/v1/predictions", json=question(client, picture(1)))
        assert answer.status_code == 503
        assert answer.json()["type"].endswith("overloaded")
        assert "Retry-After" in answer.headers
        monkeypatch.undo()
        assert client.post("/v1/predictions", json=question(client, picture(1))).status_code == 200
        (budget,) = client.get("/v1/budget").json()["budgets"]
        assert (budget["spent"], budget["reserved"]) == (1, 0)


def test_a_hostile_image_among_sound_ones_is_named_and_the_others_are_not(
    serve: Any, picture: Picture
) -> None:
    with serve() as server, server.client() as client:
        body = question(client, picture(1), jpeg_with_scans(5000), encoded(shown(), "PNG"))
        answer = client.post("/v1/predictions", json=body)
        assert answer.status_code == 422
        (error,) = answer.json()["errors"]
        assert error["field"] == "images[1]"
        assert error["message"] == "it has over 100 scans, far more than an image needs"


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""
