"""Usage and runs as tables for pandas and Arrow: columns with types, and with units in their names.

pandas and pyarrow are optional (the extras `pandas` and `arrow`), and are imported when a table is
turned into theirs. Columns named after a unit (`queries`, `predictions`, `images`, `texts`,
`requests`) count it; `cost_micros` is in millionths of the provider's currency. What is not known
is null.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from craft_client.exceptions import MissingPackage
from craft_client.runs import Run
from craft_shared.display import Displayed, View
from craft_shared.units import UNITS
from craft_shared.wire import Usage

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Kind = Literal["text", "integer", "number", "time"]

_PANDAS = {"text": "string", "integer": "Int64", "number": "float64"}


@dataclass(frozen=True)
class Column:
    """A column: `integer` is of 64 bits, `number` in double precision, `time` in UTC.

    Times are to the microsecond. A value of None is not known.
    """

    name: str  # with the values' unit
    kind: Kind
    values: Sequence[Any]


@dataclass(frozen=True, repr=False)
class Table(Displayed):
    """Columns of equal length."""

    columns: Sequence[Column]

    def to_pandas(self) -> pd.DataFrame:
        """A data frame: `string`, nullable `Int64`, `float64` and `datetime64[us, UTC]`.

        Raises:
            MissingPackage: pandas is not installed.
        """
        pandas = _imported("pandas", "pandas")
        series = {
            column.name: pandas.to_datetime(
                pandas.Series(column.values, dtype="object"), utc=True
            ).dt.as_unit("us")
            if column.kind == "time"
            else pandas.Series(column.values, dtype=_PANDAS[column.kind])
            for column in self.columns
        }
        return pandas.DataFrame(series)

    def to_arrow(self) -> pa.Table:
        """An Arrow table: `string`, `int64`, `double` and `timestamp[us, tz=UTC]`.

        Raises:
            MissingPackage: pyarrow is not installed.
        """
        arrow = _imported("pyarrow", "arrow")
        types = {
            "text": arrow.string(),
            "integer": arrow.int64(),
            "number": arrow.float64(),
            "time": arrow.timestamp("us", "UTC"),
        }
        return arrow.table(
            {column.name: arrow.array(column.values, types[column.kind]) for column in self.columns}
        )

    def _view(self) -> View:
        rows = list(zip(*(column.values for column in self.columns), strict=True))
        return View(f"of {len(rows):,} rows", {}, [column.name for column in self.columns], rows)


def charges(usage: Usage) -> Table:
    """What `Client.usage` answered, a row each charge."""
    found = usage.charges
    return Table(
        [
            Column("id", "integer", [charge.id for charge in found]),
            Column("at", "time", [_time(charge.at) for charge in found]),
            Column("call", "text", [charge.call for charge in found]),
            Column("run", "text", [charge.run for charge in found]),
            Column("model", "text", [charge.model for charge in found]),
            Column("revision", "text", [charge.revision for charge in found]),
            Column("state", "text", [charge.state for charge in found]),
            *(Column(unit, "integer", [charge.units[unit] for charge in found]) for unit in UNITS),
            Column("cost_micros", "integer", [charge.cost_micros for charge in found]),
        ]
    )


def history(runs: Iterable[Run]) -> Table:
    """The course of runs, a row for each one's first request and each of its generations.

    Losses are in nats, accuracies in percent on the training pictures; charges are sums until then.
    """
    found = [(run.name, number, point) for run in runs for number, point in enumerate(run.points)]
    points = [point for _, _, point in found]
    return Table(
        [
            Column("run", "text", [name for name, _, _ in found]),
            Column("point", "integer", [number for _, number, _ in found]),
            Column("queries", "integer", [point.queries for point in points]),
            Column("predictions", "integer", [point.predictions for point in points]),
            Column("cost_micros", "integer", [point.cost_micros for point in points]),
            Column("loss_nats", "number", [point.loss for point in points]),
            Column("best_loss_nats", "number", [point.best_loss for point in points]),
            Column("accuracy_percent", "number", [point.accuracy for point in points]),
        ]
    )


def outcomes(runs: Iterable[Run]) -> Table:
    """What runs were asked for, charged and came to, a row each run.

    Accuracies are of the training pictures, those of `evaluation` of the pictures that
    `evaluated_on` names, with Wilson's 95 % interval.
    """
    found = list(runs)
    settings = [run.about.settings for run in found]
    ends = [run.summary for run in found]
    tested = [run.evaluation for run in found]
    return Table(
        [
            Column("run", "text", [run.name for run in found]),
            Column("started_at", "time", [_time(run.about.started_at) for run in found]),
            Column("state", "text", [run.state for run in found]),
            Column("model", "text", [run.about.model for run in found]),
            Column("data", "text", [run.data for run in found]),
            Column("recipe", "text", [one.recipe for one in settings]),
            Column("shots", "integer", [one.shots for one in settings]),
            Column("seed", "integer", [one.seed for one in settings]),
            Column("budget_queries", "integer", [one.budget for one in settings]),
            *(Column(unit, "integer", [run.units[unit] for run in found]) for unit in UNITS),
            Column("cost_micros", "integer", [run.cost_micros for run in found]),
            Column("prompts", "integer", [run.prompts for run in found]),
            Column("accuracy_before_percent", "number", [e and e.accuracy_before for e in ends]),
            Column("accuracy_after_percent", "number", [e and e.accuracy_after for e in ends]),
            Column("evaluated_on", "text", [t and t.subject for t in tested]),
            Column(
                "evaluation_before_percent", "number", [t and t.before.accuracy for t in tested]
            ),
            Column("evaluation_percent", "number", [t and t.accuracy for t in tested]),
            Column("evaluation_low_percent", "number", [t and t.interval[0] for t in tested]),
            Column("evaluation_high_percent", "number", [t and t.interval[1] for t in tested]),
        ]
    )


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _imported(package: str, extra: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise MissingPackage(
            f"Tables for {package} need the package {package}.",
            remedy=f'Install it: pip install "craftbox[client,{extra}]".',
        ) from error
