"""Work that the event loop gives to a thread, in the context of the call that it is done for.

A log line that is written on the thread so has the call's id, and a span its parent. `asyncio`'s
own `to_thread` does the same on its own threads; it knows no others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def on_thread(
    threads: Executor, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> asyncio.Future[T]:
    """Runs `function(...)` on one of the threads."""
    in_context = partial(copy_context().run, function, *args, **kwargs)
    return asyncio.get_running_loop().run_in_executor(threads, in_context)
