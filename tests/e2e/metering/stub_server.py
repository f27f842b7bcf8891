"""Starts real servers around an engine that costs nothing, and starts them again when they die.

It imports everything once and then forks, so that a killed server is replaced in milliseconds. A
server kills itself with SIGKILL at the point that a call's header `Stub-Kill` names; the product
does not know of this.

Orders are JSON lines on standard input, `{"start": NAME, "processes": N, "settings": {...}}` and
`{"stop": NAME}`; each is answered by one JSON line. A server's listening socket stays open while
the server is replaced.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import sys
import traceback
import zlib
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import numpy as np
import structlog
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from craft_server.api import metering
from craft_server.app import create_app
from craft_server.byte_cache import CacheUse
from craft_server.engine import EngineState, ModelFacts
from craft_server.ledger import charges
from craft_server.settings import Settings

KILL_HEADER = b"stub-kill"
KILL_POINTS = (
    "before the reservation",
    "in the reservation's transaction",
    "after the reservation",
    "after the work",
    "in the settlement's transaction",
    "before the answer",
    "during the answer",
)

_kill_at: ContextVar[str | None] = ContextVar("kill_at", default=None)


def score_of(template: str) -> float:
    """What `StubEngine` answers for a prompt, so that a client can tell whose answer it has."""
    return -(zlib.crc32(template.encode()) % 2**20) / 2**20


class StubEngine:
    """Answers at once; what it answers depends on the prompt alone."""

    name = "stub"
    revision = "0" * 16
    image_size = 1
    random_weights = True
    alive = True
    facts = ModelFacts(
        name="stub",
        revision="0" * 16,
        image_size=1,
        random_weights=True,
        context_length=77,
        preprocess_cfg={},
    )

    def when_dead(self, _stop: Any) -> None:
        """It never is."""

    async def check_prompts(self, _prompts: Any, _classes: Sequence[str], **_: Any) -> list[Any]:
        return []

    async def decode_images(self, files: Sequence[bytes], **_: Any) -> list[bytes]:
        return list(files)

    async def state(self) -> EngineState:
        nothing = CacheUse(nbytes=0, max_bytes=0, hits=0, misses=0)
        return EngineState(waiting=0, busy_seconds={}, text_features=nothing)

    async def encode_images(self, images: Sequence[bytes], **_: Any) -> Any:
        return np.zeros((len(images), 1), np.float32)

    async def encode_prompts(self, prompts: Any, classes: Sequence[str], **_: Any) -> Any:
        scores = [score_of(template) for template in prompts.templates]
        return np.repeat(np.array(scores, np.float32)[:, None, None], len(classes), 1)

    async def score(self, images: Any, texts: Any, _dtype: str = "float32", **_: Any) -> Any:
        await asyncio.sleep(0)
        log_probs = np.repeat(texts[:, None, :, 0], len(images), 1)
        die("after the work")
        return log_probs


def die(point: str) -> None:
    if _kill_at.get() == point:
        os.kill(os.getpid(), signal.SIGKILL)


def install_kill_points() -> None:
    """Wraps the product's functions at the points where a call may end the server."""

    def dying(function: Callable[..., Any], before: str | None, after: str) -> Callable[..., Any]:
        @wraps(function)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            if before is not None:
                die(before)
            result = await function(*args, **kwargs)
            die(after)
            return result

        return wrapped

    # Calls share transactions: whose transaction ends the server is known by what it is about.
    doomed: set[object] = set()

    def dooming(function: Callable[..., Any], point: str, what: Callable[..., object]) -> Any:
        @wraps(function)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            if _kill_at.get() == point:
                doomed.add(what(*args))
            return await function(*args, **kwargs)

        return wrapped

    def dying_inside(function: Callable[..., Any], what: Callable[[Any], object]) -> Any:
        @wraps(function)
        def wrapped(connection: Any, asked: Any, *args: Any, **kwargs: Any) -> Any:
            if doomed.isdisjoint(map(what, asked)):
                return function(connection, asked, *args, **kwargs)
            results = function(connection, asked, *args, **{**kwargs, "last": False})
            os.kill(os.getpid(), signal.SIGKILL)
            return results

        return wrapped

    booking: Any = metering.Booking
    metering._book = dying(metering._book, "before the reservation", "after the reservation")
    metering._book = dooming(
        metering._book, "in the reservation's transaction", lambda call, *_: call.attempt
    )
    charges.reserve_all = dying_inside(charges.reserve_all, lambda order: order.attempt)
    charges.settle_all = dying_inside(charges.settle_all, lambda one: one.reservation.charge_id)
    booking.settle = dying(booking.settle, None, "before the answer")
    booking.settle = dooming(
        booking.settle,
        "in the settlement's transaction",
        lambda booked, _: booked._reserved.charge_id,
    )


