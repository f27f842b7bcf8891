from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from craft_server.engine.worker import Overloaded, Task, Worker, WorkerDied
from waiting import until

DEADLINE = 10.0


def call(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """Does each task by itself, whatever is done together."""
    return [task() for task in tasks]


def submit(
    worker: Worker, task: Callable[[], Any], *, turns: float = 1, tenant: str = ""
) -> Future[Any]:
    (future,) = worker.submit(call, [Task(task, turns)], tenant=tenant)
    return future


async def run(worker: Worker, task: Callable[[], Any]) -> Any:
    (result,) = await worker.run(call, [Task(task, 1)])
    return result


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("test", capacity=2)
    yield worker
    worker.close()


@contextmanager
def held_back(worker: Worker) -> Iterator[threading.Event]:
    """Holds the worker back until the event is set, or the block ends."""
    gate, entered = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        gate.wait(DEADLINE)

    submit(worker, wait, turns=0)
    assert entered.wait(DEADLINE)
    yield gate
    gate.set()


@pytest.fixture
def gate(worker: Worker) -> Iterator[threading.Event]:
    with held_back(worker) as gate:
        yield gate


def fail() -> None:
    raise RuntimeError("poison")


def end_thread() -> None:
    raise SystemExit("the end")


def test_all_tasks_run_in_one_thread_in_order(worker: Worker) -> None:
    ran: list[int] = []

    async def both(i: int) -> int:
        await run(worker, lambda: ran.append(i))
        ident: int = await run(worker, threading.get_ident)
        return ident

    idents = {asyncio.run(both(i)) for i in range(3)}
    assert ran == [0, 1, 2]
    assert len(idents) == 1
    assert threading.get_ident() not in idents


def test_poisoned_task_fails_alone(worker: Worker, gate: threading.Event) -> None:
    poisoned, sound = submit(worker, fail), submit(worker, lambda: "sound")
    gate.set()
    with pytest.raises(RuntimeError, match="poison"):
        poisoned.result(DEADLINE)
    assert sound.result(DEADLINE) == "sound"
    assert worker.alive


def test_full_queue_refuses_and_recovers(worker: Worker, gate: threading.Event) -> None:
    accepted = [submit(worker, lambda: "done") for _ in range(2)]
    with pytest.raises(Overloaded):
        submit(worker, lambda: "refused")
    gate.set()
    assert [future.result(DEADLINE) for future in accepted] == ["done", "done"]
    assert submit(worker, lambda: "again").result(DEADLINE) == "again"


def test_task_of_cancelled_caller_is_dropped(worker: Worker, gate: threading.Event) -> None:
    ran: list[str] = []

    async def cancel_before_its_turn() -> None:
        asking = asyncio.create_task(run(worker, lambda: ran.append("cancelled")))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(cancel_before_its_turn())
    last = submit(worker, lambda: ran.append("last"))
    gate.set()
    last.result(DEADLINE)
    assert ran == ["last"]


def test_close_finishes_what_waits_and_refuses_more(worker: Worker, gate: threading.Event) -> None:
    waiting = submit(worker, lambda: "finished")
    closing = threading.Thread(target=worker.close)
    closing.start()
    until(lambda: not worker.alive)
    with pytest.raises(WorkerDied):
        submit(worker, lambda: "late")
    gate.set()
    closing.join(DEADLINE)
    assert waiting.result(0) == "finished"
    worker.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_death_of_the_thread_fails_all_and_shows(worker: Worker, gate: threading.Event) -> None:
    deadly, orphan = submit(worker, end_thread), submit(worker, lambda: "never")
    assert worker.alive
    gate.set()
    for future in (deadly, orphan):
        with pytest.raises(WorkerDied):
            future.result(DEADLINE)
    until(lambda: not worker.alive)
    with pytest.raises(WorkerDied):
        submit(worker, lambda: "after")


def test_empty_queue_takes_what_is_larger_than_it(worker: Worker) -> None:
    assert submit(worker, lambda: "large", turns=100).result(DEADLINE) == "large"


def test_all_tasks_of_a_call_are_accepted_or_none(worker: Worker, gate: threading.Event) -> None:
    ran: list[str] = []
    first = submit(worker, lambda: ran.append("first"))
    with pytest.raises(Overloaded):
        worker.submit(call, [Task(lambda: ran.append("refused"), 1)] * 2)
    assert worker.waiting == 1
    gate.set()
    first.result(DEADLINE)
    assert ran == ["first"]
    assert worker.waiting == 0


def test_what_waits_is_dropped_when_a_task_of_the_same_call_fails(worker: Worker) -> None:
    ran: list[str] = []

    async def ask() -> None:
        tasks = [Task(fail, 0.5), Task(lambda: time.sleep(0.2), 0.5)]
        with pytest.raises(RuntimeError, match="poison"):
            await worker.run(call, [*tasks, Task(lambda: ran.append("late"), 0.5)])

    asyncio.run(ask())
    submit(worker, lambda: None).result(DEADLINE)
    assert ran == []


def order(worker: Worker, calls: Sequence[tuple[str, str, Sequence[float]]]) -> str:
    """The letters of calls (letter, tenant, turns of the tasks) in the order of their tasks."""
    ran: list[str] = []
    with held_back(worker) as gate:
        futures = [
            future
            for letter, tenant, turns in calls
            for future in worker.submit(
                call,
                [Task(partial(ran.append, letter), one) for one in turns],
                tenant=tenant,
            )
        ]
        gate.set()
        for future in futures:
            future.result(DEADLINE)
    return "".join(ran)


@pytest.fixture
def roomy() -> Iterator[Worker]:
    worker = Worker("roomy")
    yield worker
    worker.close()


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([("a", "x", [1] * 4), ("b", "x", [1])], "abaaa"),
        ([("a", "x", [1] * 4), ("b", "y", [1] * 2)], "ababaa"),
        # Calls do not buy a tenant more turns.
        ([*[("a", "x", [1])] * 4, ("b", "y", [1] * 2)], "ababaa"),
        # What counts is work, not tasks.
        ([("a", "x", [1] * 3), ("b", "y", [0.25] * 8)], "abbbbabbbba"),
    ],
    ids=["calls of one tenant", "tenants", "many calls", "work"],
)
def test_turns_are_taken_fairly(
    roomy: Worker, calls: list[tuple[str, str, list[float]]], expected: str
) -> None:
    assert order(roomy, calls) == expected


