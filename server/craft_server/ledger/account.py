"""A key's account as the key reads it: its lines, their sums, what one call did cost.

It only reads, within its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from craft_server.clock import rfc3339
from craft_server.ledger.budgets import list_budgets
from craft_server.ledger.keys import Caller
from craft_server.ledger.tables import BUDGETS, CHARGES, NOTICES, RESERVED, TOTALS
from craft_shared.units import MEASURES, UNITS, Measure, Units
from craft_shared.wire import Charge, Cost, Usage

# Of lines; PostgreSQL's sums of BIGINT are NUMERIC.
SUMS = tuple(
    sa.cast(sa.func.sum(CHARGES.c[measure]), sa.BigInteger).label(measure) for measure in MEASURES
)


def cost_of(
    connection: sa.Connection,
    caller: Caller,
    charge_id: int | None,
    at: int,
    user: int | None = None,
) -> Cost:
    """What a call did cost its caller, and what bounds the caller and its end user now."""
    budgets = list_budgets(connection, caller.key_id, caller.team_id, at, user)
    row = connection.execute(
        sa.select(CHARGES).where(CHARGES.c.id == charge_id, CHARGES.c.key_id == caller.key_id)
    ).one_or_none()
    if row is None:
        return Cost(charged=Units(), budgets=budgets)
    return Cost(charged=units_of(row), cost_micros=row.cost_micros, budgets=budgets)


def usage(
    connection: sa.Connection, key_id: int, *, after: int, limit: int, user: str | None = None
) -> Usage:
    """The key's totals, and up to `limit` of its lines after that number; or one end user's."""
    of_key = CHARGES.c.key_id == key_id
    if user is None:
        total = sa.select(TOTALS).where(TOTALS.c.key_id == key_id)
    else:
        of_key = sa.and_(of_key, CHARGES.c.end_user == user)
        sums = (sa.func.coalesce(each, 0).label(each.name) for each in SUMS)
        total = sa.select(*sums).where(of_key, CHARGES.c.state == "settled")
    totals = connection.execute(total).one()
    rows = connection.execute(
        sa.select(CHARGES)
        .where(of_key, CHARGES.c.state != "refunded", CHARGES.c.line > after)
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


def first_at(connection: sa.Connection, key_id: int | None) -> int | None:
    """When the key, or any if none is named, made its first call; None where it has made none."""
    query = sa.select(CHARGES.c.at).order_by(CHARGES.c.at).limit(1)
    if key_id is not None:
        query = query.where(CHARGES.c.key_id == key_id)
    found: int | None = connection.execute(query).scalar()
    return found


def as_charge(row: sa.Row[tuple[object, ...]]) -> Charge:
    """A line of the table as its key sees it."""
    return Charge(
        id=row.line,
        at=rfc3339(row.at),
        call=row.call,
        run=row.run,
        user=row.end_user,
        model=row.model,
        revision=row.revision,
        state=row.state,
        units=units_of(row),
        cost_micros=row.cost_micros,
        adapter=row.adapter,
    )


def units_of(row: sa.Row[tuple[object, ...]]) -> Units:
    """The units in a row that has a column for each."""
    return Units(**{unit: row._mapping[unit] for unit in UNITS})


@dataclass(frozen=True)
class LedgerMeasures:
    """The ledger at one moment."""

    open_reservations: int  # calls whose units are set aside
    # Budgets of which more is spent and reserved than their limit; 0, or the ledger is broken.
    overshoot: int
    waiting_notices: int  # of shares of budgets that were spent, not sent to everyone yet
    settled: Mapping[Measure, int]  # of each measure what all keys together were charged


_MEASURE = sa.select(
    sa.select(sa.func.count())
    .select_from(CHARGES)
    .where(RESERVED)
    .scalar_subquery()
    .label("open_reservations"),
    sa.select(sa.func.count())
    .select_from(BUDGETS)
    .where(BUDGETS.c.spent + BUDGETS.c.reserved > BUDGETS.c.limit)
    .scalar_subquery()
    .label("overshoot"),
    sa.select(sa.func.count())
    .select_from(NOTICES)
    .where(NOTICES.c.closed_at.is_(None))
    .scalar_subquery()
    .label("waiting_notices"),
    *(sa.func.coalesce(sa.func.sum(TOTALS.c[measure]), 0).label(measure) for measure in MEASURES),
)


def measure(connection: sa.Connection) -> LedgerMeasures:
    """Reads the numbers; one statement."""
    row = connection.execute(_MEASURE).one()
    settled = {name: int(row._mapping[name]) for name in MEASURES}
    return LedgerMeasures(row.open_reservations, row.overshoot, row.waiting_notices, settled)
