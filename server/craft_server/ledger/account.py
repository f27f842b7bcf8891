"""A key's account as the key reads it: its lines, their sums, what one call did cost.

It only reads, within its caller's transaction. It does not know how a line comes to be.
"""

from __future__ import annotations

import sqlalchemy as sa

from craft_server.clock import rfc3339
from craft_server.ledger.budgets import list_budgets
from craft_server.ledger.keys import Caller
from craft_server.ledger.tables import CHARGES, TOTALS
from craft_shared.units import UNITS, Units
from craft_shared.wire import Charge, Cost, Usage


def cost_of(connection: sa.Connection, caller: Caller, charge_id: int | None, at: int) -> Cost:
    """What a call did cost its caller, and the caller's budgets as they are now."""
    budgets = list_budgets(connection, caller.key_id, caller.team_id, at)
    row = connection.execute(
        sa.select(CHARGES).where(CHARGES.c.id == charge_id, CHARGES.c.key_id == caller.key_id)
    ).one_or_none()
    if row is None:
        return Cost(charged=Units(), budgets=budgets)
    return Cost(charged=units_of(row), cost_micros=row.cost_micros, budgets=budgets)


def usage(connection: sa.Connection, key_id: int, *, after: int, limit: int) -> Usage:
    """The key's totals, and up to `limit` of its lines after that number."""
    totals = connection.execute(sa.select(TOTALS).where(TOTALS.c.key_id == key_id)).one()
    rows = connection.execute(
        sa.select(CHARGES)
        .where(CHARGES.c.key_id == key_id, CHARGES.c.state != "refunded", CHARGES.c.line > after)
        .order_by(CHARGES.c.line)
        .limit(limit + 1)
    ).all()
    page = rows[:limit]
    return Usage(
        total=units_of(totals),
        cost_micros=totals.cost_micros,
        charges=[as_charge(row) for row in page],
        next_after=page[-1].line if len(rows) > limit else None,
    )


def as_charge(row: sa.Row[tuple[object, ...]]) -> Charge:
    """A line of the table as its key sees it."""
    return Charge(
        id=row.line,
        at=rfc3339(row.at),
        call=row.call,
        run=row.run,
        model=row.model,
        revision=row.revision,
        state=row.state,
        units=units_of(row),
        cost_micros=row.cost_micros,
    )


def units_of(row: sa.Row[tuple[object, ...]]) -> Units:
    """The units in a row that has a column for each."""
    return Units(**{unit: row._mapping[unit] for unit in UNITS})
