"""The threads that run the model, and the queue before them.

Work is counted in turns: a task of one turn is about as much as should run at once. Among tenants
the one that has had the least work goes next, and among a tenant's calls alike (a form of
start-time fair queueing, Goyal et al., SIGCOMM 1996), so that neither a tenant with many calls nor
a call with many tasks makes others wait for more than a turn of each. Tasks that merge, of several
calls that wait at the same time, are done together, a turn of them; none waits for others to come.

Work whose length nobody knows before is a generator that yields whenever its turn is over. It is
paid for in the seconds that it took, goes on at once while no other's turn has come, and else is
set aside until its own comes again. If its caller has gone it is closed where it yields.

A task runs on one core, side by side with others, or on all of them: then always on the first
thread, so that no other one gets helpers that would take turns on the cores with the first one's.
"""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from prometheus_client import Histogram

from craft_server.telemetry import REGISTRY

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
# Work in steps, each of which is over within a tenth of a second or so; what it returns is the
# result.
Steps = Generator[None, None, R]


class Overloaded(Exception):  # noqa: N818 - the name of the problem that it becomes
    """The queue is full; nothing was accepted and nothing was done."""


class WorkerDied(Exception):  # noqa: N818 - reads as what happened, beside Overloaded
    """The thread has ended; nothing will run any more."""


class NotFinite(Exception):  # noqa: N818 - reads as what it is where it is caught
    """What the model has computed holds numbers that are none, in single precision too."""


class _TurnIsOver(Exception):  # noqa: N818 - nothing is wrong
    """A task is not done, and goes on in its next turn."""


@dataclass(frozen=True)
class Task(Generic[P]):
    """Something to be done."""

    payload: P  # what its kind is given
    turns: float  # how much work it is, as a share of what should run at once
    wide: bool = False  # whether it uses all cores
    merges: bool = False  # whether it may be done together with others of its kind


class _Promise(Future[R]):
    """What a task's caller waits for; one that has begun cannot be cancelled, but be given up."""

    given_up = False


@dataclass(frozen=True)
class _Waiting:
    kind: Kind[Any, Any]
    task: Task[Any]
    future: _Promise[Any]
    queue: _FairQueue
    tenant: _Tenant
    call: _Call


@dataclass(eq=False)
class _Call:
    had: float
    waiting: deque[_Waiting] = field(default_factory=deque)


@dataclass(eq=False)
class _Tenant:
    """Of whom something waits or runs."""

    name: str
    had: float
    calls: list[_Call] = field(default_factory=list)
    running: int = 0