def test_as_many_tasks_run_at_a_time_as_there_are_threads() -> None:
    worker = Worker("test", threads=2)
    together = threading.Barrier(2, timeout=DEADLINE)
    for future in worker.submit(call, [Task(together.wait, 1)] * 4):
        future.result(DEADLINE)
    worker.close()
    assert not worker.alive


def test_wide_tasks_all_run_on_one_thread_beside_others() -> None:
    worker = Worker("test", threads=3)
    together = threading.Barrier(3, timeout=DEADLINE)

    def meet() -> int:
        together.wait()
        return threading.get_ident()

    narrow = worker.submit(call, [Task(meet, 1)] * 4)
    wide = worker.submit(call, [Task(meet, 1, wide=True)] * 2)
    idents = {future.result(DEADLINE) for future in wide}
    assert len(idents) == 1
    assert idents.isdisjoint(future.result(DEADLINE) for future in narrow)
    worker.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_death_of_one_thread_ends_the_others() -> None:
    worker = Worker("test", threads=3)
    with pytest.raises(WorkerDied):
        submit(worker, end_thread).result(DEADLINE)
    until(lambda: not any(thread.is_alive() for thread in worker._threads))
    with pytest.raises(WorkerDied):
        submit(worker, lambda: "after")


def test_who_was_idle_has_saved_nothing_up(roomy: Worker) -> None:
    order(roomy, [("a", "x", [1] * 10)])
    assert order(roomy, [("a", "x", [1] * 3), ("b", "y", [1] * 3)]) == "ababab"


def batches_of(
    worker: Worker, tasks: Sequence[tuple[str, float]], *, merges: bool
) -> list[list[str]]:
    """Which payloads, each of a call of its own, are done together."""
    seen: list[list[str]] = []

    def note(payloads: Sequence[str]) -> list[str]:
        seen.append(list(payloads))
        if "poison" in payloads:
            raise RuntimeError("poison")
        return [payload.upper() for payload in payloads]

    with held_back(worker) as gate:
        futures = [
            (payload, worker.submit(note, [Task(payload, turns, merges=merges)])[0])
            for payload, turns in tasks
        ]
        gate.set()
        for payload, future in futures:
            if payload == "poison":
                with pytest.raises(RuntimeError, match="poison"):
                    future.result(DEADLINE)
            else:
                assert future.result(DEADLINE) == payload.upper()
    return seen


@pytest.mark.parametrize(
    ("merges", "expected"), [(False, [["a"], ["b"], ["c"]]), (True, [["a", "b"], ["c"]])]
)
def test_calls_are_done_together_up_to_a_turn(merges: bool, expected: list[list[str]]) -> None:
    worker = Worker("test")
    assert batches_of(worker, [("a", 0.5), ("b", 0.5), ("c", 0.5)], merges=merges) == expected
    worker.close()


