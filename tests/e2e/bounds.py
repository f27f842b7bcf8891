"""What is refused before anything is parsed, however a server is run."""

from __future__ import annotations

import socket
from contextlib import suppress
from urllib.parse import urlsplit

import httpx


def check_bounds(url: str) -> None:
    """A head without end, and a body that may not be so large, get their answers."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        with suppress(OSError):
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 2**16)
        assert connection.recv(65536).startswith(b"HTTP/1.1 431 ")
    answer = httpx.post(f"{url}/v1/nowhere", headers={"Authorization": "Bearer x"}, content=b"{}")
    assert answer.status_code == 404
    assert httpx.get(f"{url}/livez").status_code == 200
