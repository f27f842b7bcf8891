"""Runs of several methods beside each other: means, spreads, intervals, paired differences.

Data sets are fixed and seeds are the sample: an interval says what other seeds would have brought.
A mean over data sets is taken seed by seed, of the seeds that all of them have.

Source: Student, Biometrika 1908 (the interval of a mean of few).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from craft_client.blackbox import currency
from craft_client.evaluation import Interval
from craft_client.recipes import Option, label
from craft_client.runs import Run
from craft_shared.amounts import UNITS, Measure
from craft_shared.names import made_sound

# Predictions lead: they count a mini-batch for what it is, and a query for all images that it saw.
SPENT: tuple[Measure, ...] = (
    "predictions", "queries", "images", "texts", "requests", "cost_micros"
)  # fmt: skip
ZERO_SHOT = "zero-shot"
LONGEST_SETTING = 60  # characters, in the name of a method


@dataclass(frozen=True)
class Asked:
    """A budget that a run was given: so much of a unit."""

    amount: int
    unit: Measure

    def __str__(self) -> str:
        amount = amount_of(self.unit, self.amount)
        return f"cost {amount}" if self.unit == "cost_micros" else f"{amount} {self.unit}"

    @property
    def option(self) -> str:
        """As `--budget` takes it, which folders are named by too."""
        return f"{unit_name(self.unit)}={amount_of(self.unit, self.amount).replace(',', '')}"


@dataclass(frozen=True)
class Row:
    """A run: what it was asked for, what its tuning was charged, what it came to."""

    data: str
    method: str
    shots: int | None
    seed: int | None
    accuracy: float  # of its adapter, percent
    zero_shot: float  # of the plain prompt on the same images, percent
    spent: Mapping[Measure, int]
    asked: Asked | None = None  # None: what its method asks for by itself
    images: int | None = None  # that it was measured on
    shift: str | None = None  # other images than the data's own test split
    model: str = ""
    revision: str = ""
    settings: Mapping[str, Option] = field(default_factory=dict)  # of the recipe's own, as given

    @property
    def cell(self) -> tuple[str, str | None, int | None, Asked | None]:
        """What runs have in common that may be compared."""
        return self.data, self.shift, self.shots, self.asked


@dataclass(frozen=True)
class Sample:
    """Numbers of which each is a seed's."""

    seeds: tuple[int | None, ...]
    values: tuple[float, ...]

    @property
    def n(self) -> int:
        """How many."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Of all."""
        return statistics.mean(self.values)

    @property
    def spread(self) -> float | None:
        """The standard deviation; None of one alone."""
        return statistics.stdev(self.values) if self.n > 1 else None

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of the mean, by Student's t; None of one alone."""
        from scipy.special import stdtrit

        if self.spread is None:
            return None
        half = float(stdtrit(self.n - 1, 0.975)) * self.spread / self.n**0.5
        return self.mean - half, self.mean + half


@dataclass(frozen=True)
class Group:
    """What the runs of a method came to that differ in their seeds alone."""

    data: str  # "mean of D" where it is that
    method: str
    shots: int | None
    asked: Asked | None
    accuracy: Sample
    zero_shot: float
    spent: Mapping[Measure, float]  # mean
    shift: str | None = None
    model: str = ""

    @property
    def cell(self) -> tuple[str, str | None, int | None, Asked | None]:
        """As of its rows."""
        return self.data, self.shift, self.shots, self.asked

    @property
    def title(self) -> str:
        """Which images it was measured on."""
        return self.data if self.shift is None else f"{self.data} -> {self.shift}"

    @property
    def document(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "data": self.data,
            "shift": self.shift,
            "shots": self.shots,
            "recipe": self.method,
            "budget": None if self.asked is None else vars(self.asked),
            "seeds": list(self.accuracy.seeds),
            "n": self.accuracy.n,
            "zero_shot": self.zero_shot,
            "mean": self.accuracy.mean,
            "spread": self.accuracy.spread,
            "interval": self.accuracy.interval,
            **{str(unit): amount for unit, amount in self.spent.items()},
        }


