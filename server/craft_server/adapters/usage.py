"""What was classified with each version, by everybody: counts, and nobody's name."""

from __future__ import annotations

import sqlalchemy as sa

from craft_server.adapters.references import NoSuchAdapter
from craft_server.adapters.tables import ADAPTER_TOTALS, ADAPTERS
from craft_server.ledger.account import units_of
from craft_server.statements import Statement, run
from craft_shared.units import UNITS, Units
from craft_shared.wire import AdapterUsage, AdapterUse

_ADD = Statement(
    sa.update(ADAPTER_TOTALS)
    .where(ADAPTER_TOTALS.c.adapter_id == sa.bindparam("of_adapter"))
    .values(
        calls=ADAPTER_TOTALS.c.calls + sa.literal_column("1"),
        **{unit: ADAPTER_TOTALS.c[unit] + sa.bindparam(f"add_{unit}") for unit in UNITS},
    )
)


def count_use(connection: sa.Connection, adapter_id: int, units: Units) -> None:
    """Adds one charged call."""
    amounts = {f"add_{unit}": amount for unit, amount in units.model_dump().items()}
    run(connection, (_ADD, {"of_adapter": adapter_id, **amounts}))


def usage(connection: sa.Connection, owner: str, name: str) -> AdapterUsage:
    """What was classified with all versions under the owner's name, the retired ones too.

    Raises:
        NoSuchAdapter: there is none.
    """
    rows = connection.execute(
        sa.select(ADAPTERS.c.version, ADAPTER_TOTALS)
        .join(ADAPTER_TOTALS, ADAPTER_TOTALS.c.adapter_id == ADAPTERS.c.id)
        .where(ADAPTERS.c.owner == owner, ADAPTERS.c.name == name)
        .order_by(ADAPTERS.c.version)
    ).all()
    if not rows:
        raise NoSuchAdapter(name)
    return AdapterUsage(
        owner=owner,
        name=name,
        versions=[
            AdapterUse(
                version=row.version,
                calls=row.calls,
                units=units_of(row),
            )
            for row in rows
        ],
    )