class KillMiddleware:
    """Notes where the call is to end the server; ends it halfway through the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        point = dict(scope["headers"]).get(KILL_HEADER)
        _kill_at.set(None if point is None else point.decode())

        async def send_half(message: Message) -> None:
            if _kill_at.get() == "during the answer" and message["type"] == "http.response.body":
                half = message["body"][: len(message["body"]) // 2]
                await send({"type": "http.response.body", "body": half, "more_body": True})
                die("during the answer")
            await send(message)

        await self._app(scope, receive, send_half)


@dataclass
class Lane:
    """Server processes that share a socket and a database."""

    listener: socket.socket
    settings: dict[str, Any]
    children: set[int] = field(default_factory=set)


class Stub:
    """All lanes."""

    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}

    def serve(self) -> None:
        """Obeys orders until standard input ends."""
        awake, wake = socket.socketpair()
        awake.setblocking(False)
        wake.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake.fileno())
        while True:
            ready, _, _ = select.select([sys.stdin, awake], [], [])
            if awake in ready:
                awake.recv(4096)
                self._replace_the_dead()
            if sys.stdin in ready:
                line = sys.stdin.readline()
                if not line:
                    break
                order = json.loads(line)
                answer = self._start(order) if "start" in order else self._stop(order["stop"])
                sys.stdout.write(json.dumps(answer) + "\n")
                sys.stdout.flush()
        for name in list(self._lanes):
            self._stop(name)

    def _start(self, order: dict[str, Any]) -> dict[str, Any]:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(512)
        lane = Lane(listener, order["settings"])
        self._lanes[order["start"]] = lane
        for _ in range(order["processes"]):
            self._fork(lane)
        return {"port": listener.getsockname()[1]}

    def _stop(self, name: str) -> dict[str, Any]:
        lane = self._lanes.pop(name)
        lane.listener.close()
        for child in lane.children:
            os.kill(child, signal.SIGTERM)
        for child in lane.children:
            os.waitpid(child, 0)
        return {}

    def _replace_the_dead(self) -> None:
        for lane in self._lanes.values():
            for child in list(lane.children):
                if os.waitpid(child, os.WNOHANG) != (0, 0):
                    lane.children.remove(child)
                    self._fork(lane)

    def _fork(self, lane: Lane) -> None:
        child = os.fork()
        if child:
            lane.children.add(child)
            return
        try:
            signal.set_wakeup_fd(-1)
            os.close(0)
            for other in self._lanes.values():
                if other is not lane:
                    other.listener.close()
            _run(lane)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)


def _run(lane: Lane) -> None:
    structlog.configure(processors=[_only_errors])
    app = create_app(Settings(**lane.settings), StubEngine())  # type: ignore[arg-type] # as much of an engine as is called
    config = uvicorn.Config(
        KillMiddleware(app), log_config=None, access_log=False, timeout_graceful_shutdown=1
    )
    uvicorn.Server(config).run(sockets=[lane.listener])


def _only_errors(_logger: Any, method: str, event: Any) -> Any:
    if method in ("error", "exception"):
        sys.stderr.write(f"{event}\n{traceback.format_exc()}\n")
    raise structlog.DropEvent


if __name__ == "__main__":
    install_kill_points()
    Stub().serve()
