"""A server's lease: kept while it lives, given back with what it holds when it ends or dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from craft_server.clock import now_ms, run_at
from craft_server.database import Database
from craft_server.lease import Lease
from craft_server.ledger import calls, leases
from craft_server.ledger.budgets import list_budgets
from craft_server.ledger.charges import ChargeClosed, Reservation, Work, reserve, settle
from craft_server.ledger.keys import Caller
from craft_server.ledger.tables import HOLDERS
from craft_server.telemetry import REGISTRY
from craft_shared.units import Units
from waiting import until

WORK = Work("predictions", "tiny", "r", Units(queries=3, requests=1))
ATTEMPT = calls.Attempt("call-1", "f" * 64, True)


@contextmanager
def lease(store: Database, seconds: float) -> Iterator[Lease]:
    made = Lease(store, seconds=seconds, answers_bytes=2**20, answers_hours=24)
    try:
        yield made
    finally:
        made.close()


def take(store: Database, caller: Caller, holder: str) -> Reservation:
    """Reserves and begins a call."""
    with store.writing() as connection:
        reserved = reserve(connection, caller, WORK, holder=holder, at=now_ms())
        calls.begin(
            connection,
            caller.key_id,
            ATTEMPT,
            holder=holder,
            charge_id=reserved.charge_id,
            at=now_ms(),
        )
    return reserved


def reserved(store: Database, caller: Caller) -> int:
    with store.reading() as connection:
        (budget,) = list_budgets(connection, caller.key_id, None, now_ms())
    assert budget.spent == 0
    return budget.reserved


def begun(store: Database, caller: Caller) -> bool:
    with store.reading() as connection:
        try:
            calls.look_up(connection, caller.key_id, ATTEMPT.key, ATTEMPT.fingerprint)
        except calls.StillRunning:
            return True
    return False


AWAY = sa.exc.OperationalError("", None, Exception("away"))


@contextmanager
def failing(
    monkeypatch: pytest.MonkeyPatch, what: str, error: Exception = AWAY
) -> Iterator[list[bool]]:
    """As if the database were away whenever a lease does this; each attempt is noted."""

    def fail(*_arguments: object) -> None:
        failed.append(True)
        raise error

    failed: list[bool] = []
    with monkeypatch.context() as away:
        away.setattr(f"craft_server.lease.leases.{what}", fail)
        yield failed


def expired() -> tuple[float, float]:
    """Leases that ran out and reservations that were given back, as metrics count them."""
    leases_, reservations = (
        REGISTRY.get_sample_value(f"craft_{name}_total")
        for name in ("leases_expired", "reservations_released")
    )
    return leases_ or 0, reservations or 0


def dead_holder(store: Database, seconds: float) -> str:
    """A holder that nobody renews, as a killed server leaves it."""
    with store.writing() as connection:
        leases.renew(connection, "dead", now_ms() + round(1000 * seconds))
    return "dead"


def test_a_living_servers_reservation_outlives_many_leases(store: Database, caller: Caller) -> None:
    with lease(store, 0.9) as mine, lease(store, 0.9):
        charge = take(store, caller, mine.holder)
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            assert reserved(store, caller) == 3
            assert begun(store, caller)
            time.sleep(0.05)
        with store.writing() as connection:
            settle(connection, charge, now_ms())


def test_a_clock_that_runs_fast_ends_neither_leases_nor_stored_answers_early(
    store: Database, caller: Caller
) -> None:
    run_at(86_400)
    try:
        with lease(store, 0.9) as mine, lease(store, 0.9):
            charge = take(store, caller, mine.holder)
            end = time.monotonic() + 1.5  # in which other servers look for dead ones
            while time.monotonic() < end:
                assert begun(store, caller)
                time.sleep(0.05)
            with store.writing() as connection:
                settle(connection, charge, now_ms())
                record = connection.execute(sa.select(calls.CALLS.c.id)).scalar_one()
                calls.finish(connection, record, calls.StoredAnswer(200, "text/plain", b"yes"))
            time.sleep(1.2)
            with store.reading() as connection:
                made = calls.look_up(connection, caller.key_id, ATTEMPT.key, ATTEMPT.fingerprint)
            assert made is not None
            assert made.answer is not None
    finally:
        run_at(1)


def test_another_server_gives_back_what_a_dead_one_held(store: Database, caller: Caller) -> None:
    charge = take(store, caller, dead_holder(store, 0.5))
    with lease(store, 0.3):
        assert reserved(store, caller) == 3, "given back before its lease ran out"
        until(lambda: reserved(store, caller) == 0)
        assert not begun(store, caller)
    with store.writing() as connection, pytest.raises(ChargeClosed):
        settle(connection, charge, now_ms())


def test_a_server_gives_back_at_its_start_what_died_before_it(
    store: Database, caller: Caller
) -> None:
    take(store, caller, dead_holder(store, -1))
    before = expired()
    with lease(store, 3600):
        assert reserved(store, caller) == 0
        assert not begun(store, caller)
    assert [after - so_far for after, so_far in zip(expired(), before, strict=True)] == [1, 1]


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("age_s", "answers_bytes", "kept"),
    [(0, 3, "whole"), (0, 2, "record"), (86_390, 3, "whole"), (86_410, 3, "nothing")],
)
def test_a_server_keeps_stored_answers_within_their_bounds(
    store: Database, caller: Caller, age_s: int, answers_bytes: int, kept: str
) -> None:
    with store.writing() as connection:
        call_id = calls.begin(
            connection,
            caller.key_id,
            ATTEMPT,
            holder="gone",
            charge_id=None,
            at=now_ms() - 1000 * age_s,
        )
        calls.finish(connection, call_id, calls.StoredAnswer(200, "text/plain", b"yes"))
    Lease(store, seconds=3600, answers_bytes=answers_bytes, answers_hours=24).close()
    with store.reading() as connection:
        made = calls.look_up(connection, caller.key_id, ATTEMPT.key, ATTEMPT.fingerprint)
    assert kept == ("nothing" if made is None else "record" if made.answer is None else "whole")


def test_a_server_that_ends_gives_everything_back_at_once(store: Database, caller: Caller) -> None:
    with lease(store, 3600) as mine:
        take(store, caller, mine.holder)
    assert reserved(store, caller) == 0
    assert not begun(store, caller)
    with store.reading() as connection:
        assert connection.execute(sa.select(HOLDERS)).all() == []


def test_a_holder_that_ends_takes_nothing_from_the_living(store: Database, caller: Caller) -> None:
    with lease(store, 3600) as living:
        take(store, caller, living.holder)
        with lease(store, 3600):
            pass
        assert reserved(store, caller) == 3
        assert begun(store, caller)


def test_what_could_not_be_given_back_is_so_once_the_database_is_there_again(
    store: Database, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lease(store, 0.3) as mine:
        taken, before = take(store, caller, mine.holder), expired()
        with failing(monkeypatch, "give_back") as failed:
            mine.give_back_later(taken.charge_id)
            until(lambda: len(failed) > 1)
        until(lambda: not begun(store, caller))
        assert reserved(store, caller) == 0
        until(lambda: expired() == (before[0], before[1] + 1))


@pytest.mark.parametrize("error", [AWAY, RuntimeError("a fault of ours")], ids=["away", "ours"])
def test_a_lease_is_renewed_again_after_anything_has_failed(
    store: Database, caller: Caller, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with lease(store, 0.3) as mine:
        assert mine.ailment is None
        with failing(monkeypatch, "renew", error) as failed:
            until(lambda: len(failed) > 1)
            until(lambda: mine.ailment == "the ledger cannot be written")
        until(lambda: mine.ailment is None)
        take(store, caller, mine.holder)
        with store.reading() as connection:
            first = connection.execute(sa.select(HOLDERS.c.lease_until)).scalar_one()

        def renewed() -> bool:
            with store.reading() as connection:
                now = connection.execute(sa.select(HOLDERS.c.lease_until)).scalar_one()
            return bool(now > first)

        until(renewed)
        assert reserved(store, caller) == 3


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("work", ["release_expired", "give_back"])
def test_work_beside_the_renewal_that_fails_keeps_no_lease_from_being_renewed(
    store: Database, caller: Caller, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    with lease(store, 0.3) as mine:
        with failing(monkeypatch, work, KeyError("a fault of ours")) as failed:
            mine.give_back_later(1)
            until(lambda: len(failed) > 3)
            assert mine.ailment is None
        until(lambda: not mine.owes(1))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_a_lease_that_nobody_renews_says_so(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lease(store, 0.3) as mine:
        stuck, release = threading.Event(), threading.Event()

        def wait(*_arguments: object) -> None:
            stuck.set()
            release.wait(30)

        monkeypatch.setattr("craft_server.lease.leases.renew", wait)
        assert stuck.wait(30)
        until(lambda: mine.ailment == "the server has not renewed its lease in time")
        # What no thread survives.
        monkeypatch.setattr("craft_server.lease.leases.renew", _end_the_thread)
        release.set()
        until(lambda: mine.ailment == "the server does not renew its lease any more")


def _end_the_thread(*_arguments: object) -> None:
    raise SystemExit
