"""One server's simulated provider: counts its calls, delays them, and lets faults befall them.

Each call passes through `ProviderMiddleware`, which stands where a gateway would, applies latency,
bandwidth and faults to bytes, and answers for a fault inside the server (`Struck`). Charged calls
say how far they have come. Without a profile a provider does nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import random
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from inspect import unwrap
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from craft_server.simulate.profile import Fault, Place, Profile
from craft_shared import problems
from craft_shared.problems import MEDIA_TYPE, Problem, ProblemType

_REVISION_DIGITS = 16


class Struck(Exception):  # noqa: N818 - reads as what it is where it is caught
    """A fault has befallen the call where it is now. Whoever holds something lets it go."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


def fault_of(profile: Profile, number: int) -> Fault | None:
    """The fault that befalls a call, the first that the profile lists; None for most calls."""
    for index, fault in enumerate(profile.faults):
        if _befalls(profile, index, fault, number):
            return fault
    return None


def latency_of(profile: Profile, number: int, *, others: int) -> float:
    """Seconds of a call's log-normal part while so many other calls run."""
    latency = profile.latency
    if latency.median_ms == 0:
        return 0.0
    drawn = _draws(profile, "latency", number).lognormvariate(
        math.log(latency.median_ms / 1000), latency.sigma
    )
    return drawn * (1 + latency.load * others)


def _befalls(profile: Profile, index: int, fault: Fault, number: int) -> bool:
    # Each call begins a burst with the same chance, such that `rate` of all calls are in one.
    chance = 1 - (1 - fault.rate) ** (1 / fault.burst)
    first = max(0, number - fault.burst + 1)
    return any(
        _draws(profile, f"fault {index}", start).random() < chance
        for start in range(first, number + 1)
    )


def _draws(profile: Profile, what: str, number: int) -> random.Random:
    """A generator of its own for each call, so that none depends on the calls before it."""
    return random.Random(f"{profile.seed} {what} {number}")  # noqa: S311 - nothing is kept secret


@dataclass(frozen=True)
class Passage:
    """One call on its way."""

    fault: Fault | None  # what befalls it, if it comes as far
    latency: float  # seconds that it takes beyond its work


_passage: ContextVar[Passage | None] = ContextVar("craft_passage", default=None)


class Provider:
    """What a profile makes of a server.

    Without one it does nothing. `faults` counts those that have happened, by kind and place;
    `granted` are the ids of keys that have what the profile grants.
    """

    def __init__(self, profile: Profile | None = None) -> None:
        self.profile = profile
        self.faults: Counter[tuple[str, str]] = Counter()
        self._calls = 0
        self._running = 0
        self._answered = 0
        self.granted: set[int] = set()

    @contextmanager
    def passage(self) -> Iterator[Passage]:
        """Counts a call for the length of the block and draws what befalls it."""
        profile = self.profile
        if profile is None:
            yield Passage(None, 0.0)
            return
        number, others = self._calls, self._running
        self._calls += 1
        self._running += 1
        drawn = Passage(fault_of(profile, number), latency_of(profile, number, others=others))
        token = _passage.set(drawn)
        try:
            yield drawn
        finally:
            _passage.reset(token)
            self._running -= 1

    def reach(self, place: Place) -> None:
        """A call has come to a place.

        Raises:
            Struck: no further.
        """
        passage = _passage.get()
        if passage is not None and passage.fault is not None and passage.fault.at == place:
            self.happened(passage.fault)
            raise Struck(passage.fault)

    def happened(self, fault: Fault) -> None:
        """Counts a fault."""
        self.faults[fault.kind, fault.at] += 1

    async def reserved(self, items: int) -> None:
        """A charged call has its reservation, and so many predictions and images before it.

        Raises:
            Struck: no further; the reservation must be given back.
        """
        if self.profile is None:
            return
        self.reach("after-reservation")
        await asyncio.sleep(items * self.profile.latency.per_item_ms / 1000)

    def worked(self) -> None:
        """A charged call is settled and its answer stored.

        Raises:
            Struck: the answer must not be sent; the client may fetch it again.
        """
        self._answered += 1
        self.reach("after-work")

    def revision(self, hosted: str) -> str:
        """The revision that the hosted model is said to have now."""
        change = None if self.profile is None else self.profile.revision_change
        if self.profile is None or change is None or self._answered < change.after_calls:
            return hosted
        named = f"craftbox simulated revision\n{hosted}\n{self.profile.digest}"
        return hashlib.sha256(named.encode()).hexdigest()[:_REVISION_DIGITS]


_PREFIX = "/v1/"
# A sender sleeps between pieces: often enough to look steady, seldom enough to cost nothing.
_PIECES_A_SECOND = 20
_ARRIVAL_SECONDS = 0.02
_OVERLOADED_STATUS = 529
_OWN: dict[str, ProblemType] = {
    "429": problems.RATE_LIMITED,
    "500": problems.INTERNAL_ERROR,
    "503": problems.OVERLOADED,
}


