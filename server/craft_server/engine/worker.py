"""The threads that run the model, and the queue before them.

It knows how to take turns fairly, to do tasks of one kind together, and to hand each its own result
or error. It does not know what tasks do, whose they are, nor anything about a particular event
loop.

Work is counted in turns: a task of one turn is about as much as should run at once. Among tenants
the one that has had the least work goes next, and among a tenant's calls alike (a form of
start-time fair queueing, Goyal et al., SIGCOMM 1996), so that neither a tenant with many calls nor
a call with many tasks makes others wait for more than a turn of each. Tasks of several calls that
wait at the same time may be done together; none waits for others to come.

A task runs on one core, side by side with others, or on all of them: then always on the first
thread, so that no other one gets helpers that would take turns on the cores with the first one's.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, TypeVar

from prometheus_client import Histogram

from craft_server.measurements import REGISTRY

_BATCH_TASKS = Histogram(
    "craft_engine_batch_tasks",
    "Tasks that were done together, of one call or several.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
    registry=REGISTRY,
)

P = TypeVar("P")
R = TypeVar("R")

# Does tasks of one kind together: their payloads in, as many results out.
Kind = Callable[[Sequence[P]], Sequence[R]]


class Overloaded(Exception):  # noqa: N818 - the name of the problem that it becomes
    """The queue is full; nothing was accepted and nothing was done."""


class WorkerDied(Exception):  # noqa: N818 - reads as what happened, beside Overloaded
    """The thread has ended; nothing will run any more."""


@dataclass(frozen=True)
class Task(Generic[P]):
    """Something to be done.

    Attributes:
        payload: what its kind is given.
        turns: how much work it is, as a share of what should run at once.
        wide: whether it uses all cores.
    """

    payload: P
    turns: float
    wide: bool = False


@dataclass(frozen=True)
class _Waiting:
    kind: Kind[Any, Any]
    task: Task[Any]
    future: Future[Any]


@dataclass
class _Call:
    had: float
    waiting: deque[_Waiting] = field(default_factory=deque)


@dataclass
class _Tenant:
    had: float
    calls: dict[int, _Call] = field(default_factory=dict)


class _FairQueue:
    """Whose task is next. Not thread-safe."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._served_last = 0.0
        self.turns = 0.0

    def put(self, tenant: str, call: int, items: Sequence[_Waiting]) -> None:
        # Who comes back after a pause has saved nothing up.
        queue = self._tenants.setdefault(tenant, _Tenant(self._served_last))
        least = min((one.had for one in queue.calls.values()), default=0.0)
        queue.calls[call] = _Call(least, deque(items))
        self.turns += sum(item.task.turns for item in items)

    def head(self) -> _Waiting | None:
        if not self._tenants:
            return None
        _, _, call = self._next()
        return call.waiting[0]

    def take(self) -> _Waiting:
        name, number, call = self._next()
        tenant = self._tenants[name]
        item = call.waiting.popleft()
        self._served_last = tenant.had
        tenant.had += item.task.turns
        call.had += item.task.turns
        if not call.waiting:
            del tenant.calls[number]
        if not tenant.calls:
            del self._tenants[name]
        # What adding and subtracting shares leaves behind ends with the last task.
        self.turns = self.turns - item.task.turns if self._tenants else 0.0
        return item

    def drain(self) -> Iterator[_Waiting]:
        while self._tenants:
            yield self.take()

    def _next(self) -> tuple[str, int, _Call]:
        name, tenant = min(self._tenants.items(), key=lambda item: item[1].had)
        number, call = min(tenant.calls.items(), key=lambda item: item[1].had)
        return name, number, call


