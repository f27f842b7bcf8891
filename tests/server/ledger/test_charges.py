"""Reservations are exact: on both stores, under concurrency, in any order of events."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from craft_server.database import Database
from craft_server.ledger import administration, charges, leases
from craft_server.ledger.account import cost_of, usage
from craft_server.ledger.administration import Holder
from craft_server.ledger.budgets import (
    LimitBelowUse,
    LimitTooLarge,
    NoSuchBudget,
    list_budgets,
    set_budget,
    top_up,
)
from craft_server.ledger.calls import Attempt, StillRunning, StoredAnswer, look_up
from craft_server.ledger.charges import (
    BudgetExhausted,
    ChargeClosed,
    Contended,
    Order,
    Reservation,
    Settlement,
    TooManyRunning,
    Work,
    count_running,
    refund,
    refund_all,
    reserve,
    reserve_all,
    settle,
    settle_all,
)
from craft_server.ledger.keys import Caller, Rates, authenticate, create_key, find_team
from craft_server.ledger.prices import list_prices, set_prices
from craft_server.ledger.tables import BUDGETS, CHARGES
from craft_shared.amounts import MAX_AMOUNT, MAX_INTEGER
from craft_shared.units import UNITS, Measure, Unit, Units
from craft_shared.wire import Budget, BudgetTopUp, Window

HOLDER = "a server"
NOW = 1_800_000_000_000  # a Friday, 08:00 UTC
# For statements that read the same on both stores: PostgreSQL's takes long to set up.
ON_SQLITE = pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
HOUR = 3_600_000


def make_caller(
    store: Database,
    limits: Mapping[Measure, int],
    *,
    team: str | None = None,
    rates: Rates = Rates(),  # noqa: B008 - frozen
) -> Caller:
    with store.writing() as connection:
        leases.renew(connection, HOLDER, NOW + 10**12)
        key = create_key(connection, owner="owner", team=team, rates=rates, at=NOW)
        caller = authenticate(connection, key, NOW)
        assert caller is not None
        for unit, limit in limits.items():
            set_budget(
                connection,
                key_id=caller.key_id,
                unit=unit,
                window="lifetime",
                limit=limit,
                at=NOW,
            )
    return caller


def bound(
    store: Database,
    unit: Measure,
    limit: int,
    *,
    window: Window = "lifetime",
    caller: Caller | None = None,
    team_id: int | None = None,
    at: int = NOW,
) -> None:
    with store.writing() as connection:
        set_budget(
            connection,
            key_id=None if caller is None else caller.key_id,
            team_id=team_id,
            unit=unit,
            window=window,
            limit=limit,
            at=at,
        )


def take(
    store: Database, caller: Caller, units: Units, *, at: int = NOW, model: str = "tiny"
) -> Reservation:
    with store.writing() as connection:
        work = Work("predictions", model, "r1", units)
        return reserve(connection, caller, work, holder=HOLDER, at=at)


def close(store: Database, charge: Reservation, how: str, at: int = NOW) -> None:
    with store.writing() as connection:
        if how == "settle":
            settle(connection, charge, at)
        else:
            refund(connection, charge.charge_id, at)


def shown(store: Database, caller: Caller, at: int = NOW) -> list[Budget]:
    with store.reading() as connection:
        return list_budgets(connection, caller.key_id, caller.team_id, at)


def state(store: Database, caller: Caller, at: int = NOW) -> dict[str, tuple[int, int]]:
    return {budget.unit: (budget.spent, budget.reserved) for budget in shown(store, caller, at)}


def total(store: Database, caller: Caller) -> Units:
    with store.reading() as connection:
        return usage(connection, caller.key_id, after=0, limit=1).total


def test_a_settled_reservation_is_spent(store: Database) -> None:
    caller = make_caller(store, {"queries": 10, "texts": 100})
    charge = take(store, caller, Units(queries=4, texts=40, images=7))
    assert state(store, caller) == {"queries": (0, 4), "texts": (0, 40)}
    close(store, charge, "settle")
    assert state(store, caller) == {"queries": (4, 0), "texts": (40, 0)}
    assert total(store, caller) == Units(queries=4, texts=40, images=7)


def test_a_refunded_reservation_leaves_nothing(store: Database) -> None:
    caller = make_caller(store, {"queries": 10})
    close(store, take(store, caller, Units(queries=4)), "refund")
    assert state(store, caller) == {"queries": (0, 0)}
    with store.reading() as connection:
        assert usage(connection, caller.key_id, after=0, limit=10).charges == []


@pytest.mark.parametrize("first", ["settle", "refund"])
@pytest.mark.parametrize("second", ["settle", "refund"])
def test_a_charge_is_closed_once(store: Database, first: str, second: str) -> None:
    caller = make_caller(store, {"queries": 10})
    charge = take(store, caller, Units(queries=4))
    close(store, charge, first)
    before = state(store, caller)
    with pytest.raises(ChargeClosed):
        close(store, charge, second)
    assert state(store, caller) == before


def test_a_refused_reservation_leaves_other_units_alone(store: Database) -> None:
    caller = make_caller(store, {"queries": 10, "texts": 5, "requests": 0})
    with pytest.raises(BudgetExhausted) as caught:
        take(store, caller, Units(queries=3, texts=6, requests=1))
    assert [
        (short.budget.unit, short.needed, short.budget.remaining)
        for short in caught.value.shortfalls
    ] == [("texts", 6, 5), ("requests", 1, 0)]
    assert state(store, caller) == {"queries": (0, 0), "texts": (0, 0), "requests": (0, 0)}


def test_a_reservation_counts_against_the_next_one(store: Database) -> None:
    caller = make_caller(store, {"queries": 10})
    take(store, caller, Units(queries=6))
    with pytest.raises(BudgetExhausted):
        take(store, caller, Units(queries=5))
    take(store, caller, Units(queries=4))


def test_a_unit_without_a_budget_is_not_bounded(store: Database) -> None:
    caller = make_caller(store, {})
    close(store, take(store, caller, Units(queries=10**12)), "settle")
    assert total(store, caller).queries == 10**12


def test_a_top_up_lets_the_key_go_on(store: Database) -> None:
    caller, other = make_caller(store, {"queries": 1}), make_caller(store, {"queries": 1})
    bound(store, "queries", 9, window="hour", caller=caller)
    close(store, take(store, caller, Units(queries=1)), "settle")
    with pytest.raises(BudgetExhausted):
        take(store, caller, Units(queries=1))
    with store.writing() as connection:
        top_up(connection, key_id=caller.key_id, unit="queries", window="lifetime", amount=2)
    hour, budget = shown(store, caller)
    assert (budget.limit, budget.spent, budget.remaining) == (3, 1, 2)
    take(store, caller, Units(queries=2))
    assert [hour.limit, *(budget.limit for budget in shown(store, other))] == [9, 1]


def test_a_limit_grows_no_further_than_every_reader_holds_it_exactly(store: Database) -> None:
    caller = make_caller(store, {"queries": 2})
    holder = Holder(key_id=caller.key_id)
    most = [BudgetTopUp(unit="queries", amount=MAX_AMOUNT)] * (MAX_INTEGER // MAX_AMOUNT)
    with store.writing() as connection:
        administration.top_up(connection, holder, most)
    with pytest.raises(LimitTooLarge), store.writing() as connection:
        administration.top_up(connection, holder, most[:1])
    (budget,) = shown(store, caller)
    assert budget.limit == 2 + len(most) * MAX_AMOUNT
    rest = BudgetTopUp(unit="queries", amount=MAX_INTEGER - budget.limit)
    with store.writing() as connection:
        administration.top_up(connection, holder, [rest])
    assert [budget.limit for budget in shown(store, caller)] == [MAX_INTEGER]


def test_a_top_up_of_an_unbounded_unit_is_refused_whole(store: Database) -> None:
    caller = make_caller(store, {"queries": 1})
    wanted = [BudgetTopUp(unit="queries", amount=5), BudgetTopUp(unit="texts", amount=1)]
    with pytest.raises(NoSuchBudget) as caught, store.writing() as connection:
        administration.top_up(connection, Holder(key_id=caller.key_id), wanted)
    assert (caught.value.unit, caught.value.window) == ("texts", "lifetime")
    assert [budget.limit for budget in shown(store, caller)] == [1]


@pytest.mark.parametrize(("spent", "reserved"), [(10, 1), (11, 0), (0, 11), (-1, 0), (0, -1)])
def test_the_database_itself_refuses_an_overshoot(
    store: Database, spent: int, reserved: int
) -> None:
    caller = make_caller(store, {"queries": 10})
    with pytest.raises(sa.exc.IntegrityError), store.writing() as connection:
        connection.execute(
            sa.update(BUDGETS)
            .where(BUDGETS.c.key_id == caller.key_id)
            .values(spent=spent, reserved=reserved)
        )


def test_32_threads_reserve_exactly_the_limit(store: Database) -> None:
    limit = 100
    caller = make_caller(store, {"queries": limit, "texts": 10**9})

    def call(number: int) -> int:
        try:
            charge = take(store, caller, Units(queries=1, texts=3, requests=1))
        except BudgetExhausted:
            return 0
        close(store, charge, "refund" if number % 10 == 0 else "settle")
        return 0 if number % 10 == 0 else 1

    with ThreadPoolExecutor(32) as threads:
        delivered = sum(threads.map(call, range(200)))
    # Refunds come back while others ask, so that not every query need be spent; none is overspent.
    assert delivered <= limit
    assert state(store, caller) == {"queries": (delivered, 0), "texts": (3 * delivered, 0)}
    assert total(store, caller) == Units(queries=delivered, texts=3 * delivered, requests=delivered)
    for _ in range(limit - delivered):
        close(store, take(store, caller, Units(queries=1)), "settle")
    with pytest.raises(BudgetExhausted):
        take(store, caller, Units(queries=1))


def test_32_threads_number_their_keys_lines_without_a_gap(store: Database) -> None:
    callers = [make_caller(store, {"queries": 60}), make_caller(store, {})]
    for caller in callers:
        bound(store, "texts", 10**9, caller=caller)

    def call(number: int) -> None:
        try:
            charge = take(store, callers[number % 2], Units(queries=1, texts=1))
        except BudgetExhausted:
            return
        close(store, charge, "refund" if number % 5 == 0 else "settle")

    with ThreadPoolExecutor(32) as threads:
        list(threads.map(call, range(200)))
    for caller in callers:
        of_key = sa.select(CHARGES.c.line).where(CHARGES.c.key_id == caller.key_id)
        with store.reading() as connection:
            numbers = list(connection.execute(of_key.order_by(CHARGES.c.id)).scalars())
        assert len(numbers) >= 60
        assert numbers == list(range(1, len(numbers) + 1))


def test_lines_that_are_given_back_leave_gaps_in_their_own_keys_numbers_alone(
    store: Database,
) -> None:
    caller, other = make_caller(store, {"queries": 9}), make_caller(store, {})
    for how in ("settle", "refund", "settle"):
        close(store, take(store, caller, Units(queries=1)), how)
        for _ in range(3):
            close(store, take(store, other, Units(queries=1)), "settle")
        with pytest.raises(BudgetExhausted):  # which leaves no line
            take(store, caller, Units(queries=10))
    with store.reading() as connection:
        listed = [usage(connection, one.key_id, after=0, limit=99) for one in (caller, other)]
    assert [[line.id for line in page.charges] for page in listed] == [[1, 3], [*range(1, 10)]]


def test_a_line_on_a_keys_account_does_not_wait_for_who_counts_the_keys_calls(
    store: Database,
) -> None:
    if store.dialect == "sqlite":
        pytest.skip("it has one writer at a time")
    caller = make_caller(store, {}, rates=Rates(concurrency=5))
    other = make_caller(store, {})

    def pay() -> None:
        with store.writing() as connection:
            work = Work("predictions", "tiny", "r1", Units(queries=1))
            reserve(connection, caller, work, holder=HOLDER, at=NOW, caller=other)

    with ThreadPoolExecutor(1) as thread, store.writing() as connection:
        count_running(connection, caller.key_id)
        thread.submit(pay).result(timeout=20)


@ON_SQLITE
def test_a_keys_running_calls_do_not_count_against_another_key(store: Database) -> None:
    one, other = (make_caller(store, {}, rates=Rates(concurrency=1)) for _ in range(2))
    take(store, one, Units(queries=1))
    take(store, other, Units(queries=1))
    with pytest.raises(TooManyRunning):
        take(store, one, Units(queries=1))


def test_no_key_waits_for_who_counts_another_keys_calls(store: Database) -> None:
    if store.dialect == "sqlite":
        pytest.skip("it has one writer at a time")
    one, other = (make_caller(store, {}, rates=Rates(concurrency=5)) for _ in range(2))

    def count() -> None:
        with store.writing() as connection:
            count_running(connection, other.key_id)

    with ThreadPoolExecutor(1) as thread, store.writing() as connection:
        count_running(connection, one.key_id)
        thread.submit(count).result(timeout=20)


def test_a_charge_that_is_being_closed_is_left_to_who_closes_it(store: Database) -> None:
    if store.dialect == "sqlite":
        pytest.skip("it has one writer at a time")
    caller = make_caller(store, {"queries": 10})
    charge = take(store, caller, Units(queries=4))

    def give_back() -> int:
        with store.writing() as connection:
            return refund_all(connection, sa.true(), NOW)

    with ThreadPoolExecutor(1) as thread, store.writing() as connection:
        settle(connection, charge, NOW)
        assert thread.submit(give_back).result(timeout=20) == 0
    assert state(store, caller) == {"queries": (4, 0)}


@ON_SQLITE
def test_what_another_key_was_charged_is_not_told(store: Database) -> None:
    caller, other = make_caller(store, {}), make_caller(store, {})
    charge = take(store, caller, Units(queries=4)).charge_id
    with store.reading() as connection:
        assert cost_of(connection, caller, charge, NOW).charged == Units(queries=4)
        assert cost_of(connection, other, charge, NOW).charged == Units()


@ON_SQLITE
def test_a_last_page_that_is_full_names_no_next(store: Database) -> None:
    caller = make_caller(store, {})
    for _ in range(2):
        take(store, caller, Units(queries=1))
    with store.reading() as connection:
        assert usage(connection, caller.key_id, after=0, limit=1).next_after == 1
        assert usage(connection, caller.key_id, after=0, limit=2).next_after is None


def test_usage_pages_list_every_line_once(store: Database) -> None:
    caller, other = make_caller(store, {}), make_caller(store, {})
    for number in range(7):
        take(store, other, Units(queries=99))
        close(store, take(store, caller, Units(queries=number)), "settle")
    seen, after = [], 0
    while True:
        with store.reading() as connection:
            page = usage(connection, caller.key_id, after=after, limit=3)
        assert page.total == Units(queries=21)
        seen += [line.units.queries for line in page.charges]
        if page.next_after is None:
            break
        after = page.next_after
    assert seen == list(range(7))


_EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "settle", "refund"]),
        st.builds(Units, **{unit: st.integers(0, 6) for unit in UNITS}),
        st.integers(0, 20),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(limits=st.dictionaries(st.sampled_from(UNITS), st.integers(0, 20)), events=_EVENTS)
def test_budgets_are_the_sums_of_the_lines(
    limits: dict[Unit, int], events: list[tuple[str, Units, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Database.open(None, Path(folder))
        caller = make_caller(store, limits)
        charges: list[Reservation] = []
        model: dict[int, tuple[str, Units]] = {}
        for kind, units, choice in events:
            if kind == "reserve":
                fits = all(
                    units[unit] == 0
                    or units[unit]
                    + sum(of[unit] for state_, of in model.values() if state_ != "refund")
                    <= limit
                    for unit, limit in limits.items()
                )
                if not fits:
                    with pytest.raises(BudgetExhausted):
                        take(store, caller, units)
                    continue
                charges.append(take(store, caller, units))
                model[charges[-1].charge_id] = ("reserve", units)
            elif charges:
                charge = charges[choice % len(charges)]
                of_charge = charge.charge_id
                if model[of_charge][0] != "reserve":
                    with pytest.raises(ChargeClosed):
                        close(store, charge, kind)
                    continue
                close(store, charge, kind)
                model[of_charge] = (kind, model[of_charge][1])
        expected = {
            unit: tuple(
                sum(of[unit] for state_, of in model.values() if state_ == wanted)
                for wanted in ("settle", "reserve")
            )
            for unit in limits
        }
        assert state(store, caller) == expected
        store.close()


def test_a_windowed_budget_begins_anew_at_the_boundary(store: Database) -> None:
    caller = make_caller(store, {})
    bound(store, "queries", 10, window="hour", caller=caller)
    close(store, take(store, caller, Units(queries=9)), "settle")
    last = NOW + HOUR - 1
    with pytest.raises(BudgetExhausted):
        take(store, caller, Units(queries=2), at=last)
    assert state(store, caller, last) == {"queries": (9, 0)}
    # Nobody has written at midnight: the old counts are read as what they are.
    assert state(store, caller, NOW + HOUR) == {"queries": (0, 0)}
    take(store, caller, Units(queries=10), at=NOW + HOUR)
    assert state(store, caller, NOW + HOUR) == {"queries": (0, 10)}
    (budget,) = shown(store, caller, NOW + HOUR)
    assert budget.resets_at == "2027-01-15T10:00:00.000Z"


def test_a_call_counts_in_the_window_in_which_it_was_reserved(store: Database) -> None:
    caller = make_caller(store, {"queries": 100})
    bound(store, "queries", 10, window="hour", caller=caller)
    held = [take(store, caller, Units(queries=3)) for _ in range(2)]
    after = NOW + HOUR
    # The window rolls over while both run; only the lifetime budget still knows of them.
    charge = take(store, caller, Units(queries=1), at=after)
    close(store, held[0], "settle", after)
    close(store, held[1], "refund", after)
    windows = {b.window: (b.spent, b.reserved) for b in shown(store, caller, after)}
    assert windows == {"hour": (0, 1), "lifetime": (3, 1)}
    close(store, charge, "settle", after)
    windows = {b.window: (b.spent, b.reserved) for b in shown(store, caller, after)}
    assert windows == {"hour": (1, 0), "lifetime": (4, 0)}
    assert total(store, caller) == Units(queries=4)


def test_a_settlement_after_the_boundary_but_before_the_next_call_is_not_shown(
    store: Database,
) -> None:
    caller = make_caller(store, {})
    bound(store, "queries", 10, window="day", caller=caller)
    charge = take(store, caller, Units(queries=3))
    tomorrow = NOW + 24 * HOUR
    close(store, charge, "settle", tomorrow)
    assert state(store, caller, tomorrow) == {"queries": (0, 0)}
    take(store, caller, Units(queries=10), at=tomorrow)


def test_a_clock_that_lags_behind_does_not_bring_a_window_back(store: Database) -> None:
    caller = make_caller(store, {})
    bound(store, "queries", 10, window="hour", caller=caller)
    close(store, take(store, caller, Units(queries=9), at=NOW + HOUR), "settle")
    with pytest.raises(BudgetExhausted):
        take(store, caller, Units(queries=2), at=NOW + HOUR - 1)
    take(store, caller, Units(queries=1), at=NOW + HOUR - 1)
    assert state(store, caller, NOW + HOUR) == {"queries": (9, 1)}
    (budget,) = shown(store, caller, NOW + HOUR - 1)
    assert (budget.spent, budget.resets_at) == (9, "2027-01-15T10:00:00.000Z")


def test_every_budget_of_a_unit_must_hold(store: Database) -> None:
    caller = make_caller(store, {"queries": 12})
    bound(store, "queries", 5, window="hour", caller=caller)
    with pytest.raises(BudgetExhausted):
        take(store, caller, Units(queries=6))
    take(store, caller, Units(queries=5))
    take(store, caller, Units(queries=5), at=NOW + HOUR)
    with pytest.raises(BudgetExhausted) as caught:
        take(store, caller, Units(queries=5), at=NOW + 2 * HOUR)
    assert [short.budget.window for short in caught.value.shortfalls] == ["lifetime"]
    assert [(b.spent, b.reserved) for b in shown(store, caller, NOW + 2 * HOUR)] == [
        (0, 0),
        (0, 10),
    ]


def test_a_teams_budget_and_the_keys_must_both_hold(store: Database) -> None:
    first = make_caller(store, {"queries": 6}, team="lab")
    second = make_caller(store, {"queries": 6}, team="lab")
    stranger = make_caller(store, {})
    with store.reading() as connection:
        team_id = find_team(connection, "lab")
    bound(store, "queries", 8, team_id=team_id)
    close(store, take(store, first, Units(queries=5)), "settle")
    with pytest.raises(BudgetExhausted) as caught:
        take(store, first, Units(queries=2))
    assert [short.budget.of for short in caught.value.shortfalls] == ["key"]
    with pytest.raises(BudgetExhausted) as caught:
        take(store, second, Units(queries=4))
    assert [short.budget.of for short in caught.value.shortfalls] == ["team"]
    take(store, stranger, Units(queries=100))
    close(store, take(store, second, Units(queries=3)), "refund")
    take(store, second, Units(queries=3))
    assert {b.of: (b.spent, b.reserved) for b in shown(store, second)} == {
        "key": (0, 3),
        "team": (5, 3),
    }


@ON_SQLITE
def test_a_key_is_shown_its_own_budgets_and_its_teams_and_a_team_its_own(store: Database) -> None:
    first = make_caller(store, {"queries": 1}, team="lab")
    second = make_caller(store, {"queries": 2}, team="lab")
    stranger = make_caller(store, {"queries": 3}, team="elsewhere")
    alone = make_caller(store, {"queries": 4})
    bound(store, "texts", 5, team_id=first.team_id)
    bound(store, "texts", 6, team_id=stranger.team_id)
    limits = [
        [(budget.of, budget.limit) for budget in shown(store, caller)]
        for caller in (first, second, stranger, alone)
    ]
    assert limits == [
        [("key", 1), ("team", 5)],
        [("key", 2), ("team", 5)],
        [("key", 3), ("team", 6)],
        [("key", 4)],
    ]
    assert first.team_id is not None
    with store.reading() as connection:
        of_lab = list_budgets(connection, None, first.team_id, NOW)
    assert [(budget.of, budget.limit) for budget in of_lab] == [("team", 5)]


def test_16_threads_of_two_keys_reserve_exactly_the_teams_limit(store: Database) -> None:
    callers = [make_caller(store, {"queries": 60}, team="lab") for _ in range(2)]
    bound(store, "queries", 50, team_id=callers[0].team_id)

    def call(number: int) -> int:
        try:
            charge = take(store, callers[number % 2], Units(queries=1))
        except BudgetExhausted:
            return 0
        close(store, charge, "settle")
        return 1

    with ThreadPoolExecutor(16) as threads:
        assert sum(threads.map(call, range(120))) == 50
    budgets = {b.of: (b.spent, b.reserved) for b in shown(store, callers[0])}
    assert budgets["team"] == (50, 0)
    assert sum(total(store, caller).queries for caller in callers) == 50


def test_a_limit_below_what_is_used_is_refused(store: Database) -> None:
    caller = make_caller(store, {"queries": 10})
    close(store, take(store, caller, Units(queries=3)), "settle")
    charge = take(store, caller, Units(queries=2))
    with pytest.raises(LimitBelowUse) as caught:
        bound(store, "queries", 4, caller=caller)
    assert caught.value.used == 5
    bound(store, "queries", 5, caller=caller)
    with pytest.raises(BudgetExhausted):
        take(store, caller, Units(queries=1))
    close(store, charge, "refund")
    bound(store, "queries", 3, caller=caller)
    assert [(b.limit, b.spent) for b in shown(store, caller)] == [(3, 3)]


def test_a_window_that_has_passed_does_not_keep_a_limit_up(store: Database) -> None:
    caller = make_caller(store, {"queries": 99})
    bound(store, "queries", 10, window="hour", caller=caller)
    close(store, take(store, caller, Units(queries=7)), "settle")
    take(store, caller, Units(queries=2))
    with pytest.raises(LimitBelowUse):
        bound(store, "queries", 2, window="hour", caller=caller)
    bound(store, "queries", 2, window="hour", caller=caller, at=NOW + HOUR)
    budgets = [(b.limit, b.spent, b.reserved) for b in shown(store, caller, NOW + HOUR)]
    assert budgets == [(2, 0, 0), (99, 7, 2)]


def test_a_budget_set_by_many_at_once_is_one(store: Database) -> None:
    caller = make_caller(store, {})
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: bound(store, "queries", n, caller=caller), range(1, 17)))
    assert len(shown(store, caller)) == 1


def test_a_price_list_turns_units_into_money(store: Database) -> None:
    caller = make_caller(store, {"cost_micros": 1000})
    with store.writing() as connection:
        set_prices(connection, "tiny", {"queries": 100, "texts": 3})
        set_prices(connection, "other", {"queries": 1})
    charge = take(store, caller, Units(queries=4, texts=50, images=9))
    assert state(store, caller) == {"cost_micros": (0, 550)}
    unbounded = make_caller(store, {})
    assert take(store, unbounded, Units(queries=4, texts=50)).cost.cost_micros == 550
    with pytest.raises(BudgetExhausted) as caught:
        take(store, caller, Units(queries=5))
    assert [(s.budget.unit, s.needed) for s in caught.value.shortfalls] == [("cost_micros", 500)]
    with store.writing() as connection:
        set_prices(connection, "tiny", {"queries": 1})
        assert list_prices(connection) == {
            "other": {"queries": 1},
            "tiny": {"queries": 1, "texts": 3},
        }
    # What was reserved at the old price is charged at it.
    close(store, charge, "settle")
    take(store, caller, Units(queries=5))
    take(store, caller, Units(queries=5), model="free of charge")
    assert state(store, caller) == {"cost_micros": (550, 5)}
    with store.reading() as connection:
        spent = usage(connection, caller.key_id, after=0, limit=10)
        assert spent.cost_micros == 550
        assert [line.cost_micros for line in spent.charges] == [550, 5, 0]
        assert cost_of(connection, caller, charge.charge_id, NOW).cost_micros == 550


def test_a_reservation_tells_the_cost_that_its_settlement_will_have(store: Database) -> None:
    caller = make_caller(store, {"queries": 10, "texts": 10})
    bound(store, "queries", 7, window="month", caller=caller)
    with store.writing() as connection:
        work = Work("predictions", "tiny", "r1", Units(queries=3, images=2))
        reserved = reserve(connection, caller, work, holder=HOLDER, at=NOW)
    close(store, reserved, "settle")
    with store.reading() as connection:
        assert reserved.cost == cost_of(connection, caller, reserved.charge_id, NOW)


def test_a_key_runs_as_many_calls_as_it_may(store: Database) -> None:
    caller = make_caller(store, {}, rates=Rates(concurrency=3))

    def call(_number: int) -> Reservation | None:
        try:
            with store.writing() as connection:
                work = Work("predictions", "tiny", "r1", Units(queries=1))
                return reserve(connection, caller, work, holder=HOLDER, at=NOW)
        except TooManyRunning:
            return None

    with ThreadPoolExecutor(12) as threads:
        held = [charge for charge in threads.map(call, range(24)) if charge is not None]
    assert len(held) == 3
    close(store, held[0], "settle")
    close(store, held[1], "refund")
    assert [call(0) is not None for _ in range(3)] == [True, True, False]


def test_releasing_a_dead_servers_team_and_reserving_do_not_wait_in_a_circle(
    store: Database,
) -> None:
    # Budgets of two keys and, between them in the order of ids, of their team.
    first = make_caller(store, {"queries": 10**6}, team="lab")
    bound(store, "queries", 10**6, team_id=first.team_id)
    second = make_caller(store, {"queries": 10**6}, team="lab")
    bound(store, "texts", 10**6, team_id=first.team_id)
    units = Units(queries=1, texts=1)

    def die() -> None:
        for _ in range(30):
            for caller in (second, first, second, first):
                with store.writing() as connection:
                    work = Work("predictions", "tiny", "r1", units)
                    reserve(connection, caller, work, holder="dead", at=NOW)
            with store.writing() as connection:
                leases.release_expired(connection, NOW)

    def live(caller: Caller) -> None:
        for _ in range(60):
            close(store, take(store, caller, units), "settle")

    with ThreadPoolExecutor(5) as threads:
        done = [threads.submit(die), threads.submit(die)]
        done += [threads.submit(live, caller) for caller in (first, second, first)]
        for one in done:
            one.result()
    with store.writing() as connection:
        leases.release_expired(connection, NOW)
    budgets = {(b.of, b.unit): (b.spent, b.reserved) for b in shown(store, first)}
    assert budgets == {
        ("key", "queries"): (120, 0),
        ("team", "queries"): (180, 0),
        ("team", "texts"): (180, 0),
    }


def order(caller: Caller, units: Units, key: str | None = None) -> Order:
    attempt = None if key is None else Attempt(key, "f", repeatable=True)
    return Order(Work("predictions", "tiny", "r1", units), caller, caller, attempt)


def reserve_together(
    store: Database, orders: list[Order], *, lock: bool = False
) -> list[Reservation | BudgetExhausted | TooManyRunning]:
    with store.writing() as connection:
        return reserve_all(connection, orders, holder=HOLDER, at=NOW, lock=lock, last=True)


@pytest.mark.parametrize("lock", [False, True])
def test_of_calls_that_are_reserved_together_those_that_fit_are(
    store: Database, lock: bool
) -> None:
    one, other = make_caller(store, {"queries": 10}), make_caller(store, {"queries": 4})
    asked = [(one, 6), (other, 5), (one, 5), (one, 4), (other, 4)]
    orders = [order(caller, Units(queries=queries)) for caller, queries in asked]
    outcomes = reserve_together(store, orders, lock=lock)
    fits = [isinstance(outcome, Reservation) for outcome in outcomes]
    assert fits == [True, False, False, True, True]
    assert state(store, one) == {"queries": (0, 10)}
    assert state(store, other) == {"queries": (0, 4)}
    with store.reading() as connection:
        lines = [usage(connection, key.key_id, after=0, limit=9).charges for key in (one, other)]
    assert [[line.id for line in of_key] for of_key in lines] == [[1, 2], [1]]


def test_each_of_the_calls_reserved_together_is_shown_what_it_leaves(store: Database) -> None:
    caller = make_caller(store, {"queries": 10, "texts": 7})
    outcomes = reserve_together(store, [order(caller, Units(queries=n)) for n in (1, 2, 3)])
    shown = [
        (budget.spent, budget.reserved, budget.remaining)
        for outcome in outcomes
        if isinstance(outcome, Reservation)
        for budget in outcome.cost.budgets
    ]
    texts = (0, 0, 7)
    assert shown == [(1, 0, 9), texts, (2, 1, 7), texts, (3, 3, 4), texts]


def test_calls_at_a_time_are_counted_among_those_reserved_together(store: Database) -> None:
    caller = make_caller(store, {}, rates=Rates(concurrency=2))
    outcomes = reserve_together(store, [order(caller, Units(queries=1)) for _ in range(3)])
    assert [isinstance(outcome, TooManyRunning) for outcome in outcomes] == [False, False, True]


def test_one_call_is_not_begun_twice_together(store: Database) -> None:
    caller = make_caller(store, {"queries": 10})
    with pytest.raises(StillRunning):
        reserve_together(store, [order(caller, Units(queries=1), "one") for _ in range(2)])
    assert state(store, caller) == {"queries": (0, 0)}


def test_a_budget_that_others_used_up_since_it_was_read_is_not_overspent(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    if store.dialect == "sqlite":
        pytest.skip("it has one writer at a time")
    caller = make_caller(store, {"queries": 10})
    read = charges.as_budget

    def after_others(*args: Any) -> Budget:
        monkeypatch.setattr(charges, "as_budget", read)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(take, store, caller, Units(queries=6)).result(timeout=20)
        return read(*args)

    monkeypatch.setattr(charges, "as_budget", after_others)
    with pytest.raises(Contended):
        reserve_together(store, [order(caller, Units(queries=5))])
    assert state(store, caller) == {"queries": (0, 6)}
    (refused,) = reserve_together(store, [order(caller, Units(queries=5))], lock=True)
    assert isinstance(refused, BudgetExhausted)


def test_calls_settled_together_are_charged_each_its_own(store: Database) -> None:
    one, other = make_caller(store, {"queries": 10}), make_caller(store, {"queries": 10})
    orders = [
        order(caller, Units(queries=n), f"call {n}")
        for caller, n in ((one, 1), (other, 2), (one, 3))
    ]
    reserved = [r for r in reserve_together(store, orders) if isinstance(r, Reservation)]
    answers = [StoredAnswer(200, "text/plain", bytes(n)) for n in range(3)]
    with store.writing() as connection:
        settle_all(
            connection,
            [Settlement(r, None, a) for r, a in zip(reserved, answers, strict=True)],
            NOW,
            last=True,
        )
    assert state(store, one) == {"queries": (4, 0)}
    assert state(store, other) == {"queries": (2, 0)}
    assert (total(store, one).queries, total(store, other).queries) == (4, 2)
    with store.reading() as connection:
        for asked, answer in zip(orders, answers, strict=True):
            assert asked.attempt is not None
            made = look_up(connection, asked.caller.key_id, asked.attempt.key, "f")
            assert made is not None
            assert made.answer == answer


def test_nothing_is_settled_together_with_what_is_closed(store: Database) -> None:
    caller = make_caller(store, {"queries": 10})
    first, second = (take(store, caller, Units(queries=n)) for n in (1, 2))
    close(store, first, "refund")
    with pytest.raises(ChargeClosed), store.writing() as connection:
        settle_all(connection, [Settlement(first), Settlement(second)], NOW, last=True)
    assert state(store, caller) == {"queries": (0, 2)}
