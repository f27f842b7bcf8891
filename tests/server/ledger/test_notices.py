"""A notice is written exactly when a share of a budget is spent, and sent by one at a time."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from craft_server.database import Database
from craft_server.ledger import administration, budgets, leases, notices, users
from craft_server.ledger.charges import (
    Contended,
    Order,
    Reservation,
    Settlement,
    Work,
    cost_of_less,
    refund,
    reserve_all,
    settle_all,
)
from craft_server.ledger.keys import Caller, authenticate, create_key
from craft_server.ledger.tables import NOTICES
from craft_shared.units import Units

HOLDER = "a server"
NOW = 1_800_000_000_000
HOUR = 3_600_000
SHARES = (50, 80, 100)


@pytest.fixture
def caller(store: Database) -> Caller:
    """A key that may ask ten queries an hour."""
    with store.writing() as connection:
        leases.renew(connection, HOLDER, NOW + 10**12)
        key = create_key(connection, owner="owner", name="phones", team="team", at=NOW)
        found = authenticate(connection, key, NOW)
        assert found is not None
        bound(connection, found, 10)
    return found


def bound(connection: sa.Connection, caller: Caller, limit: int, **holder: Any) -> None:
    which = holder or {"key_id": caller.key_id}
    budgets.set_budget(connection, **which, unit="queries", window="hour", limit=limit, at=NOW)


def take(
    store: Database, caller: Caller, queries: int, *, at: int = NOW, user: str | None = None
) -> Reservation:
    with store.writing() as connection:
        end_user = user and users.admit(connection, caller.key_id, user, at, most=9)
    work = Work("predictions", "tiny", "r1", Units(queries=queries))
    order = Order(work, caller, caller, user=end_user or None)
    for lock in (False, True):
        try:
            with store.writing() as connection:
                (taken,) = reserve_all(connection, [order], holder=HOLDER, at=at, lock=lock)
        except Contended:
            continue
        assert isinstance(taken, Reservation)
        return taken
    raise AssertionError


def settle(store: Database, taken: Sequence[Reservation], *, at: int = NOW, **less: Any) -> None:
    with store.writing() as connection:
        cost = cost_of_less(connection, taken[0], "tiny", Units(**less)) if less else None
        settle_all(connection, [Settlement(one, cost, notify_at=SHARES) for one in taken], at)


def spend(store: Database, caller: Caller, queries: int, *, at: int = NOW, **how: Any) -> None:
    settle(store, [take(store, caller, queries, at=at, **how)], at=at)


def written(store: Database) -> list[tuple[int, int, int]]:
    """Of each notice the percent, what was spent, and of how much."""
    with store.reading() as connection:
        rows = connection.execute(sa.select(NOTICES).order_by(NOTICES.c.id))
        return [(row.percent, row.spent, row.limit) for row in rows]


def test_each_share_is_noticed_once_when_it_is_spent(store: Database, caller: Caller) -> None:
    spend(store, caller, 4)
    assert written(store) == []
    spend(store, caller, 1)
    assert written(store) == [(50, 5, 10)]
    spend(store, caller, 1)
    assert len(written(store)) == 1
    spend(store, caller, 4)
    assert sorted(written(store)) == [(50, 5, 10), (80, 10, 10), (100, 10, 10)]


def test_what_is_only_reserved_or_given_back_is_not_spent(store: Database, caller: Caller) -> None:
    taken = take(store, caller, 10)
    with store.writing() as connection:
        refund(connection, taken.charge_id, NOW)
    settle(store, [take(store, caller, 10)], queries=4)
    assert written(store) == []
    spend(store, caller, 1)
    assert written(store) == [(50, 5, 10)]


def test_settlements_of_one_transaction_reach_a_share_together(
    store: Database, caller: Caller
) -> None:
    settle(store, [take(store, caller, 2) for _ in range(3)])
    assert written(store) == [(50, 6, 10)]


def test_a_new_window_and_a_new_limit_are_noticed_anew(store: Database, caller: Caller) -> None:
    spend(store, caller, 7)
    with store.writing() as connection:
        bound(connection, caller, 20)
    spend(store, caller, 3)
    spend(store, caller, 12, at=NOW + HOUR)
    assert written(store) == [(50, 7, 10), (50, 10, 20), (50, 12, 20)]


def test_a_charge_of_a_window_that_has_passed_reaches_no_share(
    store: Database, caller: Caller
) -> None:
    late = take(store, caller, 9)
    spend(store, caller, 1, at=NOW + HOUR)
    settle(store, [late], at=NOW + HOUR)
    assert written(store) == []


def test_teams_are_noticed_and_end_users_are_not(store: Database, caller: Caller) -> None:
    with store.writing() as connection:
        bound(connection, caller, 100)
        bound(connection, caller, 8, team_id=caller.team_id)
        users.set_user_limit(connection, caller.key_id, unit="queries", window="hour", limit=5)
    spend(store, caller, 5, user="ann")
    assert written(store) == [(50, 5, 8)]
    with store.writing() as connection:
        notice = notices.claim(connection, NOW, until=NOW + 1)
    assert notice is not None
    assert (notice.data["team"], notice.data["key"]) == ("team", None)


def test_calls_at_once_write_each_notice_once(store: Database, caller: Caller) -> None:
    taken = [take(store, caller, 1) for _ in range(10)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(functools.partial(settle, store), [[one] for one in taken]))
    assert sorted(written(store)) == [(50, 5, 10), (80, 8, 10), (100, 10, 10)]


def test_nothing_is_asked_where_nobody_is_to_be_told(store: Database, caller: Caller) -> None:
    assert notices.crossings((), [{"budget": 1, "start": 0, "spend": 5}], NOW) == []
    with store.writing() as connection:
        settle_all(connection, [Settlement(take_one(connection, caller))], NOW)
    assert written(store) == []


def take_one(connection: sa.Connection, caller: Caller) -> Reservation:
    order = Order(Work("predictions", "tiny", "r1", Units(queries=10)), caller, caller)
    (taken,) = reserve_all(connection, [order], holder=HOLDER, at=NOW, lock=True)
    assert isinstance(taken, Reservation)
    return taken


def test_a_notice_is_sent_by_one_at_a_time_and_by_another_after_a_death(
    store: Database, caller: Caller
) -> None:
    spend(store, caller, 5)
    with store.writing() as connection:
        first = notices.claim(connection, NOW, until=NOW + 1000)
        assert first is not None
        assert notices.claim(connection, NOW + 999, until=NOW + 9999) is None
    with store.writing() as connection:
        again = notices.claim(connection, NOW + 1000, until=NOW + 2000)
        assert again is not None
        assert (again.id, again.at, again.attempts) == (first.id, first.at, 2)
        assert again.data == first.data
        notices.put_off(connection, again, {"told"}, NOW + 5000)
        assert not notices.any_due(connection, NOW + 4999)
    with store.writing() as connection:
        third = notices.claim(connection, NOW + 5000, until=NOW + 6000)
        assert third is not None
        assert third.told == {"told"}
        notices.close(connection, third, NOW + 5000)
        assert not notices.any_due(connection, NOW + 10**9)
        # By a sender that was taken for dead.
        notices.put_off(connection, first, (), NOW)
        assert not notices.any_due(connection, NOW + 10**9)


def test_a_notice_says_whose_budget_it_is(store: Database, caller: Caller) -> None:
    spend(store, caller, 5)
    with store.writing() as connection:
        holder = administration.key_holder(connection, caller.prefix)
        administration.remove_budget(connection, holder, "queries", "hour", NOW)
        notice = notices.claim(connection, NOW, until=NOW + 1)
    assert notice is not None
    assert notice.data == {
        "percent": 50,
        "unit": "queries",
        "window": "hour",
        "limit": 10,
        "spent": 5,
        "resets_at": "2027-01-15T09:00:00.000Z",
        "key": caller.prefix,
        "owner": "owner",
        "name": "phones",
        "team": None,
    }
