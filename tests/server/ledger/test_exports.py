"""Lines that are written out are those that charge something, each with its key."""

from __future__ import annotations

import pytest

from craft_server.database import Database
from craft_server.ledger import exports, keys, leases
from craft_server.ledger.charges import Work, refund, reserve, settle
from craft_shared.units import Units

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
        lines = list(exports.lines(connection, exports.Selection()))
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
        (line,) = exports.lines(connection, exports.Selection())
    cells = exports.text(line, "csv")
    assert '"\'=HYPERLINK(""x"")",\'@team\\x1b[31m,' in cells
    assert ",'+run," in cells
    assert line.owner == '=HYPERLINK("x")'


@ON_SQLITE
@pytest.mark.parametrize("of_key", [False, True])
def test_a_page_begins_after_what_the_one_before_has_named(
    store: Database, prefix: str, monkeypatch: pytest.MonkeyPatch, of_key: bool
) -> None:
    monkeypatch.setattr(exports, "_LINES_A_PAGE", 1)
    selection = exports.Selection(prefix if of_key else None)
    with store.reading() as connection:
        first, second = exports.lines(connection, selection)
        one = exports.page(connection, selection)
        assert one.lines == [first]
        assert one.next_after is not None
        assert exports.page(connection, selection, after=one.next_after).lines == [second]


@ON_SQLITE
@pytest.mark.parametrize("of_key", [False, True])
def test_a_page_examines_so_many_lines_whether_or_not_they_are_wanted(
    store: Database, prefix: str, monkeypatch: pytest.MonkeyPatch, of_key: bool
) -> None:
    monkeypatch.setattr(exports, "_EXAMINED_A_PAGE", 2)
    selection = exports.Selection(prefix if of_key else None, since=NOW + 1)
    with store.reading() as connection:
        assert exports.page(connection, selection) == exports.Page([], 2)
        assert exports.page(connection, selection, after=2) == exports.Page([], None)


@ON_SQLITE
def test_a_line_names_its_keys_newest_secret(store: Database, prefix: str) -> None:
    with store.writing() as connection:
        newest = keys.prefix_of(keys.rotate_key(connection, prefix, overlap_ms=1, at=NOW + 1))
        assert [line.key for line in exports.lines(connection, exports.Selection(prefix))] == [
            newest,
            newest,
        ]
