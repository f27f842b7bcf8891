"""The one thread that owns the model.

It knows how to run callables one after the other, in order of arrival, and to hand each its own
result or error. It does not know what the callables do, nor anything about a particular event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Overloaded(Exception):  # noqa: N818 - the name of the problem that it becomes
    """The queue is full; the task was not accepted and nothing was done."""


class WorkerDied(Exception):  # noqa: N818 - reads as what happened, beside Overloaded
    """The thread has ended; nothing will run any more."""


class Worker:
    """A daemon thread with a bounded queue.

    A task whose future was cancelled before its turn is dropped. An `Exception` that a task raises
    goes to its caller alone. Anything graver (`SystemExit`, for example) goes to the caller too and
    ends the thread; what still waited fails with `WorkerDied`.
    """

    def __init__(self, name: str, *, capacity: int = 256) -> None:
        self._capacity = capacity
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._dead = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether a task given now would run."""
        return self._thread.is_alive() and not self._closing and not self._dead

    def submit(self, task: Callable[[], T]) -> Future[T]:
        """Queues a task from any thread.

        Raises:
            Overloaded: `capacity` tasks wait already.
            WorkerDied: the thread has ended or is being closed.
        """
        future: Future[T] = Future()
        with self._changed:
            if not self.alive:
                raise WorkerDied("the engine's worker thread has ended")
            if len(self._waiting) >= self._capacity:
                raise Overloaded(f"{self._capacity} tasks wait for the model already")
            self._waiting.append((future, task))
            self._changed.notify()
        return future

    async def run(self, task: Callable[[], T]) -> T:
        """Queues a task and awaits its result; cancelling the await drops a task not yet begun.

        Raises:
            Overloaded: `capacity` tasks wait already.
            WorkerDied: the thread has ended or is being closed.
        """
        return await asyncio.wrap_future(self.submit(task))

    def close(self) -> None:
        """Refuses new tasks, finishes those that wait, and ends the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while (item := self._next()) is not None:
                self._do(*item)
                # The last task must not be kept alive while the thread waits for another.
                del item
        finally:
            self._bury()

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            return self._waiting.popleft() if self._waiting else None

    @staticmethod
    def _do(future: Future[Any], task: Callable[[], Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = task()
        except Exception as error:
            future.set_exception(error)
        except BaseException as error:
            future.set_exception(WorkerDied(f"a task ended the worker thread: {error!r}"))
            raise
        else:
            future.set_result(result)

    def _bury(self) -> None:
        with self._changed:
            self._dead = True
            orphans = list(self._waiting)
            self._waiting.clear()
        for future, _ in orphans:
            if future.set_running_or_notify_cancel():
                future.set_exception(WorkerDied("the engine's worker thread has ended"))
