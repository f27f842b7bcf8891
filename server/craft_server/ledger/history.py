"""The ledger over time, for who looks at it: sums of days, and the newest lines.

It only reads. It does not know who looks, nor how it is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from craft_server.ledger.account import as_charge, units_of
from craft_server.ledger.tables import CHARGES
from craft_shared.units import MEASURES, Units
from craft_shared.wire import Charge

DAY_MS = 86_400_000


@dataclass(frozen=True)
class Day:
    """What was charged on one day (UTC); `start` is its beginning in milliseconds."""

    start: int
    units: Units
    cost_micros: int


def daily(connection: sa.Connection, key_id: int, *, days: int, at: int) -> list[Day]:
    """What the key was charged on each of so many days until now, the oldest first.

    Calls that still run are left out, and so are refunded ones.
    """
    today = at // DAY_MS
    first = today - days + 1
    # Written out, because PostgreSQL takes two parameters for two different expressions.
    day = CHARGES.c.at // sa.literal_column(str(DAY_MS))
    rows = connection.execute(
        sa.select(
            day.label("day"),
            *(
                sa.cast(sa.func.sum(CHARGES.c[measure]), sa.BigInteger).label(measure)
                for measure in MEASURES
            ),
        )
        .where(
            CHARGES.c.key_id == key_id,
            CHARGES.c.state == "settled",
            CHARGES.c.at >= first * DAY_MS,
        )
        .group_by(day)
    )
    charged = {row.day: Day(row.day * DAY_MS, units_of(row), row.cost_micros) for row in rows}
    return [charged.get(n, Day(n * DAY_MS, Units(), 0)) for n in range(first, today + 1)]


def newest(connection: sa.Connection, key_id: int, *, limit: int) -> list[Charge]:
    """The key's newest lines, the newest first; refunded ones are left out."""
    rows = connection.execute(
        sa.select(CHARGES)
        .where(CHARGES.c.key_id == key_id, CHARGES.c.state != "refunded")
        .order_by(CHARGES.c.line.desc())
        .limit(limit)
    )
    return [as_charge(row) for row in rows]
