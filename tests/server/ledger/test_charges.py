"""Reservations are exact: on both stores, under concurrency, in any order of events."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from craft_server.database import Database
from craft_server.ledger.budgets import UnboundedUnit, list_budgets, top_up
from craft_server.ledger.charges import (
    BudgetExhausted,
    ChargeClosed,
    Shortfall,
    refund,
    reserve,
    settle,
    usage,
)
from craft_server.ledger.keys import authenticate, create_key
from craft_server.ledger.tables import BUDGETS
from craft_shared.units import UNITS, Unit, Units


def make_key(store: Database, limits: Mapping[Unit, int]) -> int:
    with store.writing() as connection:
        key = create_key(connection, owner="owner", name="", limits=limits)
        caller = authenticate(connection, key)
    assert caller is not None
    return caller.key_id


def take(store: Database, key_id: int, units: Units) -> int:
    with store.writing() as connection:
        return reserve(connection, key_id, call="predictions", model="tiny", units=units)


def close(store: Database, charge_id: int, how: str) -> None:
    with store.writing() as connection:
        {"settle": settle, "refund": refund}[how](connection, charge_id)


def state(store: Database, key_id: int) -> dict[str, tuple[int, int]]:
    with store.reading() as connection:
        budgets = list_budgets(connection, key_id)
    return {budget.unit: (budget.spent, budget.reserved) for budget in budgets}


def total(store: Database, key_id: int) -> Units:
    with store.reading() as connection:
        return usage(connection, key_id, after=0, limit=1).total


def test_a_settled_reservation_is_spent(store: Database) -> None:
    key_id = make_key(store, {"queries": 10, "texts": 100})
    charge = take(store, key_id, Units(queries=4, texts=40, images=7))
    assert state(store, key_id) == {"queries": (0, 4), "texts": (0, 40)}
    close(store, charge, "settle")
    assert state(store, key_id) == {"queries": (4, 0), "texts": (40, 0)}
    assert total(store, key_id) == Units(queries=4, texts=40, images=7)


def test_a_refunded_reservation_leaves_nothing(store: Database) -> None:
    key_id = make_key(store, {"queries": 10})
    close(store, take(store, key_id, Units(queries=4)), "refund")
    assert state(store, key_id) == {"queries": (0, 0)}
    with store.reading() as connection:
        assert usage(connection, key_id, after=0, limit=10).charges == []


@pytest.mark.parametrize("first", ["settle", "refund"])
@pytest.mark.parametrize("second", ["settle", "refund"])
def test_a_charge_is_closed_once(store: Database, first: str, second: str) -> None:
    key_id = make_key(store, {"queries": 10})
    charge = take(store, key_id, Units(queries=4))
    close(store, charge, first)
    before = state(store, key_id)
    with pytest.raises(ChargeClosed):
        close(store, charge, second)
    assert state(store, key_id) == before


def test_a_refused_reservation_leaves_other_units_alone(store: Database) -> None:
    key_id = make_key(store, {"queries": 10, "texts": 5, "requests": 0})
    with pytest.raises(BudgetExhausted) as caught:
        take(store, key_id, Units(queries=3, texts=6, requests=1))
    assert caught.value.shortfalls == [Shortfall("texts", 6, 5), Shortfall("requests", 1, 0)]
    assert state(store, key_id) == {"queries": (0, 0), "texts": (0, 0), "requests": (0, 0)}


def test_a_reservation_counts_against_the_next_one(store: Database) -> None:
    key_id = make_key(store, {"queries": 10})
    take(store, key_id, Units(queries=6))
    with pytest.raises(BudgetExhausted):
        take(store, key_id, Units(queries=5))
    take(store, key_id, Units(queries=4))


def test_a_unit_without_a_budget_is_not_bounded(store: Database) -> None:
    key_id = make_key(store, {})
    close(store, take(store, key_id, Units(queries=10**12)), "settle")
    assert total(store, key_id).queries == 10**12


def test_a_top_up_lets_the_key_go_on(store: Database) -> None:
    key_id = make_key(store, {"queries": 1})
    close(store, take(store, key_id, Units(queries=1)), "settle")
    with pytest.raises(BudgetExhausted):
        take(store, key_id, Units(queries=1))
    with store.writing() as connection:
        (budget,) = top_up(connection, key_id, {"queries": 2})
    assert (budget.limit, budget.spent, budget.remaining) == (3, 1, 2)
    take(store, key_id, Units(queries=2))


def test_a_top_up_of_an_unbounded_unit_is_refused_whole(store: Database) -> None:
    key_id = make_key(store, {"queries": 1})
    with pytest.raises(UnboundedUnit), store.writing() as connection:
        top_up(connection, key_id, {"queries": 5, "texts": 1})
    with store.reading() as connection:
        assert [budget.limit for budget in list_budgets(connection, key_id)] == [1]


@pytest.mark.parametrize(("spent", "reserved"), [(10, 1), (11, 0), (0, 11), (-1, 0), (0, -1)])
def test_the_database_itself_refuses_an_overshoot(
    store: Database, spent: int, reserved: int
) -> None:
    key_id = make_key(store, {"queries": 10})
    with pytest.raises(sa.exc.IntegrityError), store.writing() as connection:
        connection.execute(
            sa.update(BUDGETS)
            .where(BUDGETS.c.key_id == key_id)
            .values(spent=spent, reserved=reserved)
        )


def test_32_threads_reserve_exactly_the_limit(store: Database) -> None:
    limit = 100
    key_id = make_key(store, {"queries": limit, "texts": 10**9})

    def call(number: int) -> int:
        try:
            charge = take(store, key_id, Units(queries=1, texts=3, requests=1))
        except BudgetExhausted:
            return 0
        close(store, charge, "refund" if number % 10 == 0 else "settle")
        return 0 if number % 10 == 0 else 1

    with ThreadPoolExecutor(32) as threads:
        delivered = sum(threads.map(call, range(200)))
    # Refunds come back while others ask, so that not every query need be spent; none is overspent.
    assert delivered <= limit
    assert state(store, key_id) == {"queries": (delivered, 0), "texts": (3 * delivered, 0)}
    assert total(store, key_id) == Units(queries=delivered, texts=3 * delivered, requests=delivered)
    for _ in range(limit - delivered):
        close(store, take(store, key_id, Units(queries=1)), "settle")
    with pytest.raises(BudgetExhausted):
        take(store, key_id, Units(queries=1))


def test_usage_pages_list_every_line_once(store: Database) -> None:
    key_id, other = make_key(store, {}), make_key(store, {})
    for number in range(7):
        take(store, other, Units(queries=99))
        close(store, take(store, key_id, Units(queries=number)), "settle")
    seen, after = [], 0
    while True:
        with store.reading() as connection:
            page = usage(connection, key_id, after=after, limit=3)
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
        key_id = make_key(store, limits)
        charges: list[int] = []
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
                        take(store, key_id, units)
                    continue
                charges.append(take(store, key_id, units))
                model[charges[-1]] = ("reserve", units)
            elif charges:
                charge = charges[choice % len(charges)]
                if model[charge][0] != "reserve":
                    with pytest.raises(ChargeClosed):
                        close(store, charge, kind)
                    continue
                close(store, charge, kind)
                model[charge] = (kind, model[charge][1])
        expected = {
            unit: tuple(
                sum(of[unit] for state_, of in model.values() if state_ == wanted)
                for wanted in ("settle", "reserve")
            )
            for unit in limits
        }
        assert state(store, key_id) == expected
        store.close()
