"""How log lines look: JSON on stderr, or coloured text where stderr is a terminal."""

from __future__ import annotations

import sys

import structlog


def configure_logging() -> None:
    """Makes structlog write to stderr, with the call's id in every line of a call."""
    terminal = sys.stderr.isatty()
    # Plain tracebacks: the local variables of the fancier ones may hold a client's key.
    ends: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if terminal
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *ends,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
