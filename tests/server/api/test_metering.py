"""What a call that fails gives back, whatever else the database is busy with."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from craft_server.api.idempotency import Call
from craft_server.api.metering import Booking, booking
from craft_server.api.services import InFlight
from craft_server.clock import now_ms
from craft_server.database import Database
from craft_server.ledger import calls
from craft_server.ledger.budgets import list_budgets
from craft_server.ledger.charges import Order, Reservation, Work, reserve, reserve_all
from craft_server.ledger.keys import Caller
from craft_server.ledger.tables import CALLS
from craft_server.telemetry import REGISTRY
from craft_shared.units import Units

WORK = Work("predictions", "tiny", "r", Units(queries=3, requests=1))
ATTEMPT = calls.Attempt("call-1", "f" * 64, True)
PATIENCE_SECONDS = 20


def take(connection: sa.Connection, caller: Caller) -> Reservation:
    order = Order(WORK, caller, caller, ATTEMPT)
    (reserved,) = reserve_all(connection, [order], holder="me", at=now_ms(), lock=True)
    assert isinstance(reserved, Reservation)
    return reserved


def booked(services: Any, reserved: Reservation) -> Booking:
    return Booking(reserved.cost, False, services, WORK, reserved, None)


def test_a_call_is_given_back_while_another_attempt_at_it_begins(
    store: Database, caller: Caller
) -> None:
    if store.dialect == "sqlite":
        pytest.skip("one transaction at a time")
    with store.writing() as connection:
        reserved = take(connection, caller)
    services: Any = SimpleNamespace(database=store, lease=SimpleNamespace(give_back_later=_fail))
    booking = booked(services, reserved)
    giving_back: list[Future[None]] = []

    def attempt_again(threads: ThreadPoolExecutor) -> None:
        with store.writing() as connection:
            reserve(connection, caller, WORK, holder="me", at=now_ms())
            giving_back.append(threads.submit(asyncio.run, booking.refund()))
            _wait_until_one_waits(store)
            # The first attempt's record is still there, and not being deleted.
            calls.begin(
                connection, caller.key_id, ATTEMPT, holder="me", charge_id=None, at=now_ms()
            )

    with ThreadPoolExecutor(1) as threads:
        with pytest.raises(calls.StillRunning):
            attempt_again(threads)
        giving_back[0].result(PATIENCE_SECONDS)
    with store.reading() as connection:
        (budget,) = list_budgets(connection, caller.key_id, None, now_ms())
        assert (budget.spent, budget.reserved) == (0, 0)
        assert connection.execute(sa.select(CALLS)).all() == []


def test_what_cannot_be_given_back_is_left_to_the_lease(store: Database, caller: Caller) -> None:
    class Broken:
        async def write(self, *_: Any) -> None:
            raise sa.exc.OperationalError("", None, Exception("the database is away"))

    with store.writing() as connection:
        reserved = take(connection, caller)
    later: list[int] = []
    services: Any = SimpleNamespace(
        database=Broken(), lease=SimpleNamespace(give_back_later=later.append)
    )
    asyncio.run(booked(services, reserved).refund())
    assert later == [reserved.charge_id]


def test_what_another_process_has_given_back_is_not_counted_again(
    store: Database, caller: Caller
) -> None:
    def refunds() -> float:
        return REGISTRY.get_sample_value("craft_charges_refunded_total") or 0

    with store.writing() as connection:
        reserved = take(connection, caller)
    before = refunds()
    services: Any = SimpleNamespace(database=store, lease=SimpleNamespace(give_back_later=_fail))
    booking = booked(services, reserved)
    for _ in range(2):
        asyncio.run(booking.refund())
    assert refunds() == before + 1


@pytest.mark.parametrize("how_often", [1, 3])
@pytest.mark.parametrize("outcome", ["booked", "refused"])
def test_a_call_that_is_cancelled_while_it_is_booked_is_cancelled(
    store: Database, caller: Caller, outcome: str, how_often: int
) -> None:
    queries = 3 if outcome == "booked" else 11
    work = Work("predictions", "tiny", "r", Units(queries=queries))

    async def cancel() -> None:
        begun, may_end = asyncio.Event(), asyncio.Event()

        async def slowly(*args: Any, **kwargs: Any) -> Any:
            begun.set()
            await may_end.wait()
            return await store.write_together(*args, **kwargs)

        async def write(function: Any, *arguments: Any) -> Any:
            return await store.write(function, *arguments)

        services: Any = SimpleNamespace(
            engine=SimpleNamespace(alive=True),
            in_flight=InFlight(),
            lease=SimpleNamespace(holder="me", give_back_later=_fail),
            database=SimpleNamespace(write_together=slowly, write=write),
        )

        request: Any = None

        async def call() -> None:
            async with booking(Call(request, services, caller, ATTEMPT), work):
                raise AssertionError("it was cancelled before")

        calling = asyncio.create_task(call())
        await begun.wait()
        for _ in range(how_often):
            calling.cancel()
            await asyncio.sleep(0)
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await calling

    asyncio.run(cancel())
    with store.reading() as connection:
        (budget,) = list_budgets(connection, caller.key_id, None, now_ms())
        assert (budget.spent, budget.reserved) == (0, 0)
        assert connection.execute(sa.select(CALLS)).all() == []


def _fail(_charge_id: int) -> None:
    raise AssertionError("it was not given back")


def _wait_until_one_waits(store: Database) -> None:
    waiting = sa.text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        with store.reading() as connection:
            if connection.execute(waiting).scalar_one():
                return
        assert time.monotonic() < deadline
        time.sleep(0.01)
