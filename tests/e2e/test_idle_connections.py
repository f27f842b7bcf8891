"""A server that may open few files, and hundreds of connections that say nothing."""

from __future__ import annotations

import base64
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import httpx

from e2e.conftest import SERVE, StartServer

DESCRIPTORS = 256
CONNECTIONS = 400


def test_idle_connections_take_no_descriptor_that_a_call_needs(
    start_server: StartServer, picture: Callable[..., bytes]
) -> None:
    limited = ("bash", "-c", f'ulimit -n {DESCRIPTORS} && exec "$0" "$@"', *SERVE)
    server = start_server("--model", "pocket", program=limited)
    key, port = server.key(), int(server.url.rpartition(":")[2])
    with ExitStack() as held, httpx.Client(base_url=server.url, timeout=60) as client:
        for number in range(CONNECTIONS):
            connection = held.enter_context(socket.create_connection(("127.0.0.1", port)))
            if number % 2:
                connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX: ")
        # The first picture that this process decodes.
        body = {
            "model": "pocket",
            "classes": ["cat", "dog"],
            "templates": ["a {}"],
            "images": [base64.b64encode(picture(1)).decode()],
        }
        headers = {"Authorization": f"Bearer {key}"}
        answer = client.post("/v1/predictions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        live = []
        for _ in range(10):
            began = time.monotonic()
            assert httpx.get(f"{server.url}/livez").status_code == 200
            live.append(time.monotonic() - began)
        assert min(live) < 0.25
