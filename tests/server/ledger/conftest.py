"""A ledger with keys of two teams, and charges of them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from craft_server.database import Database
from craft_server.ledger import keys, leases
from craft_server.ledger.charges import Reservation, Work, refund, reserve, settle
from craft_server.ledger.keys import Caller
from craft_server.ledger.prices import set_prices
from craft_shared.units import Units

NOVEMBER = 1_793_491_200_000  # 2026-11-01
DECEMBER = 1_796_083_200_000
DAY_MS = 86_400_000


@dataclass
class Charger:
    """Charges keys as a server does; a query costs three micros."""

    store: Database
    callers: dict[str, Caller]

    def reserve(
        self, name: str, queries: int, at: int, adapter: str | None = None, model: str = "tiny"
    ) -> Reservation:
        work = Work("predictions", model, "r1", Units(queries=queries), adapter=adapter)
        with self.store.writing() as connection:
            return reserve(connection, self.callers[name], work, holder="a server", at=at)

    def charge(self, name: str, queries: int, at: int, **of: str) -> None:
        """A call that is settled a day after it was made."""
        reserved = self.reserve(name, queries, at, **of)
        with self.store.writing() as connection:
            settle(connection, reserved, at + DAY_MS)

    def give_back(self, name: str, queries: int, at: int) -> None:
        """A call that failed."""
        reserved = self.reserve(name, queries, at)
        with self.store.writing() as connection:
            refund(connection, reserved.charge_id, at)


@pytest.fixture
def charger(store: Database) -> Charger:
    """Keys `ann` and `bob` of the team `vision`, `cleo` of `text`, and `dan` of none."""
    found: dict[str, Caller] = {}
    with store.writing() as connection:
        leases.renew(connection, "a server", 2 * DECEMBER)
        set_prices(connection, "tiny", {"queries": 3})
        for name, team in (("ann", "vision"), ("bob", "vision"), ("cleo", "text"), ("dan", None)):
            key = keys.create_key(connection, owner=f"{name} & co", name=name, team=team, at=0)
            caller = keys.authenticate(connection, key, 0)
            assert caller is not None
            found[name] = caller
    return Charger(store, found)
