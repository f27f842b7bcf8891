"""What lines come to: of settled ones alone, by the day on which they were reserved."""

from __future__ import annotations

import pytest

from craft_server.database import Database
from craft_server.ledger.keys import UnknownTeam
from craft_server.ledger.selection import Selection
from craft_server.ledger.sums import charged, summed
from server.ledger.conftest import DAY_MS, DECEMBER, NOVEMBER, Charger

# For statements that read the same on both stores: PostgreSQL's takes long to set up.
ON_SQLITE = pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)


def sums(store: Database, *by: str, **selection: object) -> list[tuple[object, ...]]:
    with store.reading() as connection:
        found = summed(charged(connection, Selection(**selection), by), by)  # type: ignore[arg-type]
    return [(*(row[name] for name in by), row["queries"], row["cost_micros"]) for row in found]


def test_sums_are_of_what_is_named(store: Database, charger: Charger) -> None:
    charger.charge("ann", 1, NOVEMBER)
    charger.charge("ann", 2, NOVEMBER + DAY_MS - 1, adapter="lab/pets@1")
    charger.charge("bob", 4, DECEMBER, adapter="lab/pets@12")
    charger.charge("cleo", 8, DECEMBER + DAY_MS, adapter="lab/pets2@1")
    charger.charge("dan", 16, DECEMBER + DAY_MS, model="other")
    # Neither has charged anything.
    charger.give_back("ann", 100, NOVEMBER)
    charger.reserve("ann", 200, NOVEMBER)
    ann, bob, cleo, dan = (charger.callers[name].prefix for name in ("ann", "bob", "cleo", "dan"))
    assert sums(store, "team") == [("", 16, 0), ("text", 8, 24), ("vision", 7, 21)]
    assert sums(store, "key") == sorted([(ann, 3, 9), (bob, 4, 12), (cleo, 8, 24), (dan, 16, 0)])
    assert sums(store, "adapter") == [
        ("", 17, 3),
        ("lab/pets", 6, 18),
        ("lab/pets2", 8, 24),
    ]
    assert sums(store, "model", "month") == [
        ("other", "2026-12", 16, 0),
        ("tiny", "2026-11", 3, 9),
        ("tiny", "2026-12", 12, 36),
    ]
    assert sums(store, "day", team="vision") == [("2026-11-01", 3, 9), ("2026-12-01", 4, 12)]
    assert sums(store, "owner", prefix=bob) == [("bob & co", 4, 12)]
    assert sums(store, "call", adapter="lab/pets") == [("predictions", 6, 18)]
    assert sums(store, "call", adapter="lab/pets@1") == [("predictions", 2, 6)]
    assert sums(store, "call", model="other") == [("predictions", 16, 0)]
    assert sums(store, "team", since=NOVEMBER + 1, until=DECEMBER) == [("vision", 2, 6)]


@ON_SQLITE
def test_nothing_is_summed_of_a_team_that_there_is_not(store: Database, charger: Charger) -> None:
    with pytest.raises(UnknownTeam):
        sums(store, "key", team="nobody")


@ON_SQLITE
def test_names_of_adapters_are_told_apart_by_case(store: Database, charger: Charger) -> None:
    charger.charge("ann", 1, NOVEMBER, adapter="lab/pets@1")
    charger.charge("ann", 2, NOVEMBER, adapter="lab/Pets@1")
    assert sums(store, "adapter", adapter="lab/Pets") == [("lab/Pets", 2, 6)]


@ON_SQLITE
def test_the_database_sums_by_what_is_named_alone(store: Database, charger: Charger) -> None:
    for name, day in (("ann", 0), ("bob", 0), ("ann", 1), ("ann", 2)):
        charger.charge(name, 1, NOVEMBER + day * DAY_MS)
    with store.reading() as connection:
        assert len(charged(connection, Selection(), ["model"])) == 1
        assert len(charged(connection, Selection(), ["team", "key"])) == 2
        assert len(charged(connection, Selection(team="vision"), ["day"])) == 3
