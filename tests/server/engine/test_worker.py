from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from craft_server.engine.worker import Overloaded, Worker, WorkerDied

DEADLINE = 10.0


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("test", capacity=2)
    yield worker
    worker.close()


@pytest.fixture
def gate(worker: Worker) -> Iterator[threading.Event]:
    """Holds the worker back until it is set."""
    gate, entered = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        gate.wait(DEADLINE)

    worker.submit(wait)
    assert entered.wait(DEADLINE)
    yield gate
    gate.set()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def fail() -> None:
    raise RuntimeError("poison")


def end_thread() -> None:
    raise SystemExit("the end")


def test_all_tasks_run_in_one_thread_in_order(worker: Worker) -> None:
    ran: list[int] = []

    async def run(i: int) -> int:
        await worker.run(lambda: ran.append(i))
        return await worker.run(threading.get_ident)

    idents = {asyncio.run(run(i)) for i in range(3)}
    assert ran == [0, 1, 2]
    assert len(idents) == 1
    assert threading.get_ident() not in idents


def test_poisoned_task_fails_alone(worker: Worker, gate: threading.Event) -> None:
    poisoned, sound = worker.submit(fail), worker.submit(lambda: "sound")
    gate.set()
    with pytest.raises(RuntimeError, match="poison"):
        poisoned.result(DEADLINE)
    assert sound.result(DEADLINE) == "sound"
    assert worker.alive


def test_full_queue_refuses_and_recovers(worker: Worker, gate: threading.Event) -> None:
    accepted = [worker.submit(lambda: "done") for _ in range(2)]
    with pytest.raises(Overloaded):
        worker.submit(lambda: "refused")
    gate.set()
    assert [future.result(DEADLINE) for future in accepted] == ["done", "done"]
    assert worker.submit(lambda: "again").result(DEADLINE) == "again"


def test_task_of_cancelled_caller_is_dropped(worker: Worker, gate: threading.Event) -> None:
    ran: list[str] = []

    async def cancel_before_its_turn() -> None:
        call = asyncio.create_task(worker.run(lambda: ran.append("cancelled")))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(cancel_before_its_turn())
    last = worker.submit(lambda: ran.append("last"))
    gate.set()
    last.result(DEADLINE)
    assert ran == ["last"]


def test_close_finishes_what_waits_and_refuses_more(worker: Worker, gate: threading.Event) -> None:
    waiting = worker.submit(lambda: "finished")
    closing = threading.Thread(target=worker.close)
    closing.start()
    until(lambda: not worker.alive)
    with pytest.raises(WorkerDied):
        worker.submit(lambda: "late")
    gate.set()
    closing.join(DEADLINE)
    assert waiting.result(0) == "finished"
    worker.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_death_of_the_thread_fails_all_and_shows(worker: Worker, gate: threading.Event) -> None:
    deadly, orphan = worker.submit(end_thread), worker.submit(lambda: "never")
    assert worker.alive
    gate.set()
    for future in (deadly, orphan):
        with pytest.raises(WorkerDied):
            future.result(DEADLINE)
    until(lambda: not worker.alive)
    with pytest.raises(WorkerDied):
        worker.submit(lambda: "after")
