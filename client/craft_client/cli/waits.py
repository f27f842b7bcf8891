"""Waits before a call is sent again, each told in one short line.

It knows why a call failed, by the exception's type; it does not know when calls are sent again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from craft_client.cli.show import say
from craft_client.cli.verbosity import Verbosity, verbosity

if TYPE_CHECKING:
    from stamina.instrumentation import RetryDetails

# Seconds; shorter waits are worth a line with --verbose alone.
_LONG_WAIT = 1.0


@contextmanager
def told_waits() -> Iterator[None]:
    """Says on stderr, while the block lasts, what stamina waits for."""
    from stamina.instrumentation import get_on_retry_hooks, set_on_retry_hooks

    hooks = get_on_retry_hooks()
    set_on_retry_hooks([_tell])
    try:
        yield
    finally:
        set_on_retry_hooks(hooks)


def _tell(details: RetryDetails) -> None:
    wait = details.wait_for
    if wait >= _LONG_WAIT or verbosity() is Verbosity.VERBOSE:
        shown = f"{wait:.0f}" if wait >= _LONG_WAIT else f"{wait:.1f}"
        say(f"Retrying in {shown} s: {reason(details.caused_by)}.")


def reason(error: Exception) -> str:
    """Why a call is sent again, as a clause."""
    from craft_client.exceptions import (
        AnswerLost,
        CallInProgress,
        ConnectionFailed,
        GatewayFailed,
        InternalError,
        Overloaded,
        RateLimited,
    )

    match error:
        case Overloaded():
            return "the server is overloaded"
        case RateLimited():
            return "the key's rate limit is reached"
        case CallInProgress():
            return "the server is still at work on the call"
        case InternalError():
            return "the server failed at the call"
        case GatewayFailed():
            return f"a gateway answered {error.status}"
        case AnswerLost():
            return "the connection broke"
        case ConnectionFailed():
            return "there is no connection to the server"
        case _:
            return str(getattr(error, "message", error)).partition("\n")[0].rstrip(".")
