"""Monthly statements: what keys were charged in a month, by key, model and unit, with prices.

A call is charged at the price of its time, and its line says what it cost in all. So an amount is
shown at the price of today, and what that gets wrong as a difference of prices: the sum is exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa

from craft_server.clock import Period
from craft_server.ledger import sums
from craft_server.ledger.prices import list_prices
from craft_server.ledger.selection import Selection, of_lines
from craft_server.ledger.tables import CHARGES, RESERVED
from craft_shared.units import MEASURES, UNITS, Measure

PRICE_DIFFERENCE = "price difference"
_WHOSE = ("team", "owner", "name", "key", "model")  # in this order


@dataclass(frozen=True)
class StatementLine:
    """One unit of one model that one key was charged, or what prices of other times differ by."""

    team: str
    owner: str
    name: str
    key: str
    model: str
    unit: str  # or `PRICE_DIFFERENCE`
    amount: int | None
    price_micros: int | None  # of one, today
    cost_micros: int


@dataclass(frozen=True)
class Statement:
    """What was charged in a month."""

    month: str
    team: str | None  # of this team's keys; None is of all keys
    key: str | None  # of the key with this prefix
    lines: list[StatementLine]
    total: Mapping[Measure, int]
    running: int  # calls that were made in the month, and have been neither charged nor given back


def statement(
    connection: sa.Connection, month: Period, *, team: str | None = None, prefix: str | None = None
) -> Statement:
    """The statement of a team's keys, of one key, or of all.

    Raises:
        UnknownKey: no key has the prefix.
        UnknownTeam: no team has the name.
    """
    selection = Selection(prefix=prefix, team=team, since=month.since, until=month.until)
    found = sums.charged(connection, selection, _WHOSE)
    prices = list_prices(connection)
    lines: list[StatementLine] = []
    for charged in sums.summed(found, _WHOSE):
        whose = {name: charged[name] for name in _WHOSE}
        of_model = prices.get(charged["model"], {})
        units = [
            StatementLine(
                **whose,
                unit=unit,
                amount=charged[unit],
                price_micros=price,
                cost_micros=charged[unit] * price,
            )
            for unit in UNITS
            if charged[unit]
            for price in [of_model.get(unit, 0)]
        ]
        lines += units
        if difference := charged["cost_micros"] - sum(line.cost_micros for line in units):
            lines.append(
                StatementLine(
                    **whose,
                    unit=PRICE_DIFFERENCE,
                    amount=None,
                    price_micros=None,
                    cost_micros=difference,
                )
            )
    total: Counter[Measure] = Counter(dict.fromkeys(MEASURES, 0))
    for one in found:
        total.update(one.amounts)
    running: int = connection.execute(
        sa.select(sa.func.count())
        .select_from(CHARGES)
        .where(RESERVED, *of_lines(connection, selection))
    ).scalar_one()
    return Statement(month.name, team, prefix, lines, dict(total), running)


def rows(found: Statement) -> list[list[Any]]:
    """The statement as a table: what the columns are, each line, and the total."""
    columns = [field.name for field in fields(StatementLine)]
    total = dict.fromkeys(columns) | {"unit": "total", "cost_micros": found.total["cost_micros"]}
    return [
        list(columns),
        *([getattr(line, column) for column in columns] for line in found.lines),
        list(total.values()),
    ]
