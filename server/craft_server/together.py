"""Group commit: what is asked for at about the same time is done in one transaction.

While one transaction runs, everything that is asked for waits, and then shares the next one. Who
asks alone waits for nobody.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Generic, NamedTuple, TypeVar

A = TypeVar("A")
R = TypeVar("R")

# A transaction that takes longer may be waiting for a lock; nobody else waits for it then.
_PATIENCE_SECONDS = 0.25


class _Asked(NamedTuple, Generic[A, R]):
    what: A
    answer: asyncio.Future[R]
    context: Context


class Together(Generic[A, R]):
    """Something that is done for whoever asks, in as few transactions as they leave time for.

    Args:
        threads: on which it is done.
        transact: does it for several in one transaction, and returns a result or an exception for
            each of them. If it raises, nothing was done, and each is done alone.
        final: an exception of `transact` after which nobody is given another transaction, because
            it may have done what it was asked for.
    """

    def __init__(
        self,
        threads: Executor,
        transact: Callable[[Sequence[A]], Sequence[R | Exception]],
        *,
        final: type[Exception],
    ) -> None:
        self._threads = threads
        self._transact = transact
        self._final = final
        self._lock = threading.Lock()
        self._waiting: list[_Asked[A, R]] = []
        self._began: list[float] = []  # of each transaction that runs

    def ask(self, what: A) -> asyncio.Future[R]:
        """Its result. What is cancelled before its transaction begins is left out."""
        loop = asyncio.get_running_loop()
        asked = _Asked(what, loop.create_future(), copy_context())
        with self._lock:
            self._waiting.append(asked)
        if not self._work_on():
            loop.call_later(_PATIENCE_SECONDS, self._work_on)
        return asked.answer

    def _work_on(self) -> bool:
        """Begins another transaction unless one is about to end; whether it does."""
        now = time.monotonic()
        with self._lock:
            if not self._waiting or any(now - began < _PATIENCE_SECONDS for began in self._began):
                return False
            self._began.append(now)
        self._threads.submit(self._work, now)
        return True

    def _work(self, began: float) -> None:
        while True:
            with self._lock:
                self._began.remove(began)
                group, self._waiting = self._waiting, []
                if not group:
                    return
                began = time.monotonic()
                self._began.append(began)
            group = [one for one in group if not one.answer.cancelled()]
            if group:
                self._do(group)

    def _do(self, group: Sequence[_Asked[A, R]]) -> None:
        try:
            # As the first one's, whose transaction the others share.
            outcomes = group[0].context.run(self._transact, [one.what for one in group])
        except Exception as error:
            if len(group) > 1 and not isinstance(error, self._final):
                for one in group:
                    self._do([one])
                return
            outcomes = [error] * len(group)
        for one, outcome in zip(group, outcomes, strict=True):
            with suppress(RuntimeError):  # its event loop is closed: nobody waits
                one.answer.get_loop().call_soon_threadsafe(_resolve, one.answer, outcome)


def _resolve(answer: asyncio.Future[R], outcome: R | Exception) -> None:
    if answer.cancelled():
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