def answer_of(fault: Fault, request_id: str) -> Response:
    """The answer of a fault that has a status.

    A server says when a refused call may come again, or that no wait helps: a refusal that names
    no time is therefore a gateway's.
    """
    status = int(fault.kind)
    headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
    kind = _OWN.get(fault.kind)
    knows = kind is problems.INTERNAL_ERROR or fault.retry_after is not None
    if kind is not None and knows and fault.at != "after-work":
        problem = Problem.of(kind, f"simulated fault {fault.kind} {fault.at}")
        named = problem.model_copy(update={"request_id": request_id})
        return Response(named.model_dump_json(), status, headers, MEDIA_TYPE)
    if status == _OVERLOADED_STATUS:
        error = {"type": "overloaded_error", "message": "Overloaded"}
        body = json.dumps({"type": "error", "error": error})
        return Response(body, status, headers, "application/json")
    title = f"{status} {HTTPStatus(status).phrase}"
    page = f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>\r\n"
    return Response(page, status, headers, "text/html")


class ProviderMiddleware:
    """Passes each call of the API through a simulated provider; all else as it is."""

    def __init__(self, app: ASGIApp, *, provider: Provider) -> None:
        self._app = app
        self._provider = provider

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http" or not scope["path"].startswith(_PREFIX):
            await self._app(scope, receive, send)
            return
        with self._provider.passage() as passage:
            line = _Line(self._provider, passage, receive, send)
            try:
                await asyncio.sleep(passage.latency)
                self._provider.reach("before-reservation")
                await self._app(scope, line.receive, line.send)
            except Struck as struck:
                await line.fail(scope, struck.fault)


class _Line:
    """One call's connection."""

    def __init__(self, provider: Provider, passage: Passage, receive: Receive, send: Send) -> None:
        self._provider = provider
        self._fault = passage.fault
        self._receive = receive
        self._send = send
        self._start: Message | None = None
        self._broken = False

    async def receive(self) -> Message:
        """The next part of the request, no sooner than it can have arrived."""
        message = await self._receive()
        rate = self._provider.profile.bandwidth.up if self._provider.profile else None
        if rate is not None:
            await asyncio.sleep(len(message.get("body", b"")) / rate)
        return message

    async def send(self, message: Message) -> None:
        """Sends a part of the answer, as fast as the line and the fault let it through."""
        if self._broken:
            return
        if message["type"] == "http.response.start":
            self._start = message  # held back: the connection may break before anything is sent
            return
        fault = self._fault if self._fault and self._fault.at == "during-answer" else None
        body = message.get("body", b"")
        if fault is not None and self._start is not None:
            self._provider.happened(fault)
        if fault is not None and fault.kind == "reset":
            self._broken = True
            await self._send_some(body[: len(body) // 2])
            await self._reset()
            return
        seconds = fault.seconds or 0.0 if fault is not None else 0.0
        rate = self._provider.profile.bandwidth.down if self._provider.profile else None
        if rate is not None:
            seconds += len(body) / rate
        await self._send_over(seconds, message)

    async def fail(self, scope: Scope, fault: Fault) -> None:
        """Ends the call by a fault, before any of its answer was sent."""
        if fault.kind == "reset":
            await self._reset()
            return
        answer = answer_of(fault, scope["state"]["request_id"])
        await answer(scope, self._receive, self._send)

    async def _send_over(self, seconds: float, message: Message) -> None:
        """Sends a message in pieces, spread over so much time."""
        body = message.get("body", b"")
        pieces = min(max(1, round(seconds * _PIECES_A_SECOND)), max(1, len(body)))
        size = -(-len(body) // pieces)
        for start in range(0, size * (pieces - 1), size or 1):
            await self._send_some(body[start : start + size])
            await asyncio.sleep(seconds / pieces)
        await asyncio.sleep(seconds / pieces)
        await self._begin()
        await self._send({**message, "body": body[size * (pieces - 1) :]})

    async def _send_some(self, piece: bytes) -> None:
        if piece:
            await self._begin()
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def _begin(self) -> None:
        if self._start is not None:
            start, self._start = self._start, None
            await self._send(start)

    async def _reset(self) -> None:
        """Resets the connection (TCP RST), as a router that has forgotten it would."""
        # What was sent before is to arrive: a reset throws away what is still on its way.
        await asyncio.sleep(_ARRIVAL_SECONDS)
        # ASGI knows no resets. uvicorn's `receive` is a method of what holds the transport.
        cycle: Any = unwrap(self._receive).__self__  # a bound method
        transport: asyncio.Transport = cycle.transport
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
        while (await self._receive())["type"] != "http.disconnect":
            pass
