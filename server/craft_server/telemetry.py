"""What a process says of itself: log lines, and what it counts, for Prometheus.

Log lines are JSON on stderr, or coloured text where stderr is a terminal. Each module counts what
it alone knows, with an object of its own that is registered here. Where several processes serve one
address, they share what they count through the files of the folder `PROMETHEUS_MULTIPROC_DIR`,
which must be set before any of them starts, and empty.

Source: prometheus_client, "Multiprocess Mode (e.g. Gunicorn)".
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

import structlog
from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.exposition import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from craft_shared.printing import printable

_FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

# When a counter began is no measurement of its own.
disable_created_metrics()  # type: ignore[no-untyped-call] # the library has no types here

REGISTRY = CollectorRegistry()


def counted() -> bytes:
    """What was counted, by all processes together where they share a folder."""
    if _FOLDER_VARIABLE not in os.environ:
        return generate_latest(REGISTRY)
    shared = CollectorRegistry()
    MultiProcessCollector(shared)  # type: ignore[no-untyped-call] # the library has no types here
    return generate_latest(shared)


def configure_logging(level: str = "info") -> None:
    """Makes structlog write to stderr, with the call's id in every line of a call."""
    terminal = sys.stderr.isatty()
    # Plain tracebacks: the local variables of the fancier ones may hold a client's key.
    ends: list[structlog.typing.Processor] = (
        [
            _printable,
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
        ]
        if terminal
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    stream: Any = _Harmless(sys.stderr)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *ends,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(stream),
    )


def _printable(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """What others have written reaches a terminal as words alone."""
    return {
        name: printable(value) if isinstance(value, str) else value for name, value in event.items()
    }


class _Harmless:
    """A stream in whose place nothing fails: a full disk or a closed pipe costs a line, no call."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes it, or does not."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes the stream, or does not."""
        with suppress(OSError, ValueError):
            self._stream.flush()