class Worker:
    """Daemon threads with one bounded, fair queue.

    A task whose future was cancelled before its turn is dropped. An `Exception` that a task raises
    goes to its caller alone; if several were done together, each is done again by itself. Anything
    graver (`SystemExit`, for example) goes to the callers too and ends all threads; what still
    waited fails with `WorkerDied`.

    Args:
        name: of the threads.
        threads: how many tasks run at a time; as many as there are cores, or one.
        capacity: turns that may wait, more than which are only accepted by an empty queue.
        together: turns of one kind that may be done together; 0 does every task by itself.
    """

    def __init__(
        self,
        name: str,
        *,
        threads: int = 1,
        capacity: float = 256,
        together: float = 0,
    ) -> None:
        self._capacity = capacity
        self._together = together
        self._queue, self._wide_queue = _FairQueue(), _FairQueue()
        self._busy: dict[Kind[Any, Any], float] = {}
        self._calls = count()
        self._changed = threading.Condition()
        self._closing = False
        self._dead = False
        self._threads = [
            threading.Thread(target=self._run, args=(queues,), name=f"{name}-{i}", daemon=True)
            for i, queues in enumerate(
                [(self._wide_queue, self._queue)] + [(self._queue,)] * (threads - 1)
            )
        ]
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether a task given now would run."""
        return (
            not self._closing
            and not self._dead
            and all(thread.is_alive() for thread in self._threads)
        )

    @property
    def waiting(self) -> float:
        """Turns that wait."""
        return self._queue.turns + self._wide_queue.turns

    def busy_seconds(self, kind: Kind[P, R]) -> float:
        """How long tasks of a kind have kept cores busy, all together."""
        return self._busy.get(kind, 0.0)

    def submit(
        self, kind: Kind[P, R], tasks: Sequence[Task[P]], *, tenant: str = ""
    ) -> list[Future[R]]:
        """Queues the tasks of one call from any thread, all of them or none.

        Raises:
            Overloaded: there is no room for them.
            WorkerDied: the thread has ended or is being closed.
        """
        futures: list[Future[R]] = [Future() for _ in tasks]
        if not tasks:
            return futures
        turns = sum(task.turns for task in tasks)
        with self._changed:
            if not self.alive:
                raise WorkerDied("the engine's worker thread has ended")
            if self.waiting and self.waiting + turns > self._capacity:
                raise Overloaded("the model has as much to do as it may")
            items = [
                _Waiting(kind, task, future) for task, future in zip(tasks, futures, strict=True)
            ]
            queue = self._wide_queue if any(task.wide for task in tasks) else self._queue
            queue.put(tenant, next(self._calls), items)
            self._changed.notify_all()
        return futures

    async def run(self, kind: Kind[P, R], tasks: Sequence[Task[P]], *, tenant: str = "") -> list[R]:
        """Queues the tasks of one call and awaits their results.

        If one fails, or the await is cancelled, those not yet begun are dropped.

        Raises:
            Overloaded: there is no room for them.
            WorkerDied: the thread has ended or is being closed.
        """
        futures = self.submit(kind, tasks, tenant=tenant)
        try:
            return await asyncio.gather(*map(asyncio.wrap_future, futures))
        except BaseException:
            for future in futures:
                future.cancel()
            raise

    def close(self) -> None:
        """Refuses new tasks, finishes those that wait, and ends the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self, queues: Sequence[_FairQueue]) -> None:
        try:
            while batch := self._next(queues):
                self._do(batch)
                # The last tasks must not be kept alive while the thread waits for others.
                del batch
        finally:
            self._bury()

    def _next(self, queues: Sequence[_FairQueue]) -> list[_Waiting]:
        """The next task and those after it that can be done with it; none when all is done."""
        with self._changed:
            while True:
                self._changed.wait_for(
                    lambda: self._closing or self._dead or any(queue.head() for queue in queues)
                )
                for queue in queues:
                    if batch := list(self._take(queue)):
                        return batch
                if self._closing or self._dead:
                    return []

    def _take(self, queue: _FairQueue) -> Iterator[_Waiting]:
        kind, turns = None, 0.0
        while (head := queue.head()) is not None:
            if kind is not None and (head.kind != kind or turns + head.task.turns > self._together):
                return
            item = queue.take()
            if item.future.set_running_or_notify_cancel():
                kind, turns = item.kind, turns + item.task.turns
                yield item

    def _do(self, batch: Sequence[_Waiting]) -> None:
        kind, began = batch[0].kind, time.perf_counter()
        _BATCH_TASKS.observe(len(batch))
        try:
            results = kind([item.task.payload for item in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            for item in batch:
                self._do([item])
        except BaseException as error:
            for item in batch:
                item.future.set_exception(WorkerDied(f"a task ended the worker thread: {error!r}"))
            raise
        else:
            with self._changed:
                cores = len(self._threads) if batch[0].task.wide else 1
                took = cores * (time.perf_counter() - began)
                self._busy[kind] = self.busy_seconds(kind) + took
            for item, result in zip(batch, results, strict=True):
                item.future.set_result(result)

    def _bury(self) -> None:
        with self._changed:
            self._dead = True
            orphans = [*self._queue.drain(), *self._wide_queue.drain()]
            self._changed.notify_all()
        for item in orphans:
            if item.future.set_running_or_notify_cancel():
                item.future.set_exception(WorkerDied("the engine's worker thread has ended"))