@dataclass(frozen=True)
class Difference:
    """A method less the baseline, of runs with the same data, shots, seed and budget."""

    data: str  # "mean of D" where it is that
    method: str
    shots: int | None
    asked: Asked | None
    baseline: str
    points: Sample  # percentage points
    wins: int
    ties: int
    losses: int

    @property
    def document(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "data": self.data,
            "shots": self.shots,
            "recipe": self.method,
            "budget": None if self.asked is None else vars(self.asked),
            "baseline": self.baseline,
            "n": self.points.n,
            "mean": self.points.mean,
            "interval": self.points.interval,
            "wins": self.wins,
            "ties": self.ties,
            "losses": self.losses,
        }


def rows_of(runs: Sequence[Run]) -> tuple[str, list[tuple[Run, Row]]]:
    """What the most telling accuracy that any of the runs has is of, and a row of each that has it.

    It is one kind of accuracy: that on the test split, else on the validation split, else that on
    the training images, held out. Rows of one recipe and data are of several methods where their
    settings differ in more than seed, shots and budget.
    """
    named = dict(zip(map(id, runs), methods_of(runs), strict=True))
    for split in ("test", "validation"):
        found = [
            (run, _row(run, named[id(run)], tested.accuracy, tested.before.accuracy, tested.n))
            for run in runs
            if (tested := run.evaluation) and tested.split == split
        ]
        if found:
            return f"{split} accuracy", found
    return "held-out training accuracy", [
        (run, _row(run, named[id(run)], summary.accuracy_after, summary.accuracy_before))
        for run in runs
        if (summary := run.summary) and summary.accuracy_after is not None
    ]


def methods_of(runs: Sequence[Run]) -> list[str]:
    """What each run's method is called: its recipe, and settings in which others of it differ."""
    same: dict[tuple[str | None, str], list[dict[str, object]]] = {}
    for run in runs:
        same.setdefault((run.about.settings.recipe, run.data), []).append(_settings(run))
    return [_method(run, same[run.about.settings.recipe, run.data]) for run in runs]


def _method(run: Run, others: Sequence[Mapping[str, object]]) -> str:
    recipe = label(run.about.settings.recipe or "unknown")
    # A run that somebody else hands in may say anything.
    differing = [
        made_sound(f"{name}={value}")[:LONGEST_SETTING]
        for name, value in _settings(run).items()
        if any(other.get(name) != value for other in others)
    ]
    return f"{recipe} ({', '.join(differing)})" if differing else recipe


def _settings(run: Run) -> dict[str, object]:
    """Those that make a method; of a list its length and a checksum."""
    shared = {"recipe", "seed", "shots", "budget", "budget_unit"}
    settings = run.about.settings.model_dump(exclude=shared)
    return {name: _in_short(value) for name, value in settings.items()}


def _in_short(value: object) -> object:
    if not isinstance(value, list):
        return value
    return f"{len(value):,}, {crc32(repr(value).encode()):08x}" if value else "none"


def _row(
    run: Run, method: str, accuracy: float, zero_shot: float, images: int | None = None
) -> Row:
    settings, tested = run.about.settings, run.evaluation
    spent: dict[Measure, int] = {unit: run.units[unit] for unit in UNITS}
    spent["cost_micros"] = run.cost_micros or 0
    return Row(
        run.data,
        method,
        settings.shots,
        settings.seed,
        accuracy,
        zero_shot,
        spent,
        None if settings.budget is None else Asked(settings.budget, settings.budget_unit),
        images,
        tested.data if images is not None and tested and tested.data != run.data else None,
        run.model,
        run.about.revision,
        settings.options,
    )


def unit_name(unit: Measure) -> str:
    """What people call a unit."""
    return "cost" if unit == "cost_micros" else unit


