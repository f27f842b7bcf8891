"""What is asked for at the same time shares a transaction, and nobody pays for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from craft_server.together import Together


class LostError(Exception):
    """It may have been done."""


class Slow:
    """Doubles numbers; the first transaction waits until it may end.

    Attributes:
        groups: that shared a transaction, in order.
    """

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.begun = threading.Event()
        self.may_end = threading.Event()

    def __call__(self, numbers: Sequence[int]) -> list[int | Exception]:
        self.groups.append(list(numbers))
        if len(self.groups) == 1:
            self.begun.set()
            assert self.may_end.wait(20)
        if -1 in numbers:
            raise ValueError("undone")
        if -2 in numbers:
            raise LostError
        return [KeyError(number) if number == 0 else 2 * number for number in numbers]


def ask(numbers: Sequence[int], slow: Slow, *, cancelled: int | None = None) -> list[object]:
    """Asks for the first, and for the others while its transaction runs."""

    async def go() -> list[object]:
        with ThreadPoolExecutor(4) as threads:
            together = Together[int, int](threads, slow, final=LostError)
            answers = [together.ask(numbers[0])]
            await asyncio.to_thread(slow.begun.wait, 20)
            answers += [together.ask(number) for number in numbers[1:]]
            if cancelled is not None:
                answers[cancelled].cancel()
            slow.may_end.set()
            return list(await asyncio.gather(*answers, return_exceptions=True))

    return asyncio.run(go())


def test_who_asks_while_a_transaction_runs_shares_the_next_one() -> None:
    slow = Slow()
    assert ask([1, 2, 3, 4], slow) == [2, 4, 6, 8]
    assert slow.groups == [[1], [2, 3, 4]]


def test_an_exception_is_of_one_alone() -> None:
    slow = Slow()
    results = ask([1, 2, 0, 4], slow)
    assert isinstance(results.pop(2), KeyError)
    assert results == [2, 4, 8]
    assert slow.groups == [[1], [2, 0, 4]]


def test_after_a_transaction_that_was_undone_each_has_its_own() -> None:
    slow = Slow()
    results = ask([1, 2, -1, 4], slow)
    assert isinstance(results.pop(2), ValueError)
    assert results == [2, 4, 8]
    assert slow.groups == [[1], [2, -1, 4], [2], [-1], [4]]


def test_what_may_have_been_done_is_not_done_again() -> None:
    slow = Slow()
    first, *others = ask([1, 2, -2, 4], slow)
    assert first == 2
    assert all(isinstance(other, LostError) for other in others)
    assert slow.groups == [[1], [2, -2, 4]]


def test_what_is_cancelled_before_its_transaction_is_not_done() -> None:
    slow = Slow()
    results = ask([1, 2, 3, 4], slow, cancelled=2)
    assert isinstance(results.pop(2), asyncio.CancelledError)
    assert results == [2, 4, 8]
    assert slow.groups == [[1], [2, 4]]


def test_nobody_waits_for_a_transaction_that_is_stuck() -> None:
    slow = Slow()

    async def go() -> None:
        with ThreadPoolExecutor(4) as threads:
            together = Together[int, int](threads, slow, final=LostError)
            stuck = together.ask(1)
            await asyncio.to_thread(slow.begun.wait, 20)
            # Asked for at once, and never again.
            assert await asyncio.wait_for(together.ask(2), 10) == 4
            assert not stuck.done()
            slow.may_end.set()
            assert await stuck == 2

    asyncio.run(go())


def test_who_asks_alone_is_not_kept_waiting_for_others() -> None:
    slow = Slow()
    slow.may_end.set()

    async def go() -> None:
        with ThreadPoolExecutor(1) as threads:
            together = Together[int, int](threads, slow, final=LostError)
            for number in range(1, 4):
                assert await together.ask(number) == 2 * number

    asyncio.run(go())
    assert slow.groups == [[1], [2], [3]]