def test_poisoned_task_among_others_fails_alone() -> None:
    worker = Worker("test")
    seen = batches_of(worker, [("a", 0.25), ("poison", 0.25), ("b", 0.25)], merges=True)
    assert seen == [["a", "poison", "b"], ["a"], ["poison"], ["b"]]
    worker.close()


# --- work in steps ------------------------------------------------------------------------------


def steps(
    letter: str, count: int, note: Callable[[str], None], seconds: float = 0.02
) -> Iterator[None]:
    for _ in range(count):
        note(letter)
        time.sleep(seconds)
        yield
    return letter  # type: ignore[return-value] # of a generator


def test_work_in_steps_gives_what_it_returns(worker: Worker) -> None:
    ran: list[str] = []
    works: Any = [steps("a", 3, ran.append), steps("b", 0, ran.append)]
    assert asyncio.run(worker.take_steps(works)) == ["a", "b"]
    assert ran == ["a"] * 3


def test_work_in_steps_that_fails_fails_alone(worker: Worker) -> None:
    def failing() -> Iterator[None]:
        yield
        raise RuntimeError("poison")

    async def ask() -> None:
        work: Any = failing()
        with pytest.raises(RuntimeError, match="poison"):
            await worker.take_steps([work])
        sound: Any = steps("a", 2, lambda _: None)
        assert await worker.take_steps([sound]) == ["a"]

    asyncio.run(ask())


@pytest.mark.parametrize(("aside", "longest"), [(1, 2), (0, 20)])
def test_long_work_lets_others_take_their_turns(aside: int, longest: int) -> None:
    """By seconds: ten short works of another tenant are not done after each other's long one."""
    worker = Worker("test", aside=aside)
    ran: list[str] = []

    async def ask() -> None:
        long: Any = steps("l", 20, ran.append, 0.05)
        asking = asyncio.create_task(worker.take_steps([long], tenant="x"))
        while not ran:
            await asyncio.sleep(0.001)
        short: Any = steps("s", 1, ran.append, 0.005)
        await worker.take_steps([short], tenant="y")
        await asking

    asyncio.run(ask())
    worker.close()
    assert ran.index("s") <= longest
    assert ran.count("l") == 20


def test_a_tenant_of_long_works_has_no_more_of_the_time_than_one_of_short_ones() -> None:
    worker = Worker("test", aside=2)
    ran: list[tuple[str, float]] = []

    def note(letter: str) -> None:
        ran.append((letter, time.monotonic()))

    async def ask() -> None:
        long: Any = [steps("l", 10, note, 0.03) for _ in range(2)]
        short: Any = [steps("s", 1, note, 0.01) for _ in range(20)]
        await asyncio.gather(
            worker.take_steps(long, tenant="x"), worker.take_steps(short, tenant="y")
        )

    asyncio.run(ask())
    worker.close()
    letters = "".join(letter for letter, _ in ran)
    # The short ones take a third of each long one's step: all are done when it has had as much.
    assert letters.rindex("s") < 20 + 12


def test_work_whose_caller_has_gone_ends_at_its_next_step() -> None:
    worker = Worker("test", aside=1)
    ran: list[str] = []
    ended = threading.Event()

    def endless() -> Iterator[None]:
        try:
            while True:
                ran.append("x")
                time.sleep(0.001)
                yield
        finally:
            ended.set()

    async def ask() -> None:
        work: Any = endless()
        asking = asyncio.create_task(worker.take_steps([work]))
        while not ran:
            await asyncio.sleep(0.001)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(ask())
    assert ended.wait(DEADLINE)
    worker.close()


def test_work_that_was_set_aside_ends_when_its_caller_goes() -> None:
    worker = Worker("test", aside=1)
    ended, ran = threading.Event(), list[str]()

    def endless(letter: str) -> Iterator[None]:
        try:
            while True:
                ran.append(letter)
                time.sleep(0.01)
                yield
        finally:
            ended.set()

    async def ask() -> None:
        work: Any = endless("x")
        asking = asyncio.create_task(worker.take_steps([work], tenant="x"))
        while not ran:
            await asyncio.sleep(0.001)
        other: Any = steps("y", 20, ran.append, 0.01)
        others = asyncio.create_task(worker.take_steps([other], tenant="y"))
        while "y" not in ran:
            await asyncio.sleep(0.001)
        asking.cancel()
        await others

    asyncio.run(ask())
    assert ended.wait(DEADLINE)
    assert asyncio.run(worker.take_steps([steps("z", 1, ran.append)])) == ["z"]  # type: ignore[list-item] # a generator
    worker.close()
