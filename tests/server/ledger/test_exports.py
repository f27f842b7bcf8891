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
def test_a_page_begins_after_the_line_that_it_is_told(store: Database, prefix: str) -> None:
    with store.reading() as connection:
        first, second = exports.lines(connection, exports.Selection())
        for after, page in ((0, [first]), (first.id, [second]), (second.id, [])):
            assert (
                list(exports.lines(connection, exports.Selection(), after=after, limit=1)) == page
            )
        assert first.key == prefix


@ON_SQLITE
def test_a_line_of_a_key_that_is_newer_than_the_list_of_keys_has_its_key(
    store: Database, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.reading() as connection:
        lists = iter([[], *[keys.list_keys(connection)] * 2])
        monkeypatch.setattr(exports, "list_keys", lambda _: next(lists))
        lines = list(exports.lines(connection, exports.Selection()))
    assert [line.key for line in lines] == [prefix, prefix]
