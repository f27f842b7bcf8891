"""The connections of one process: how many, how large heads may be, how long a client may take.

Nothing here waits for a client without end. A head has to be whole in time, a body has to keep
coming, an answer has to be read. Where there are as many connections as may be, the one that has
waited for its client the longest gives way to a new one, so that connections that say nothing lock
nobody out.

Sources: RFC 9112; RFC 6585 for 431; nginx, "Module ngx_http_core_module" (`lingering_close`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar

from prometheus_client import Counter
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from craft_server.settings import MEBIBYTE, Settings
from craft_server.telemetry import REGISTRY
from craft_shared import problems
from craft_shared.problems import MEDIA_TYPE, Problem, ProblemType

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 100
BODY_BYTES_A_SECOND = 16 * 1024
UNREAD_SECONDS = 30.0
# A peer that is still sending sees an answer only if the connection is not closed under it.
_LINGER_SECONDS = 2.0
_MOST_TURNED_AWAY = 64
_MOST_PIPELINED = 16
_TICK_SECONDS = 0.5
_CROWD, _CROWD_SECONDS = 32, 0.1

_CUT = Counter(
    "craft_connections_cut_total",
    "Connections that the server ended, by why.",
    ["reason"],
    registry=REGISTRY,
)


def descriptors() -> int:
    """How many files and connections the process may have open, raised to what it may raise."""
    if sys.platform == "win32":
        return 8192
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


@dataclass(frozen=True)
class Bounds:
    """Of all connections of a process."""

    most: int  # at a time
    most_of_address: int  # from one address that is no trusted proxy's, or one /64 of IPv6
    head_seconds: float  # until a head is whole, from its connection's or its own beginning
    body_seconds: float  # until a body is whole, and one more for each `BODY_BYTES_A_SECOND` of it
    unwanted_bytes: int  # of a body that are thrown away once its call is answered

    @classmethod
    def of(cls, settings: Settings) -> Bounds:
        """As the operator has set them, with descriptors to spare for files and databases."""
        allowed = descriptors()
        return cls(
            most=min(settings.connections, allowed - max(64, min(256, allowed // 4))),
            most_of_address=settings.connections_per_address,
            head_seconds=settings.head_seconds,
            body_seconds=settings.body_seconds,
            # Of a body that is somewhat too large its sender still learns why.
            unwanted_bytes=max(MEBIBYTE, 2 * settings.limits.body_bytes),
        )


@dataclass
class Connections:
    """All that are open, and of those the ones that wait for their client, longest first."""

    bounds: Bounds
    trusted: str | list[str] = ""
    turned_away: int = 0
    _arrivals: deque[float] = field(default_factory=lambda: deque(maxlen=_CROWD))
    _open: dict[BoundedProtocol, str | None] = field(default_factory=dict)
    _of_address: dict[str, int] = field(default_factory=dict)
    _waiting: dict[BoundedProtocol, None] = field(default_factory=dict)
    _timer: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        named = self.trusted.split(",") if isinstance(self.trusted, str) else self.trusted
        names = [name.strip() for name in named]
        self._all_trusted = "*" in names
        self._networks = []
        for name in names:
            with suppress(ValueError):  # a name, which no peer's address is
                self._networks.append(ipaddress.ip_network(name, strict=False))

    def admit(self, connection: BoundedProtocol, peer: str | None) -> bool:
        """Counts a new connection, if there is room or another one gives way."""
        self._arrivals.append(time.monotonic())
        address = self._counted_address(peer)
        full = (
            address is not None
            and self._of_address.get(address, 0) >= self.bounds.most_of_address
            and not self._give_way(address)
        )
        if full or (len(self._open) >= self.bounds.most and not self._give_way()):
            return False
        self._open[connection] = address
        if address is not None:
            self._of_address[address] = self._of_address.get(address, 0) + 1
        self.waits(connection)
        if self._timer is None:
            self._timer = connection.loop.call_later(_TICK_SECONDS, self._tick, connection.loop)
        return True

    def crowded(self) -> bool:
        """Whether the last `_CROWD` connections arrived within `_CROWD_SECONDS` of now."""
        full = len(self._arrivals) == _CROWD
        return full and time.monotonic() - self._arrivals[0] < _CROWD_SECONDS

    def waits(self, connection: BoundedProtocol) -> None:
        """From now on it waits for its client."""
        if connection in self._open:
            self.works(connection)
            self._waiting[connection] = None

    def works(self, connection: BoundedProtocol) -> None:
        """It has a call, for which it is not ended."""
        self._waiting.pop(connection, None)

    def forget(self, connection: BoundedProtocol) -> None:
        """It has ended."""
        if connection not in self._open:
            return
        self.works(connection)
        if (address := self._open.pop(connection)) is not None:
            self._of_address[address] -= 1
            if not self._of_address[address]:
                del self._of_address[address]

    def _give_way(self, address: str | None = None) -> bool:
        """Ends the connection that waits the longest, of one address or of all, if one waits."""
        of_address = (one for one in self._waiting if address in (None, self._open[one]))
        longest = next(of_address, None)
        if longest is None:
            return False
        self.forget(longest)
        longest.cut("gave-way")
        return True

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in list(self._open):
            connection.check(now, _TICK_SECONDS)
        again = bool(self._open)
        self._timer = loop.call_later(_TICK_SECONDS, self._tick, loop) if again else None

    def _counted_address(self, peer: str | None) -> str | None:
        """Under what the peer counts; None for who is not counted."""
        try:
            address = ipaddress.ip_address(peer or "")
        except ValueError:
            return None
        if self._all_trusted or any(address in network for network in self._networks):
            return None
        if isinstance(address, ipaddress.IPv6Address):
            if address.ipv4_mapped is None:
                return str(ipaddress.ip_network((address, 64), strict=False))
            address = address.ipv4_mapped
        return str(address)


class BoundedProtocol(HttpToolsProtocol):
    """One connection: uvicorn's, with bounds on what it takes and how long."""

    registry: ClassVar[Connections]

    _in_body = False
    _over = False  # nothing that comes is read any more
    _since = 0.0  # when its client's turn began
    _outside = 0  # bytes of the present message that are not its body's
    _received = 0  # those that are
    _waited = 0.0  # seconds for the body
    _unsent = 0
    _unread = 0.0  # seconds in which nothing of an answer was taken
    _calls: Sequence[RequestResponseCycle] = ()

    # What uvicorn and httptools call.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._since = self.loop.time()
        if self.registry.admit(self, self.client[0] if self.client else None):
            return
        if self.registry.turned_away >= _MOST_TURNED_AWAY:
            self.cut("turned-away")
            return
        self.registry.turned_away += 1
        self.loop.call_later(_LINGER_SECONDS, self._turned_away)
        self._refuse(
            problems.OVERLOADED, "the server has as many connections as it may", retry_after=5
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.registry.forget(self)
        self._hang_up()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        while data and not (self._over or self.transport.is_closing()):
            piece = data
            if not self._in_body:
                if not self._outside and self.cycle is not None:
                    self._since = self.loop.time()
                piece = data[: max(0, MAX_HEAD_BYTES - self._outside)]
                if not piece:
                    detail = f"the request's head has more than {MAX_HEAD_BYTES} bytes"
                    self._refuse(problems.HEAD_TOO_LARGE, detail)
                    return
            data = data[len(piece) :]
            self._outside += len(piece)
            super().data_received(piece)
        if self._in_body and self._outside > 2 * MAX_HEAD_BYTES + self._received:
            self._refuse(
                problems.MALFORMED_BODY, "there is more of the body's framing than of the body"
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        if self._over:
            return
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            detail = f"the request has more than {MAX_HEADERS} header fields"
            self._refuse(problems.HEAD_TOO_LARGE, detail)

    def on_headers_complete(self) -> None:
        """See httptools."""
        if self._over:
            return
        if len(self.pipeline) == _MOST_PIPELINED:
            self.cut("pipelined")
            return
        self._in_body, self._received, self._waited = True, 0, 0.0
        self.registry.works(self)
        super().on_headers_complete()
        self._calls = [call for call in self._calls if not call.response_complete] + [self.cycle]

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        if self._over:
            return
        self._received += len(body)
        self._outside -= len(body)
        super().on_body(body)
        if self.cycle.response_complete and self._received > self.registry.bounds.unwanted_bytes:
            self.cut("unwanted-body")

    def on_message_complete(self) -> None:
        """See httptools."""
        if self._over:
            return
        self._in_body, self._outside = False, 0
        super().on_message_complete()
        if self.cycle.response_complete:
            self._idle()

    def on_response_complete(self) -> None:
        """See uvicorn."""
        super().on_response_complete()
        if self.transport.is_closing() or not self.cycle.response_complete:
            return
        if self._in_body and self.cycle.waiting_for_100_continue:
            self.transport.close()  # whether the body still comes, nobody can know
        elif self._in_body:
            self.registry.waits(self)
        else:
            self._idle()

    # What is decided here.

    def check(self, now: float, seconds: float) -> None:
        """Ends the connection if its client has taken too long; called every `seconds`."""
        if self._over:
            return
        bounds = self.registry.bounds
        unsent = self.transport.get_write_buffer_size()
        self._unread = self._unread + seconds if 0 < self._unsent <= unsent else 0.0
        self._unsent = unsent
        if self._unread > UNREAD_SECONDS:
            self.cut("unread-answer")
        elif self._in_body:
            if not (self.flow.read_paused or self.cycle.waiting_for_100_continue):
                self._waited += seconds
            if self._waited > bounds.body_seconds + self._received / BODY_BYTES_A_SECOND:
                self._refuse(problems.REQUEST_TIMEOUT, "the body was not complete in time")
        elif (
            # Of connections that rest between two calls uvicorn takes care.
            self.cycle is None or (self.cycle.response_complete and self._outside)
        ) and now - self._since > bounds.head_seconds:
            self._refuse(problems.REQUEST_TIMEOUT, "the request's head was not complete in time")

    def cut(self, reason: str) -> None:
        """Ends the connection at once, without a word."""
        _CUT.labels(reason).inc()
        self._over = True
        self._hang_up()
        self.transport.abort()

    def _hang_up(self) -> None:
        """Lets each call know that nobody waits for it any more."""
        for call in self._calls:
            if not call.response_complete:
                call.disconnected = True
                call.message_event.set()
        self.flow.resume_writing()

    def _idle(self) -> None:
        self._since = self.loop.time()
        self.registry.waits(self)

    def _turned_away(self) -> None:
        self.registry.turned_away -= 1

    def _refuse(self, kind: ProblemType, detail: str, *, retry_after: int | None = None) -> None:
        """Answers with a problem, where an answer can be meant for this request, and ends."""
        cycle = self.cycle
        answered = cycle is None or cycle.response_complete
        if self._in_body:
            answerable = not (answered or cycle.response_started or self.pipeline)
        else:
            answerable = answered
        if not answerable:
            self.cut(kind.slug)
            return
        _CUT.labels(kind.slug).inc()
        self._over = True
        self._hang_up()
        self._unset_keepalive_if_required()
        self.transport.write(_response(kind, detail, retry_after))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self.registry.waits(self)
        self.loop.call_later(_LINGER_SECONDS, self.transport.abort)


def bounded(settings: Settings) -> type[BoundedProtocol]:
    """The protocol of a server's connections, which it counts together."""
    trusted = Config("").forwarded_allow_ips

    class OfServer(BoundedProtocol):
        registry = Connections(Bounds.of(settings), trusted)

    return OfServer


def _response(kind: ProblemType, detail: str, retry_after: int | None) -> bytes:
    body = Problem.of(kind, detail).model_dump_json().encode()
    head = [
        f"HTTP/1.1 {kind.status} {_REASONS[kind.status]}",
        f"Content-Type: {MEDIA_TYPE}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *([] if retry_after is None else [f"Retry-After: {retry_after}"]),
    ]
    return "\r\n".join((*head, "", "")).encode() + body


_REASONS = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}
