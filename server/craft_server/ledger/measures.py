"""The whole ledger in a few numbers, for its operator: one statement, however long it has become.

It knows sums over all keys; it does not know who they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from craft_server.ledger.tables import BUDGETS, CHARGES, RESERVED, TOTALS
from craft_shared.units import MEASURES, Measure


@dataclass(frozen=True)
class LedgerMeasures:
    """The ledger at one moment.

    Attributes:
        open_reservations: calls whose units are set aside.
        overshoot: budgets of which more is spent and reserved than their limit; 0, or the ledger is
            broken.
        settled: of each measure what all keys together were charged.
    """

    open_reservations: int
    overshoot: int
    settled: Mapping[Measure, int]


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
    *(sa.func.coalesce(sa.func.sum(TOTALS.c[measure]), 0).label(measure) for measure in MEASURES),
)


def measure(connection: sa.Connection) -> LedgerMeasures:
    """Reads the numbers; one statement."""
    row = connection.execute(_MEASURE).one()
    settled = {name: int(row._mapping[name]) for name in MEASURES}
    return LedgerMeasures(row.open_reservations, row.overshoot, settled)
