"""What each end user of a key may use: exact like any budget, and apart from other keys' users."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from craft_server.database import Database
from craft_server.ledger import administration, exports, leases, users
from craft_server.ledger.account import usage
from craft_server.ledger.budgets import NoSuchBudget
from craft_server.ledger.charges import (
    BudgetExhausted,
    Contended,
    Order,
    Reservation,
    Work,
    refund,
    reserve_all,
    settle,
)
from craft_server.ledger.keys import Caller, authenticate, create_key, list_teams
from craft_server.ledger.selection import Selection
from craft_server.ledger.sums import charged, summed
from craft_server.ledger.tables import BUDGETS, TEAMS, TOTALS
from craft_server.ledger.users import EndUser, TeamHasNoUsers, TooManyUsers
from craft_shared.units import Units

HOLDER = "a server"
NOW = 1_800_000_000_000
HOUR = 3_600_000

MakeCaller = Callable[..., Caller]


@pytest.fixture
def make_caller(store: Database) -> MakeCaller:
    """Makes keys whose end users may each ask so many queries."""

    def make(limit: int | None = None, window: str = "lifetime") -> Caller:
        with store.writing() as connection:
            leases.renew(connection, HOLDER, NOW + 10**12)
            key = create_key(connection, owner="owner", at=NOW)
            caller = authenticate(connection, key, NOW)
            assert caller is not None
        if limit is not None:
            bound(store, caller, limit, window)
        return caller

    return make


def bound(store: Database, caller: Caller, limit: int, window: Any = "lifetime") -> None:
    with store.writing() as connection:
        users.set_user_limit(connection, caller.key_id, unit="queries", window=window, limit=limit)


def known(store: Database, caller: Caller, name: str, *, at: int = NOW, most: int = 9) -> EndUser:
    with store.writing() as connection:
        found = users.look_up(connection, caller.key_id, name, at)
        return found or users.admit(connection, caller.key_id, name, at, most=most)


def take(store: Database, caller: Caller, name: str, queries: int, *, at: int = NOW) -> Reservation:
    order = Order(
        Work("predictions", "tiny", "r1", Units(queries=queries)),
        caller,
        caller,
        user=known(store, caller, name, at=at),
    )
    lock = False
    while True:
        try:
            with store.writing() as connection:
                (outcome,) = reserve_all(connection, [order], holder=HOLDER, at=at, lock=lock)
        except Contended:
            lock = True
            continue
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def spend(store: Database, caller: Caller, name: str, queries: int, *, at: int = NOW) -> None:
    reserved = take(store, caller, name, queries, at=at)
    with store.writing() as connection:
        settle(connection, reserved, at)


def state(store: Database, caller: Caller, name: str, at: int = NOW) -> tuple[int, int, int]:
    with store.reading() as connection:
        (budget,) = users.list_user_budgets(connection, caller.key_id, name, at)
    assert budget.of == "user"
    return budget.limit, budget.spent, budget.remaining


def test_each_user_has_a_share_of_its_own(store: Database, make_caller: MakeCaller) -> None:
    caller = make_caller(5)
    spend(store, caller, "ann", 4)
    with pytest.raises(BudgetExhausted) as refused:
        take(store, caller, "ann", 2)
    (short,) = refused.value.shortfalls
    assert (short.budget.of, short.budget.remaining, short.needed) == ("user", 1, 2)
    spend(store, caller, "bob", 5)
    assert state(store, caller, "ann") == (5, 4, 1)
    assert state(store, caller, "bob") == (5, 5, 0)
    assert state(store, caller, "new") == (5, 0, 5)


def test_users_of_one_name_under_two_keys_are_two(store: Database, make_caller: MakeCaller) -> None:
    one, other = make_caller(5), make_caller(5)
    spend(store, one, "ann", 5)
    spend(store, other, "ann", 1)
    assert state(store, other, "ann") == (5, 1, 4)
    with store.reading() as connection:
        assert usage(connection, other.key_id, after=0, limit=9, user="ann").total.queries == 1


def test_a_user_is_no_team(store: Database, make_caller: MakeCaller) -> None:
    spend(store, make_caller(5), "ann", 1)
    with store.reading() as connection:
        assert list_teams(connection) == []
        (name,) = connection.execute(sa.select(TEAMS.c.name)).scalars()
        with pytest.raises(administration.keys.UnknownTeam):
            administration.team_holder(connection, name)


def test_a_call_without_a_user_is_bound_by_no_users_budget(
    store: Database, make_caller: MakeCaller
) -> None:
    caller = make_caller(0)
    order = Order(Work("predictions", "tiny", "r1", Units(queries=3)), caller, caller)
    with store.writing() as connection:
        (outcome,) = reserve_all(connection, [order], holder=HOLDER, at=NOW, lock=False)
    assert isinstance(outcome, Reservation)
    assert outcome.cost.budgets == []


def test_past_the_bound_new_users_are_refused_and_known_ones_go_on(
    store: Database, make_caller: MakeCaller
) -> None:
    caller = make_caller(5)
    known(store, caller, "ann", most=2)
    known(store, caller, "bob", most=2)
    with pytest.raises(TooManyUsers):
        known(store, caller, "eve", most=2)
    bound(store, caller, 7)
    assert known(store, caller, "ann", most=2).holder is not None
    assert rows(store, caller) == (2, 2, 2)


def test_users_are_forgotten_with_the_last_limit_and_others_have_room(
    store: Database, make_caller: MakeCaller
) -> None:
    caller, other = make_caller(5), make_caller(5)
    bound(store, caller, 9, "day")
    known(store, other, "ann", most=1)
    before = known(store, caller, "ann", most=1)

    def remove(window: Any) -> None:
        with store.writing() as connection:
            users.remove_user_limit(connection, caller.key_id, unit="queries", window=window)

    remove("day")
    assert rows(store, caller) == (1, 1, 1)
    remove("lifetime")
    assert rows(store, caller) == (0, 0, 0)
    assert rows(store, other) == (1, 1, 1)
    bound(store, caller, 1)
    # A call that was about to be made for whom is forgotten takes nobody else's budget.
    assert known(store, caller, "bob", most=1).holder != before.holder
    with pytest.raises(TooManyUsers):
        known(store, caller, "eve", most=1)


def rows(store: Database, caller: Caller) -> tuple[int, int, int]:
    """Of users: their holders, their budgets, and how many are counted."""
    of_key = sa.select(TEAMS.c.id).where(TEAMS.c.user_of == caller.key_id)
    with store.reading() as connection:
        return (
            len(connection.execute(of_key).all()),
            len(connection.execute(sa.select(BUDGETS).where(BUDGETS.c.team_id.in_(of_key))).all()),
            connection.execute(
                sa.select(TOTALS.c.users).where(TOTALS.c.key_id == caller.key_id)
            ).scalar_one(),
        )


def test_nothing_is_written_for_users_whom_nothing_bounds(
    store: Database, make_caller: MakeCaller
) -> None:
    caller = make_caller()
    spend(store, caller, "ann", 3)
    assert rows(store, caller) == (0, 0, 0)
    with store.reading() as connection:
        shown = usage(connection, caller.key_id, after=0, limit=9, user="ann")
    assert [(line.user, line.units.queries) for line in shown.charges] == [("ann", 3)]


def test_users_that_are_new_at_one_moment_are_each_made_once(
    store: Database, make_caller: MakeCaller
) -> None:
    caller = make_caller(3)
    calls = [f"user-{number % 4}" for number in range(32)]

    def call(name: str) -> bool:
        try:
            spend(store, caller, name, 1)
        except BudgetExhausted:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        done = list(threads.map(call, calls))
    assert sum(done) == 4 * 3
    assert rows(store, caller) == (4, 4, 4)
    for name in set(calls):
        assert state(store, caller, name) == (3, 3, 0)


def test_a_limit_below_what_a_user_has_used_leaves_it_nothing_until_the_window_ends(
    store: Database, make_caller: MakeCaller
) -> None:
    caller = make_caller(10, "hour")
    spend(store, caller, "ann", 8)
    running = take(store, caller, "ann", 1)
    bound(store, caller, 4, "hour")
    assert state(store, caller, "ann") == (4, 8, 0)
    with pytest.raises(BudgetExhausted):
        take(store, caller, "ann", 1)
    with store.writing() as connection:
        refund(connection, running.charge_id, NOW)
    with pytest.raises(BudgetExhausted):
        take(store, caller, "ann", 1)
    later = NOW + HOUR
    spend(store, caller, "ann", 4, at=later)
    with pytest.raises(BudgetExhausted):
        take(store, caller, "ann", 1, at=later)
    bound(store, caller, 6, "hour")
    spend(store, caller, "ann", 2, at=later)
    assert state(store, caller, "ann", later) == (6, 6, 0)


def test_a_limit_is_removed_at_once_and_calls_that_run_touch_nothing_that_is_set_later(
    store: Database, make_caller: MakeCaller
) -> None:
    caller = make_caller(5)
    spend(store, caller, "bob", 5)
    spending, given_up = take(store, caller, "ann", 2), take(store, caller, "ann", 1)

    def remove() -> None:
        with store.writing() as connection:
            users.remove_user_limit(connection, caller.key_id, unit="queries", window="lifetime")

    remove()
    with pytest.raises(NoSuchBudget):
        remove()
    spend(store, caller, "bob", 100)
    bound(store, caller, 3)
    spend(store, caller, "bob", 1)
    held = take(store, caller, "ann", 3)
    with store.writing() as connection:
        settle(connection, spending, NOW)
        refund(connection, given_up.charge_id, NOW)
    assert state(store, caller, "ann") == (3, 0, 0)
    with store.writing() as connection:
        settle(connection, held, NOW)
    assert state(store, caller, "ann") == (3, 3, 0)
    assert state(store, caller, "bob") == (3, 1, 2)


def test_users_of_a_key_are_found_by_an_index(store: Database, make_caller: MakeCaller) -> None:
    of_key = sa.select(TEAMS.c.id).where(TEAMS.c.user_of == make_caller(5).key_id)
    compiled = str(of_key.compile(compile_kwargs={"literal_binds": True}))
    with store.reading() as connection:
        if store.dialect == "postgresql":
            connection.execute(sa.text("SET LOCAL enable_seqscan = off"))
        explain = "EXPLAIN QUERY PLAN" if store.dialect == "sqlite" else "EXPLAIN"
        plan = connection.execute(sa.text(f"{explain} {compiled}")).all()
    assert "ix_teams_user_of" in str(plan)


def test_a_team_has_no_users(store: Database, make_caller: MakeCaller) -> None:
    with store.writing() as connection:
        create_key(connection, owner="owner", team="team", at=NOW)
        holder = administration.team_holder(connection, "team")
        wanted = administration.BudgetLimit(unit="queries", limit=1, per_user=True)
        with pytest.raises(TeamHasNoUsers):
            administration.set_budgets(connection, holder, [wanted], NOW)
        with pytest.raises(TeamHasNoUsers):
            administration.remove_budget(
                connection, holder, "queries", "lifetime", NOW, per_user=True
            )


def test_usage_is_summed_and_listed_by_user(store: Database, make_caller: MakeCaller) -> None:
    caller = make_caller()
    for name, queries in (("ann", 1), ("bob", 2), ("ann", 4)):
        spend(store, caller, name, queries)
    take(store, caller, "ann", 8)
    with store.reading() as connection:
        sums = summed(charged(connection, Selection(), ["user"]), ["user"])
        lines = list(exports.lines(connection, Selection()))
        ann = usage(connection, caller.key_id, after=0, limit=2, user="ann")
        nobody = usage(connection, caller.key_id, after=0, limit=2, user="nobody")
    assert [(one["user"], one["queries"]) for one in sums] == [("ann", 5), ("bob", 2)]
    assert [line.user for line in lines] == ["ann", "bob", "ann", "ann"]
    assert ann.total.queries == 5
    assert ([line.id for line in ann.charges], ann.next_after) == ([1, 3], 3)
    assert (nobody.total.queries, nobody.charges) == (0, [])
