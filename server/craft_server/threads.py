"""Work that the event loop gives to a thread or must see through, whatever becomes of its call.

A thread works in the context of the call that it works for: a log line that is written on it has
the call's id, and a span its parent. `asyncio`'s own `to_thread` does the same on its own threads;
it knows no others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextvars import copy_context
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def on_thread(
    threads: Executor, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> asyncio.Future[T]:
    """Runs `function(...)` on one of the threads."""
    in_context = partial(copy_context().run, function, *args, **kwargs)
    return asyncio.get_running_loop().run_in_executor(threads, in_context)


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Awaits the work even while the caller is cancelled, however often.

    Raises:
        asyncio.CancelledError: it was, once the work is done.
    """
    running = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return running.result()