def measure(name: str) -> Measure:
    """The unit that people call so."""
    return next(unit for unit in SPENT if unit_name(unit) == name)


def amount_of(unit: Measure, amount: float) -> str:
    """An amount of a unit as people read it: a cost in the provider's currency."""
    if unit == "cost_micros":
        return f"{currency(round(amount)).normalize():,f}"
    return f"{amount:,.0f}"


def groups(rows: Iterable[Row]) -> list[Group]:
    """The rows by what they have in common, in the order in which they come."""
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        found.setdefault((*row.cell, row.method, row.model), []).append(row)
    return [
        Group(
            first.data,
            first.method,
            first.shots,
            first.asked,
            Sample(tuple(one.seed for one in same), tuple(one.accuracy for one in same)),
            statistics.mean(one.zero_shot for one in same),
            _mean([one.spent for one in same]),
            first.shift,
            first.model,
        )
        for same in found.values()
        for first in same[:1]
    ]


def means(found: Sequence[Group]) -> list[Group]:
    """Means over data sets, one for each method, shots and budget that several of them have.

    Shifts are no data sets of their own: they are in no mean.
    """
    together: dict[tuple[object, ...], list[Group]] = {}
    for group in found:
        if group.shift is None:
            together.setdefault((group.shots, group.asked, group.method), []).append(group)
    return [
        Group(
            f"mean of {len(members)}",
            first.method,
            first.shots,
            first.asked,
            accuracy,
            statistics.mean(one.zero_shot for one in members),
            _mean([one.spent for one in members]),
            model=first.model,
        )
        for members in together.values()
        for first in members[:1]
        if len(members) > 1 and (accuracy := _over([one.accuracy for one in members])).n
    ]


def differences(rows: Sequence[Row], baseline: str) -> list[Difference]:
    """Each method less the baseline, by data set, and the mean over data sets where there are more.

    The baseline is a method, or `zero-shot`. Shifts are left out.
    """
    own = [row for row in rows if row.shift is None]
    base = {(*row.cell, row.seed): row.accuracy for row in own if row.method == baseline}
    if baseline == ZERO_SHOT:
        base = {(*row.cell, row.seed): row.zero_shot for row in own}
    pairs: dict[tuple[Any, ...], dict[str, list[tuple[int | None, float]]]] = {}
    for row in own:
        at = base.get((*row.cell, row.seed))
        if row.method != baseline and at is not None:
            by_data = pairs.setdefault((row.method, row.shots, row.asked), {})
            by_data.setdefault(row.data, []).append((row.seed, row.accuracy - at))
    found = []
    for (method, shots, asked), by_data in pairs.items():
        samples = {
            data: Sample(tuple(seed for seed, _ in each), tuple(points for _, points in each))
            for data, each in by_data.items()
        }
        every = [points for sample in samples.values() for points in sample.values]
        if len(samples) > 1 and (over := _over(list(samples.values()))).n:
            samples[f"mean of {len(samples)}"] = over
        for data, sample in samples.items():
            counted = sample.values if data in by_data else every
            wins = sum(one > 0 for one in counted)
            losses = sum(one < 0 for one in counted)
            ties = len(counted) - wins - losses
            found.append(
                Difference(data, method, shots, asked, baseline, sample, wins, ties, losses)
            )
    return found


def _over(samples: Sequence[Sample]) -> Sample:
    """The means over samples, seed by seed."""
    by_seed = [dict(zip(one.seeds, one.values, strict=True)) for one in samples]
    shared = [seed for seed in by_seed[0] if all(seed in one for one in by_seed)]
    each = (statistics.mean(one[seed] for one in by_seed) for seed in shared)
    return Sample(tuple(shared), tuple(each))


def _mean(spent: Sequence[Mapping[Measure, float]]) -> dict[Measure, float]:
    return {unit: statistics.mean(one.get(unit, 0) for one in spent) for unit in SPENT}
