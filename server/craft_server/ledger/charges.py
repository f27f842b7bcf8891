"""Charges: a reservation before the work, then exactly one of settlement or refund.

Every function is one transaction of its caller. What holds under any concurrency: for each budget,
spent + reserved <= limit; spent is the sum of the key's settled lines and reserved the sum of its
reserved ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from craft_server.clock import now
from craft_server.ledger.budgets import list_budgets
from craft_server.ledger.tables import BUDGETS, CHARGES
from craft_shared.units import UNITS, Unit, Units
from craft_shared.wire import Budget, Charge, Usage


@dataclass(frozen=True)
class Shortfall:
    """One budget that does not cover a call."""

    unit: Unit
    needed: int
    remaining: int


class BudgetExhausted(Exception):  # noqa: N818 - the problem type's name
    """The key's budgets do not cover the call. Nothing was reserved."""

    def __init__(self, shortfalls: list[Shortfall]) -> None:
        super().__init__(shortfalls)
        self.shortfalls = shortfalls


class ChargeClosed(Exception):  # noqa: N818 - reads as what it is where it is caught
    """The charge was settled or refunded before."""


def reserve(connection: sa.Connection, key_id: int, *, call: str, model: str, units: Units) -> int:
    """Sets `units` aside in every budget of the key and writes the ledger's line.

    Returns:
        The charge's id.

    Raises:
        BudgetExhausted: a budget does not cover it; the transaction must then be undone.
    """
    # Always in the order of UNITS, so that two transactions never wait for each other in a circle.
    for unit in UNITS:
        if not _reserve_unit(connection, key_id, unit, units[unit]):
            raise BudgetExhausted(_shortfalls(connection, key_id, unit, units))
    charge_id: int = connection.execute(
        sa.insert(CHARGES)
        .values(
            key_id=key_id,
            at=now(),
            call=call,
            model=model,
            state="reserved",
            **units.model_dump(),
        )
        .returning(CHARGES.c.id)
    ).scalar_one()
    return charge_id


def settle(connection: sa.Connection, charge_id: int) -> list[Budget]:
    """Turns the reservation into spending and returns the key's budgets after it.

    Raises:
        ChargeClosed: it was settled or refunded before.
    """
    return _close(connection, charge_id, "settled")


def refund(connection: sa.Connection, charge_id: int) -> list[Budget]:
    """Gives the reservation back and returns the key's budgets after it.

    Raises:
        ChargeClosed: it was settled or refunded before.
    """
    return _close(connection, charge_id, "refunded")


def usage(connection: sa.Connection, key_id: int, *, after: int, limit: int) -> Usage:
    """The key's totals, and up to `limit` of its lines with an id above `after`."""
    charged = sa.and_(CHARGES.c.key_id == key_id, CHARGES.c.state != "refunded")
    sums = connection.execute(
        sa.select(*(sa.func.coalesce(sa.func.sum(CHARGES.c[unit]), 0) for unit in UNITS)).where(
            charged
        )
    ).one()
    rows = connection.execute(
        sa.select(CHARGES)
        .where(charged, CHARGES.c.id > after)
        .order_by(CHARGES.c.id)
        .limit(limit + 1)
    ).all()
    page = rows[:limit]
    return Usage(
        total=Units(**{unit: int(total) for unit, total in zip(UNITS, sums, strict=True)}),
        charges=[_line(row) for row in page],
        next_after=page[-1].id if len(rows) > limit else None,
    )


def _reserve_unit(connection: sa.Connection, key_id: int, unit: Unit, amount: int) -> bool:
    if amount == 0:
        return True
    of_unit = sa.and_(BUDGETS.c.key_id == key_id, BUDGETS.c.unit == unit)
    used = BUDGETS.c.spent + BUDGETS.c.reserved
    reserved = connection.execute(
        sa.update(BUDGETS)
        .where(of_unit, used + amount <= BUDGETS.c.limit)
        .values(reserved=BUDGETS.c.reserved + amount)
    )
    if reserved.rowcount == 1:
        return True
    bounded = connection.execute(sa.select(sa.exists().where(of_unit))).scalar_one()
    return not bounded


def _shortfalls(
    connection: sa.Connection, key_id: int, refused: Unit, units: Units
) -> list[Shortfall]:
    # Units before the refused one are reserved within this transaction, so they were covered. The
    # refused one is told even if another call has just given something back.
    return [
        Shortfall(budget.unit, units[budget.unit], budget.remaining)
        for budget in list_budgets(connection, key_id)
        if budget.unit == refused
        or (
            UNITS.index(budget.unit) > UNITS.index(refused)
            and units[budget.unit] > budget.remaining
        )
    ]


def _close(connection: sa.Connection, charge_id: int, state: str) -> list[Budget]:
    row = connection.execute(
        sa.update(CHARGES)
        .where(CHARGES.c.id == charge_id, CHARGES.c.state == "reserved")
        .values(state=state)
        .returning(CHARGES)
    ).one_or_none()
    if row is None:
        raise ChargeClosed(charge_id)
    for unit in UNITS:
        amount = row._mapping[unit]
        if amount == 0:
            continue
        spent = amount if state == "settled" else 0
        connection.execute(
            sa.update(BUDGETS)
            .where(BUDGETS.c.key_id == row.key_id, BUDGETS.c.unit == unit)
            .values(reserved=BUDGETS.c.reserved - amount, spent=BUDGETS.c.spent + spent)
        )
    return list_budgets(connection, row.key_id)


def _line(row: sa.Row[tuple[object, ...]]) -> Charge:
    return Charge(
        id=row.id,
        at=row.at,
        call=row.call,
        model=row.model,
        state=row.state,
        units=Units(**{unit: row._mapping[unit] for unit in UNITS}),
    )
