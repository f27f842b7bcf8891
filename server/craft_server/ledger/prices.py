"""Prices: what a unit costs on a model, in millionths of the provider's currency (micros)."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from craft_server.database import insert_missing
from craft_server.ledger.tables import PRICES
from craft_shared.units import UNITS, Unit, Units

_OF_MODEL = sa.select(PRICES.c.unit, PRICES.c.micros).where(PRICES.c.model == sa.bindparam("model"))

Prices = dict[str, dict[Unit, int]]


def set_prices(connection: sa.Connection, model: str, micros: Mapping[Unit, int]) -> None:
    """Sets the model's price of each unit in `micros`; charges made before keep theirs."""
    for unit, price in micros.items():
        insert_missing(connection, PRICES, model=model, unit=unit, micros=price)
        connection.execute(
            sa.update(PRICES)
            .where(PRICES.c.model == model, PRICES.c.unit == unit)
            .values(micros=price)
        )


def list_prices(connection: sa.Connection) -> Prices:
    """Every model's prices; a unit without one is free."""
    prices: Prices = {}
    for row in connection.execute(sa.select(PRICES).order_by(PRICES.c.model)):
        prices.setdefault(row.model, {})[row.unit] = row.micros
    return {
        model: {unit: of_model[unit] for unit in UNITS if unit in of_model}
        for model, of_model in prices.items()
    }


def price_of_units() -> sa.ScalarSelect[int]:
    """What units cost on a model, in micros, as part of a statement.

    Its parameters are `model` and an amount of each unit, by the unit's name.
    """
    amounts = [(PRICES.c.unit == unit, sa.bindparam(unit, type_=sa.BigInteger)) for unit in UNITS]
    micros = sa.func.sum(PRICES.c.micros * sa.case(*amounts))
    return (
        sa.select(sa.cast(sa.func.coalesce(micros, sa.literal_column("0")), sa.BigInteger))
        .where(PRICES.c.model == sa.bindparam("model"))
        .scalar_subquery()
    )


def price(connection: sa.Connection, model: str, units: Units) -> int:
    """What so many units cost on the model, in micros."""
    rows = connection.execute(_OF_MODEL, {"model": model})
    return sum(units[row.unit] * row.micros for row in rows)
