"""What was charged, as pages show it: totals with their bars, and tables of sums."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from craft_server.console.charts import BarChart, bar_chart
from craft_server.ledger.sums import Sum, summed
from craft_shared.units import MEASURES, UNITS, Measure


@dataclass(frozen=True)
class Spent:
    """A measure over time: what was charged on each day, or in each month, and in all."""

    measure: Measure
    amounts: list[int]
    total: int
    chart: BarChart


def spent_over(sums: Iterable[Sum], by: str, times: Sequence[str]) -> list[Spent]:
    """Each measure over the days, or the months, that are named."""
    charged = {row[by]: row for row in summed(sums, (by,))}
    nothing = dict.fromkeys(MEASURES, 0)
    over = {
        measure: [charged.get(time, nothing)[measure] for time in times] for measure in MEASURES
    }
    return [
        Spent(measure, over[measure], sum(over[measure]), bar_chart(over[measure]))
        for measure in shown_measures(any(over["cost_micros"]))
    ]


def shown_measures(priced: bool) -> list[Measure]:
    """What a page has a column of; most providers charge no money."""
    return [*(("cost_micros",) if priced else ()), *UNITS]


@dataclass(frozen=True)
class Table:
    """What was charged by something; `left_out` rows would have followed."""

    by: str  # what it sums by
    rows: Sequence[Mapping[str, Any]]
    left_out: int


def table(sums: Iterable[Sum], by: str, also: Sequence[str] = (), *, most: int) -> Table:
    """Up to so many rows: of times the newest first, of all else what was charged most.

    Of each row it also has what goes along with what it sums by.
    """
    rows = summed(sums, (by, *also))
    if by in ("day", "month"):
        rows.reverse()
    else:
        rows.sort(key=lambda row: [-row[measure] for measure in shown_measures(True)])
    return Table(by, rows[:most], max(0, len(rows) - most))
