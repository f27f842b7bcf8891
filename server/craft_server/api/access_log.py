"""What each call was, how it ended and how long it took: one log line, and counts for Prometheus.

It knows the call's operation, not whose call it was.
"""

from __future__ import annotations

import time

import structlog
from prometheus_client import Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from craft_server.measurements import REGISTRY

# From an answer out of a cache to a large upload on a slow machine.
_BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_REQUESTS = Counter(
    "craft_http_requests_total",
    "HTTP calls that ended, by what was asked and answered.",
    ["operation", "status"],
    registry=REGISTRY,
)
_SECONDS = Histogram(
    "craft_http_request_duration_seconds",
    "From a call's first byte to its answer's last.",
    ["operation"],
    buckets=_BUCKETS_SECONDS,
    registry=REGISTRY,
)
_IN_FLIGHT = Gauge(
    "craft_http_requests_in_flight",
    "HTTP calls that are being answered, this one included.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)

_log = structlog.get_logger()


class AccessLogMiddleware:
    """Logs method, path, status and milliseconds; never a body, a header or a query string."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status: int | None = None

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        _IN_FLIGHT.inc()
        try:
            await self._app(scope, receive, send_noting_status)
        finally:
            seconds = time.perf_counter() - began
            operation = _operation(scope)
            _IN_FLIGHT.dec()
            _REQUESTS.labels(operation, "none" if status is None else status).inc()
            _SECONDS.labels(operation).observe(seconds)
            _log.info(
                "call",
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round(1000 * seconds, 1),
            )


def _operation(scope: Scope) -> str:
    """The operation's id, or the name of a page of the console; an address could be anything."""
    route = scope.get("route")
    return getattr(route, "operation_id", None) or getattr(route, "name", None) or "none"
