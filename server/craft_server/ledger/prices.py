"""Prices: what a unit costs on a model, in millionths of the provider's currency (micros)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from craft_server.database import insert_missing
from craft_server.ledger.tables import PRICES
from craft_server.statements import Asked, Statement
from craft_shared.units import UNITS, Unit, Units

_OF_MODEL = Statement(
    sa.select(PRICES.c.unit, PRICES.c.micros).where(PRICES.c.model == sa.bindparam("model"))
)

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


def prices_of(model: str) -> Asked:
    """The statement that reads the model's prices, for `price`."""
    return _OF_MODEL, {"model": model}


def price(prices: Sequence[Any], units: Units) -> int:
    """What so many units cost at these prices, in micros."""
    return sum(units[row.unit] * row.micros for row in prices)
