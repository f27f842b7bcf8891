"""Monthly statements come to what was charged, whatever prices have become."""

from __future__ import annotations

from craft_server.clock import Period
from craft_server.database import Database
from craft_server.ledger.monthly import rows, statement
from craft_server.ledger.prices import set_prices
from server.ledger.conftest import DECEMBER, NOVEMBER, Charger

MONTH = Period.named("2026-11")


def test_a_statement_is_of_one_team_and_one_month(store: Database, charger: Charger) -> None:
    charger.charge("ann", 5, NOVEMBER)
    charger.charge("ann", 1, DECEMBER - 1, model="other")
    charger.charge("bob", 7, NOVEMBER)
    charger.charge("bob", 100, DECEMBER)
    charger.charge("ann", 100, NOVEMBER - 1)
    charger.charge("cleo", 100, NOVEMBER)
    charger.reserve("bob", 100, NOVEMBER)
    charger.reserve("cleo", 100, NOVEMBER)
    with store.reading() as connection:
        found = statement(connection, MONTH, team="vision")
    assert [
        (line.name, line.model, line.unit, line.amount, line.price_micros, line.cost_micros)
        for line in found.lines
    ] == [
        ("ann", "other", "queries", 1, 0, 0),
        ("ann", "tiny", "queries", 5, 3, 15),
        ("bob", "tiny", "queries", 7, 3, 21),
    ]
    assert (found.total["queries"], found.total["cost_micros"], found.running) == (13, 36, 1)


def test_prices_that_have_changed_leave_the_total_what_was_charged(
    store: Database, charger: Charger
) -> None:
    charger.charge("dan", 5, NOVEMBER)
    with store.writing() as connection:
        set_prices(connection, "tiny", {"queries": 10})
    charger.charge("dan", 1, NOVEMBER + 1)
    with store.reading() as connection:
        found = statement(connection, MONTH, prefix=charger.callers["dan"].prefix)
    columns, *lines, total = rows(found)
    unit, cost = columns.index("unit"), columns.index("cost_micros")
    assert [(line[unit], line[cost]) for line in lines] == [
        ("queries", 60),
        ("price difference", -35),
    ]
    assert (total[unit], total[cost]) == ("total", 25)
    assert sum(line[cost] for line in lines) == total[cost]  # type: ignore[misc]


def test_a_month_without_charges_has_a_statement_of_nothing(
    store: Database, charger: Charger
) -> None:
    with store.reading() as connection:
        found = statement(connection, MONTH)
    assert (found.lines, set(found.total.values()), found.running) == ([], {0}, 0)
