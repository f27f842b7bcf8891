"""What a key reads of its own account."""

from __future__ import annotations

from craft_server.database import Database
from craft_server.ledger import leases
from craft_server.ledger.account import usage
from craft_server.ledger.charges import Work, reserve
from craft_server.ledger.keys import authenticate, create_key
from craft_shared.units import Units

NOW = 1_800_000_000_000


def test_a_line_names_the_adapter_that_it_was_charged_for(store: Database) -> None:
    with store.writing() as connection:
        leases.renew(connection, "a server", NOW + 1000)
        caller = authenticate(connection, create_key(connection, owner="lab", at=0), NOW)
        assert caller is not None
        for adapter in ("lab/pets@2", None):
            work = Work("predictions", "tiny", "r1", Units(queries=1), adapter=adapter)
            reserve(connection, caller, work, holder="a server", at=NOW)
    with store.reading() as connection:
        lines = usage(connection, caller.key_id, after=0, limit=10).charges
    assert [line.adapter for line in lines] == ["lab/pets@2", None]
