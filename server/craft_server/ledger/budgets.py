"""Budgets: what bounds a key, and how the operator raises a bound."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from craft_server.ledger.tables import BUDGETS
from craft_shared.units import UNITS, Unit
from craft_shared.wire import Budget


class UnboundedUnit(Exception):  # noqa: N818 - reads as what it is where it is caught
    """The key has no budget on this unit, so there is nothing to raise."""

    def __init__(self, unit: Unit) -> None:
        super().__init__(unit)
        self.unit = unit


def list_budgets(connection: sa.Connection, key_id: int) -> list[Budget]:
    """The key's budgets, in the order of `UNITS`; a unit without one is not bounded."""
    rows = connection.execute(sa.select(BUDGETS).where(BUDGETS.c.key_id == key_id))
    budgets = [
        Budget(
            unit=row.unit,
            limit=row.limit,
            spent=row.spent,
            reserved=row.reserved,
            remaining=row.limit - row.spent - row.reserved,
        )
        for row in rows
    ]
    return sorted(budgets, key=lambda budget: UNITS.index(budget.unit))


def top_up(connection: sa.Connection, key_id: int, amounts: Mapping[Unit, int]) -> list[Budget]:
    """Adds to the limits of the key's budgets and returns all of them.

    Raises:
        UnboundedUnit: the key has no budget on one of the units.
    """
    for unit, amount in amounts.items():
        raised = connection.execute(
            sa.update(BUDGETS)
            .where(BUDGETS.c.key_id == key_id, BUDGETS.c.unit == unit)
            .values(limit=BUDGETS.c.limit + amount)
        )
        if raised.rowcount == 0:
            raise UnboundedUnit(unit)
    return list_budgets(connection, key_id)
