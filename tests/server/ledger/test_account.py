"""What was charged, day by day and line by line: of one key, and settled."""

from __future__ import annotations

import pytest

from craft_server.database import Database
from craft_server.ledger import leases
from craft_server.ledger.account import Day, daily, newest, usage
from craft_server.ledger.charges import Reservation, Work, refund, reserve, settle
from craft_server.ledger.keys import Caller, authenticate, create_key
from craft_server.ledger.prices import set_prices
from craft_shared.units import Units

DAY_MS = 86_400_000
MIDNIGHT = 20_000 * DAY_MS
# For statements that read the same on both stores: PostgreSQL's takes long to set up.
ON_SQLITE = pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)


@pytest.fixture
def callers(store: Database) -> tuple[Caller, Caller]:
    with store.writing() as connection:
        leases.renew(connection, "a server", 2 * MIDNIGHT)
        set_prices(connection, "tiny", {"queries": 3})
        keys = [create_key(connection, owner="owner", at=0) for _ in range(2)]
        one, other = (authenticate(connection, key, 0) for key in keys)
    assert one is not None
    assert other is not None
    return one, other


def take(store: Database, caller: Caller, queries: int, at: int) -> Reservation:
    with store.writing() as connection:
        work = Work("predictions", "tiny", "r1", Units(queries=queries))
        return reserve(connection, caller, work, holder="a server", at=at)


def charge(store: Database, caller: Caller, queries: int, at: int) -> None:
    reserved = take(store, caller, queries, at)
    with store.writing() as connection:
        settle(connection, reserved, at + DAY_MS)


def test_days_are_sums_of_the_keys_settled_lines(
    store: Database, callers: tuple[Caller, Caller]
) -> None:
    caller, other = callers
    for queries, at in ((64, -1), (1, 0), (2, DAY_MS - 1), (4, 2 * DAY_MS), (8, 2 * DAY_MS + 1)):
        charge(store, caller, queries, MIDNIGHT + at)
    charge(store, other, 100, MIDNIGHT)
    take(store, caller, 200, MIDNIGHT)
    now = MIDNIGHT + 3 * DAY_MS - 1
    with store.reading() as connection:
        days = daily(connection, caller.key_id, days=3, at=now)
    assert days == [
        Day(MIDNIGHT, Units(queries=3), 9),
        Day(MIDNIGHT + DAY_MS, Units(), 0),
        Day(MIDNIGHT + 2 * DAY_MS, Units(queries=12), 36),
    ]


@ON_SQLITE
def test_the_newest_lines_of_a_key_come_first_and_without_refunded_ones(
    store: Database, callers: tuple[Caller, Caller]
) -> None:
    caller, other = callers
    for queries in (1, 2):
        charge(store, caller, queries, MIDNIGHT)
    for _ in range(5):
        charge(store, other, 100, MIDNIGHT)
    given_back = take(store, caller, 3, MIDNIGHT)
    with store.writing() as connection:
        refund(connection, given_back.charge_id, MIDNIGHT)
    take(store, caller, 4, MIDNIGHT)
    with store.reading() as connection:
        lines = newest(connection, caller.key_id, limit=2)
    assert [(line.id, line.units.queries, line.state) for line in lines] == [
        (4, 4, "reserved"),
        (2, 2, "settled"),
    ]


def test_a_line_names_the_adapter_that_it_was_charged_for(
    store: Database, callers: tuple[Caller, Caller]
) -> None:
    caller, _ = callers
    with store.writing() as connection:
        for adapter in ("lab/pets@2", None):
            work = Work("predictions", "tiny", "r1", Units(queries=1), adapter=adapter)
            reserve(connection, caller, work, holder="a server", at=MIDNIGHT)
    with store.reading() as connection:
        lines = usage(connection, caller.key_id, after=0, limit=10).charges
    assert [line.adapter for line in lines] == ["lab/pets@2", None]