class _FairQueue:
    """Whose task is next. Not thread-safe."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._served_last = 0.0
        self.turns = 0.0

    def put(
        self, name: str, kind: Kind[Any, Any], pairs: Sequence[tuple[Task[Any], _Promise[Any]]]
    ) -> None:
        # Who comes back after a pause has saved nothing up.
        tenant = self._tenants.setdefault(name, _Tenant(name, self._served_last))
        call = _Call(min((one.had for one in tenant.calls), default=0.0))
        call.waiting.extend(_Waiting(kind, *pair, self, tenant, call) for pair in pairs)
        tenant.calls.append(call)
        self.turns += sum(task.turns for task, _ in pairs)

    def head(self) -> _Waiting | None:
        call = self._next()
        return None if call is None else call.waiting[0]

    def take(self) -> _Waiting | None:
        call = self._next()
        if call is None:
            return None
        item = call.waiting.popleft()
        tenant = item.tenant
        if not call.waiting:
            tenant.calls.remove(call)
        tenant.running += 1
        self._served_last = tenant.had
        self.pay(item, item.task.turns)
        # What adding and subtracting shares leaves behind ends with the last task.
        self.turns = self.turns - item.task.turns if self.head() else 0.0
        return item

    def pay(self, item: _Waiting, turns: float) -> None:
        item.tenant.had += turns
        item.call.had += turns

    def go_on(self, item: _Waiting) -> bool:
        """Whether it may, because nobody's turn comes before its own."""
        head = self.head()
        if head is not None:
            others = head.tenant is not item.tenant
            mine, theirs = (
                (item.tenant.had, head.tenant.had) if others else (item.call.had, head.call.had)
            )
            if theirs < mine:
                return False
        self._served_last = item.tenant.had
        return True

    def put_back(self, item: _Waiting) -> None:
        if not item.call.waiting:
            item.tenant.calls.append(item.call)
        item.call.waiting.appendleft(item)
        self.turns += item.task.turns
        item.tenant.running -= 1

    def done(self, item: _Waiting) -> None:
        item.tenant.running -= 1
        self._forget(item.tenant)

    def drain(self) -> Iterator[_Waiting]:
        while item := self.take():
            yield item
            self.done(item)

    def _forget(self, tenant: _Tenant) -> None:
        if not tenant.running and not tenant.calls:
            del self._tenants[tenant.name]

    def _next(self) -> _Call | None:
        waiting = (tenant for tenant in self._tenants.values() if tenant.calls)
        tenant = min(waiting, key=lambda one: one.had, default=None)
        return None if tenant is None else min(tenant.calls, key=lambda one: one.had)


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
        aside: how many tasks in steps may be set aside before their end, since what they hold is
            held on to; with more, those that run go on.
    """

    def __init__(
        self,
        name: str,
        *,
        threads: int = 1,
        capacity: float = 256,
        aside: int = 0,
    ) -> None:
        self._capacity = capacity
        self._queue, self._wide_queue = _FairQueue(), _FairQueue()
        self._busy: dict[Kind[Any, Any], float] = {}
        self._aside = aside
        self._changed = threading.Condition()
        self._closing = False
        self._dead = False
        self._on_death: list[Callable[[], object]] = []
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

    def when_dead(self, function: Callable[[], object]) -> None:
        """Calls a function, on any thread, once the threads have ended without `close`."""
        with self._changed:
            if not self._dead:
                self._on_death.append(function)
                return
        function()

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
        return list(self._submit(kind, tasks, tenant))

    def _submit(
        self, kind: Kind[P, R], tasks: Sequence[Task[P]], tenant: str
    ) -> Sequence[_Promise[R]]:
        futures: list[_Promise[R]] = [_Promise() for _ in tasks]
        if not tasks:
            return futures
        turns = sum(task.turns for task in tasks)
        with self._changed:
            if not self.alive:
                raise WorkerDied("the engine's worker thread has ended")
            if self.waiting and self.waiting + turns > self._capacity:
                raise Overloaded("the model has as much to do as it may")
            queue = self._wide_queue if any(task.wide for task in tasks) else self._queue
            queue.put(tenant, kind, list(zip(tasks, futures, strict=True)))
            self._changed.notify_all()
        return futures

    async def run(self, kind: Kind[P, R], tasks: Sequence[Task[P]], *, tenant: str = "") -> list[R]:
        """Queues the tasks of one call and awaits their results.

        If one fails, or the await is cancelled, those not yet begun are dropped.

        Raises:
            Overloaded: there is no room for them.
            WorkerDied: the thread has ended or is being closed.
        """
        futures = self._submit(kind, tasks, tenant)
        try:
            return await asyncio.gather(*map(asyncio.wrap_future, futures))
        except BaseException:
            for future in futures:
                future.given_up = not future.cancel()
            raise

    async def take_steps(self, every: Sequence[Steps[R]], *, tenant: str = "") -> list[R]:
        """Like `run`, for the work of one call in steps."""
        return await self.run(_step, [Task(steps, 0.0) for steps in every], tenant=tenant)

    def close(self) -> None:
        """Refuses new tasks, finishes those that wait, and ends the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self, queues: Sequence[_FairQueue]) -> None:
        batch: list[_Waiting] = []
        try:
            # The last tasks are not kept alive while the thread waits for others.
            while batch := batch or self._next(queues):
                batch = self._do(batch)
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
            full = not head.task.merges or turns + head.task.turns > 1.0
            if kind is not None and (full or head.kind != kind):
                return
            item = queue.take()
            if item is None:
                return
            set_aside = item.future.running()
            self._aside += set_aside
            if set_aside or item.future.set_running_or_notify_cancel():
                kind, turns = item.kind, turns + item.task.turns
                yield item
            else:
                queue.done(item)

    def _do(self, batch: list[_Waiting]) -> list[_Waiting]:
        """Does tasks together; those that are not done and go on at once."""
        kind, began = batch[0].kind, time.perf_counter()
        if kind is _step and batch[0].future.given_up:
            return self._give_up(batch[0])
        results: Sequence[Any] | None
        try:
            results = kind([item.task.payload for item in batch])
        except _TurnIsOver:
            return self._after_a_step(batch[0], time.perf_counter() - began)
        except Exception as error:
            # Whoever waits may hold the error for long, but not what the work had in memory.
            traceback.clear_frames(error.__traceback__)
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            results = None
        except BaseException as error:
            self._dead = True  # before anybody hears of it
            for item in batch:
                item.future.set_exception(WorkerDied(f"a task ended the worker thread: {error!r}"))
            raise
        else:
            if kind is not _step:
                _BATCH_TASKS.observe(len(batch))
            with self._changed:
                cores = len(self._threads) if batch[0].task.wide else 1
                took = cores * (time.perf_counter() - began)
                self._busy[kind] = self.busy_seconds(kind) + took
                if kind is _step:
                    batch[0].queue.pay(batch[0], took)
            for item, result in zip(batch, results, strict=True):
                item.future.set_result(result)
        if results is None and len(batch) > 1:
            for item in batch:
                self._do([item])
            return []
        with self._changed:
            for item in batch:
                item.queue.done(item)
        return []

    def _after_a_step(self, item: _Waiting, seconds: float) -> list[_Waiting]:
        """Goes on, or waits for its turn."""
        with self._changed:
            item.queue.pay(item, seconds)
            if item.future.given_up or item.queue.go_on(item) or not self._aside:
                return [item]
            self._aside -= 1
            item.queue.put_back(item)
            return []

    def _give_up(self, item: _Waiting) -> list[_Waiting]:
        item.task.payload.close()
        item.future.set_exception(WorkerDied("nobody waits for it"))
        with self._changed:
            item.queue.done(item)
        return []

    def _bury(self) -> None:
        with self._changed:
            self._dead = True
            orphans = [*self._queue.drain(), *self._wide_queue.drain()]
            on_death = [] if self._closing else self._on_death
            self._on_death = []
            self._changed.notify_all()
        for item in orphans:
            if item.future.running() or item.future.set_running_or_notify_cancel():
                item.future.set_exception(WorkerDied("the engine's worker thread has ended"))
        for function in on_death:
            function()


def at_once(steps: Steps[R]) -> R:
    """Takes all steps, whoever waits."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: R = end.value
            return result


def _step(batch: Sequence[Steps[R]]) -> list[R]:
    (steps,) = batch
    try:
        next(steps)
    except StopIteration as end:
        return [end.value]
    raise _TurnIsOver
