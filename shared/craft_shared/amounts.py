"""The names of what is counted and of budgets' windows, and the largest amounts accepted.

It is apart from `craft_shared.units` because command lines need it before anything else, and it
imports next to nothing.
"""

from __future__ import annotations

from typing import Literal, get_args

Unit = Literal["queries", "predictions", "images", "texts", "requests"]
UNITS: tuple[Unit, ...] = get_args(Unit)
SPARE_UNITS = UNITS[:0:-1]  # what a narrow table does without, the first one first

# What a budget may bound: units, or their price in millionths of the provider's currency.
Measure = Literal["queries", "predictions", "images", "texts", "requests", "cost_micros"]
MEASURES: tuple[Measure, ...] = get_args(Measure)

# After which a budget begins anew (UTC); a lifetime does not end.
Window = Literal["lifetime", "month", "week", "day", "hour"]

MAX_INTEGER = 2**53  # the integers that every JSON parser holds exactly, and every database
MAX_AMOUNT = 10**15  # of a unit, in one budget or top-up
MAX_PRICE_MICROS = 10**9  # of one unit: what a call costs stays within 64 bits
MAX_DECIMALS = 6  # single precision holds no more


def counted(amount: int, unit: str) -> str:
    """An amount of a unit in words: 1 query, 8,000 queries."""
    one = "query" if unit == "queries" else unit.removesuffix("s")
    return f"{amount:,} {one if amount == 1 else unit}"
