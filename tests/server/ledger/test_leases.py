"""What dead server processes held is given back, once; what living ones hold stays."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from craft_server.database import Database
from craft_server.lease import Lease
from craft_server.ledger import calls, leases
from craft_server.ledger.account import usage
from craft_server.ledger.budgets import list_budgets, set_budget
from craft_server.ledger.calls import Attempt, StillRunning
from craft_server.ledger.charges import (
    ChargeClosed,
    Reservation,
    Work,
    reserve,
    settle,
)
from craft_server.ledger.keys import Caller, authenticate, create_key
from craft_shared.units import Units

NOW = 1_800_000_000_000
SECOND = 1000


@pytest.fixture
def caller(store: Database) -> Caller:
    with store.writing() as connection:
        key = create_key(connection, owner="owner", at=NOW)
        found = authenticate(connection, key, NOW)
        assert found is not None
        set_budget(
            connection, key_id=found.key_id, unit="queries", window="lifetime", limit=100, at=NOW
        )
    return found


def renew(store: Database, holder: str, until: int) -> None:
    with store.writing() as connection:
        leases.renew(connection, holder, until)


def hold(store: Database, caller: Caller, holder: str, queries: int, at: int = NOW) -> Reservation:
    """Reserves under the idempotency key `holder/queries`."""
    with store.writing() as connection:
        work = Work("predictions", "tiny", "r1", Units(queries=queries))
        reserved = reserve(connection, caller, work, holder=holder, at=at)
        attempt = Attempt(f"{holder}/{queries}", "same", repeatable=True)
        calls.begin(
            connection,
            caller.key_id,
            attempt,
            holder=holder,
            charge_id=reserved.charge_id,
            at=at,
        )
    return reserved


def running(store: Database, caller: Caller, key: str) -> bool:
    with store.reading() as connection:
        try:
            return calls.look_up(connection, caller.key_id, key, "same") is not None
        except StillRunning:
            return True


def reserved(store: Database, caller: Caller) -> int:
    with store.reading() as connection:
        (budget,) = list_budgets(connection, caller.key_id, None, NOW)
    return budget.reserved


def release(store: Database, at: int) -> int:
    with store.writing() as connection:
        return leases.release_expired(connection, at).reservations


def test_what_a_dead_process_held_is_given_back_and_may_be_called_again(
    store: Database, caller: Caller
) -> None:
    renew(store, "dead", NOW + SECOND)
    renew(store, "living", NOW + 9 * SECOND)
    charge = hold(store, caller, "dead", 5)
    hold(store, caller, "dead", 6)
    hold(store, caller, "living", 7)
    assert release(store, NOW + SECOND - 1) == 0
    assert reserved(store, caller) == 18
    assert release(store, NOW + SECOND) == 2
    assert reserved(store, caller) == 7
    assert not running(store, caller, "dead/5")
    assert running(store, caller, "living/7")
    assert release(store, NOW + SECOND) == 0
    with store.writing() as connection, pytest.raises(ChargeClosed):
        settle(connection, charge, NOW + SECOND)
    hold(store, caller, "living", 5)
    with store.reading() as connection:
        assert usage(connection, caller.key_id, after=0, limit=9).total == Units()


def test_a_lease_that_is_renewed_keeps_what_it_holds(store: Database, caller: Caller) -> None:
    renew(store, "living", NOW + SECOND)
    charge = hold(store, caller, "living", 7)
    for second in range(1, 6):
        renew(store, "living", NOW + (second + 1) * SECOND)
        assert release(store, NOW + second * SECOND) == 0
    with store.writing() as connection:
        settle(connection, charge, NOW + 6 * SECOND)
    assert release(store, NOW + 60 * SECOND) == 0
    with store.reading() as connection:
        assert usage(connection, caller.key_id, after=0, limit=9).total == Units(queries=7)


def test_a_lease_that_is_being_renewed_is_not_waited_for(store: Database, caller: Caller) -> None:
    if store.dialect == "sqlite":
        pytest.skip("it has one writer at a time")
    renew(store, "late", NOW + SECOND)
    hold(store, caller, "late", 7)
    with ThreadPoolExecutor(1) as thread, store.writing() as connection:
        leases.renew(connection, "late", NOW + 9 * SECOND)
        assert thread.submit(release, store, NOW + SECOND).result(timeout=20) == 0
    assert reserved(store, caller) == 7


def test_an_answered_call_outlives_its_process(store: Database, caller: Caller) -> None:
    renew(store, "dead", NOW + SECOND)
    charge = hold(store, caller, "dead", 5)
    answer = calls.StoredAnswer(200, "text/plain", b"paid")
    with store.writing() as connection:
        settle(connection, charge, NOW)
        attempt = Attempt("another", "same", repeatable=True)
        call_id = calls.begin(
            connection, caller.key_id, attempt, holder="dead", charge_id=charge.charge_id, at=NOW
        )
        calls.finish(connection, call_id, answer)
    release(store, NOW + SECOND)
    with store.reading() as connection:
        made = calls.look_up(connection, caller.key_id, "another", "same")
        assert usage(connection, caller.key_id, after=0, limit=9).total == Units(queries=5)
    assert made is not None
    assert made.answer == answer


def test_a_process_that_ends_gives_back_at_once(store: Database, caller: Caller) -> None:
    renew(store, "ending", NOW + 9 * SECOND)
    hold(store, caller, "ending", 5)
    renew(store, "living", NOW + 9 * SECOND)
    hold(store, caller, "living", 7)
    with store.writing() as connection:
        leases.end(connection, "ending", NOW)
    assert reserved(store, caller) == 7
    # Whoever looks next finds nothing of it.
    with store.writing() as connection:
        assert leases.release_expired(connection, NOW) == leases.Released(0, 0)


def test_many_that_see_a_dead_process_give_back_once(store: Database, caller: Caller) -> None:
    renew(store, "dead", NOW + SECOND)
    for queries in range(1, 9):
        hold(store, caller, "dead", queries)
    with ThreadPoolExecutor(6) as threads:
        released = list(threads.map(lambda _: release(store, NOW + SECOND), range(6)))
    assert sum(released) == 8
    assert reserved(store, caller) == 0


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_a_living_lease_renews_itself_and_ends_those_of_others(
    store: Database, caller: Caller
) -> None:
    now = time.time_ns() // 1_000_000
    renew(store, "dead", now + 100)
    hold(store, caller, "dead", 5)
    bounds = {"answers_bytes": 0, "answers_hours": 24}
    lease = Lease(store, seconds=0.5, **bounds)
    hold(store, caller, lease.holder, 7, now)
    wait_until(lambda: reserved(store, caller) == 7)
    # Another process looks, a lease's length later.
    wait_until(lambda: time.time_ns() // 1_000_000 > now + 1500)
    other = Lease(store, seconds=0.5, **bounds)
    assert reserved(store, caller) == 7
    lease.close()
    assert reserved(store, caller) == 0
    other.close()
