"""Tracing of a serving process, where its environment asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from craft_server.cli.output import fail


@contextmanager
def traced() -> Iterator[None]:
    """Traces the block if the environment says where to, or says on stderr why it cannot."""
    from craft_shared.tracing import TracingUnavailable, tracing

    try:
        with tracing("craft-server"):
            yield
    except TracingUnavailable as error:
        fail(str(error))
