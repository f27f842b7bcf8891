"""Lines that are written out are those that charge something, each with its key."""

from __future__ import annotations

import pytest

from craft_server.database import Database
from craft_server.ledger import exports, keys, leases
from craft_server.ledger.charges import Work, refund, reserve, settle
from craft_server.ledger.selection import Selection
from craft_shared.units import Units
from server.ledger.conftest import NOVEMBER, Charger

NOW = 1_800_000_000_000
# For statements that read the same on both stores: PostgreSQL's takes long to set up.
ON_SQLITE = pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)


@pytest.fixture
def prefix(store: Database) -> str:
    """Of a key with a settled, a refunded and a reserved line."""
    with store.writing() as connection:
        leases.renew(connection, "a server", NOW + 1000)
        key = keys.create_key(connection, owner="owner", at=NOW)
        caller = keys.authenticate(connection, key, NOW)
        assert caller is not None
        work = Work("predictions", "tiny", "r1", Units(queries=1))
        settled, given_back, _ = (
            reserve(connection, caller, work, holder="a server", at=NOW) for _ in range(3)
        )
        settle(connection, settled, NOW)
        refund(connection, given_back.charge_id, NOW)
    return keys.prefix_of(key)


@ON_SQLITE
def test_what_was_given_back_is_left_out(store: Database, prefix: str) -> None:
    with store.reading() as connection:
        lines = list(exports.lines(connection, Selection()))
    assert [(line.line, line.key, line.state) for line in lines] == [
        (1, prefix, "settled"),
        (3, prefix, "reserved"),
    ]


@ON_SQLITE
def test_names_that_were_made_before_they_were_checked_are_no_formulas(store: Database) -> None:
    with store.writing() as connection:
        leases.renew(connection, "a server", NOW + 1000)
        key = keys.create_key(connection, owner='=HYPERLINK("x")', team="@team\x1b[31m", at=NOW)
        caller = keys.authenticate(connection, key, NOW)
        assert caller is not None
        work = Work("predictions", "tiny", "r1", Units(queries=1), "+run")
        reserve(connection, caller, work, holder="a server", at=NOW)
        (line,) = exports.lines(connection, Selection())
    cells = exports.text(line, "csv")
    assert '"\'=HYPERLINK(""x"")",\'@team\\x1b[31m,' in cells
    assert ",'+run," in cells
    assert line.owner == '=HYPERLINK("x")'


@pytest.mark.parametrize("of_key", [False, True])
@pytest.mark.parametrize("newest_first", [False, True])
def test_a_page_begins_after_the_place_that_the_one_before_has_named(
    store: Database, charger: Charger, of_key: bool, newest_first: bool
) -> None:
    # Several at one time, and one whose server's clock is behind.
    for at in (NOVEMBER, NOVEMBER, NOVEMBER + 2, NOVEMBER + 1, NOVEMBER + 2):
        charger.charge("ann", 1, at)
    charger.give_back("ann", 1, NOVEMBER)
    selection = Selection(charger.callers["ann"].prefix if of_key else None)
    shown: list[int] = []
    after = None
    with store.reading() as connection:
        for rest in (4, 3, 2, 1, 0):
            page = exports.page(
                connection, selection, after=after, limit=1, newest_first=newest_first
            )
            shown += [line.line for line in page.lines]
            after = page.next_after
            assert (after is None) == (rest == 0)
    assert shown == ([5, 3, 4, 2, 1] if newest_first else [1, 2, 4, 3, 5])


@ON_SQLITE
def test_a_place_among_one_keys_lines_tells_nothing_of_others(
    store: Database, charger: Charger
) -> None:
    for name in ("bob", "bob", "bob", "ann", "ann"):
        charger.charge(name, 1, NOVEMBER)
    with store.reading() as connection:
        page = exports.page(connection, Selection(charger.callers["ann"].prefix), limit=1)
    assert page.next_after == exports.Place(NOVEMBER, 1)


@ON_SQLITE
def test_a_line_names_its_keys_newest_secret(store: Database, prefix: str) -> None:
    with store.writing() as connection:
        newest = keys.prefix_of(keys.rotate_key(connection, prefix, overlap_ms=1, at=NOW + 1))
        assert [line.key for line in exports.lines(connection, Selection(prefix))] == [
            newest,
            newest,
        ]
