"""A run directory as reports read it: what was asked for, what each generation brought, its end.

Of a run that is unfinished there is no accuracy: the journal has none. One that was evaluated leads
with that accuracy, on images that tuning has not seen.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FiniteFloat,
    NonNegativeInt,
    ValidationError,
)

from craft_client.evaluation import Evaluation, read_evaluation
from craft_client.journal import Journal, JournalError
from craft_client.recipes import Option, label
from craft_client.run_folder import (
    ADAPTER_FOLDER,
    LINES_FILE,
    RUN_FILE,
    SUMMARY_FILE,
    TENSOR_FOLDER,
)
from craft_client.tuning_run import Candidate
from craft_shared.adapter import CONFIG_FILE, AdapterConfig
from craft_shared.display import Displayed, Listed, View
from craft_shared.model_card import level_words
from craft_shared.printing import percent
from craft_shared.problems import first_error
from craft_shared.text_files import NotTextError, read_text
from craft_shared.units import Measure, Units
from craft_shared.wire import EVERYTHING, Output, ProviderProfile

# Of a long run, in a notebook.
POINTS_SHOWN = 8
ON_TRAINING = "training pictures (after: held out)"


class RunSettings(BaseModel):
    """What all runs' settings have for reports; the others are kept as they are."""

    model_config = ConfigDict(extra="allow")

    recipe: Annotated[str, AfterValidator(label)] | None = None
    mode: str | None = None
    shots: int | None = None
    seed: int | None = None
    budget: int | None = None
    budget_unit: Measure = "queries"
    options: dict[str, Option] = {}


class About(BaseModel):
    """What `run.json` says. Runs of `CraFTClassifier` have no `data`: a folder of images."""

    craftbox: str
    started_at: str
    model: str
    revision: str
    profile: ProviderProfile | None = None  # that was simulated
    settings: RunSettings
    classes: list[str]
    labels: list[int]
    data: Path | None = None
    output: Output = EVERYTHING  # earlier versions' runs saw it
    run: str | None = None  # what the server calls it
    image_set: str | None = None  # on the server
    digests: list[str] = []  # of the training images' files
    pictures: list[str] = []  # their paths in `data`


class Moment(BaseModel):
    """An entry of the summary's history."""

    generation: int
    accuracy: FiniteFloat | None


class Summary(BaseModel):
    """What `summary.json` says, but for what the journal's lines say too."""

    finished_at: str
    accuracy_before: FiniteFloat
    accuracy_after: FiniteFloat | None
    stopped_by: str | None
    adapter: str
    deployed: str
    candidates: list[Candidate]
    history: list[Moment]


@dataclass(frozen=True)
class Point:
    """Where a run was after its first request, or after a generation."""

    queries: int  # charged until then
    predictions: int  # charged until then
    loss: float  # mean of the generation's prompts
    best_loss: float  # least of a single prompt until then, as it was when that prompt was scored
    # On the training images, percent; None where unfinished or not measurable.
    accuracy: float | None
    cost_micros: int | None  # charged until then; None where a line does not say

    def spent(self, unit: Measure) -> int | None:
        """Charged until then; None of units that points do not have."""
        known: dict[Measure, int | None] = {
            "queries": self.queries,
            "predictions": self.predictions,
            "cost_micros": self.cost_micros,
        }
        return known.get(unit)


@dataclass(frozen=True)
class Accuracies:
    """The accuracies that a run leads with, in words."""

    before: str = "not yet"  # of the plain prompt
    after: str = "not yet"  # of the adapter
    subject: str = "not yet"  # on which images


@dataclass(frozen=True, repr=False)
class Run(Displayed):
    """A run, finished or not. Use `load`."""

    folder: Path  # its directory
    about: About  # what was asked for
    points: tuple[Point, ...]  # in order
    units: Units  # charged by the tuning; the images' upload is not in the journal
    cost_micros: int | None  # the price of these units; None where a line does not say
    failure: str | None  # why the last answer could not be used; None where it could
    summary: Summary | None  # how it ended; None where it is unfinished
    prompts: int | None  # that the adapter has; None where it is unfinished
    # Of its adapter; None where there is none that can be used.
    evaluation: Evaluation | None = None
    fault: str | None = None  # why what there is of an evaluation cannot be used

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads the directory; raises JournalError where there is no run, or it is damaged."""
        journal = Journal.open(folder)
        about = about_of(journal)
        # Before the lines, which a run that is still going on may add to.
        summary, prompts, evaluation, fault = None, None, None, None
        if journal.finished:
            summary = _checked(Summary, journal.summary(), f"'{folder / SUMMARY_FILE}'")
            prompts = _adapter_config(folder / ADAPTER_FOLDER / CONFIG_FILE).prompts
            try:
                evaluation = read_evaluation(folder, summary.adapter)
            except JournalError as error:  # the run is worth showing all the same
                fault = " ".join(error.lines)
        lines = [
            _checked(_Line, line, f"'{folder / LINES_FILE}', line {number},")
            for number, line in enumerate(journal.lines(), start=1)
        ]
        return cls(
            folder=folder,
            about=about,
            points=tuple(_points(lines, summary.history if summary else [])),
            units=sum((line.charged for line in lines), Units()),
            cost_micros=_cost(lines),
            failure=lines[-1].error if lines else None,
            summary=summary,
            prompts=prompts,
            evaluation=evaluation,
            fault=fault,
        )

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.folder.resolve().name

    @property
    def data(self) -> str:
        """The name of the data set."""
        return self.about.data.name if self.about.data else "unknown"

    @property
    def model(self) -> str:
        """The model's name, and what was seen of its answers where that is not everything."""
        output = self.about.output
        seen = [] if output == EVERYTHING else [level_words(output)]
        return ", ".join([self.about.model, *seen])

    @property
    def accuracies(self) -> list[tuple[Point, float]]:
        """The points whose accuracy is known, and that."""
        return [(point, point.accuracy) for point in self.points if point.accuracy is not None]

    @property
    def leading(self) -> Accuracies:
        """The evaluation's accuracies, with intervals; without one those on training images."""
        if self.evaluation:
            tested = self.evaluation
            return Accuracies(str(tested.before), str(tested), tested.subject)
        return self.training

    @property
    def training(self) -> Accuracies:
        """The accuracies on the training images: the adapter's is of held-out predictions."""
        if not self.summary:
            return Accuracies()
        return Accuracies(
            percent(self.summary.accuracy_before),
            percent(self.summary.accuracy_after),
            ON_TRAINING,
        )

    @property
    def state(self) -> str:
        """`finished` or `unfinished`."""
        return "finished" if self.summary else "unfinished"

    def _view(self) -> View:
        settings, summary = self.about.settings, self.summary
        leading = self.leading if summary else None
        step = -(-len(self.points) // POINTS_SHOWN) or 1
        return View(
            self.name,
            {
                "state": self.state,
                "accuracy before": leading and leading.before,
                "accuracy after": leading and leading.after,
                "measured on": leading and leading.subject,
                "evaluation": self.fault,
                "data": self.data,
                "model": self.about.model,
                "recipe": settings.recipe,
                "shots": settings.shots,
                "seed": settings.seed,
                "queries": self.units.queries,
                "predictions": self.units.predictions,
                "cost_micros": self.cost_micros or None,
                "deployed": summary and summary.deployed,
                "failure": self.failure,
            },
            ["queries", "loss, nats", "best loss, nats", "accuracy, %"],
            [
                [point.queries, point.loss, point.best_loss, point.accuracy]
                for point in (*self.points[:-1:step], *self.points[-1:])
            ],
        )


@dataclass(frozen=True)
class Damaged:
    """A directory that cannot be read as a run, and why."""

    folder: Path
    reason: str


def about_of(journal: Journal) -> About:
    """What the run's document says; raises JournalError where it is damaged."""
    return _checked(About, journal.document, f"'{journal.folder / RUN_FILE}'")


def compared(folders: Iterable[Path]) -> list[Run]:
    """Runs to be shown beside each other, a row each; raises JournalError as `Run.load`."""
    return Listed(Run.load(folder) for folder in folders)


def runs_below(folder: Path) -> tuple[list[Run], list[Damaged]]:
    """All runs in a folder and below, by path; what cannot be read does not hide the others.

    Raises:
        JournalError: there is no such folder.
    """
    if not folder.is_dir():
        raise JournalError(
            f"There is no folder '{folder}'.", remedy="Name the folder that holds run directories."
        )
    runs: Listed[Run] = Listed()
    damaged: list[Damaged] = []

    def unreadable(error: OSError) -> None:
        damaged.append(Damaged(Path(error.filename), f"Cannot be read: {error.strerror}."))

    for place, folders, files in os.walk(folder, onerror=unreadable):
        if RUN_FILE in files or LINES_FILE in files:
            # Runs may lie in runs, but not among the files of one.
            folders[:] = set(folders) - {TENSOR_FOLDER, ADAPTER_FOLDER}
            try:
                runs.append(Run.load(Path(place)))
            except JournalError as error:
                damaged.append(Damaged(Path(place), error.message))
        folders.sort()
    return runs, damaged


class _Line(BaseModel):
    """A line of the journal: one paid answer."""

    generation: int
    charged: Units
    cost_micros: NonNegativeInt | None = None
    mean_loss: FiniteFloat | None = None
    best_loss: FiniteFloat | None = None
    error: str | None = None


_Model = TypeVar("_Model", bound=BaseModel)


def _checked(model: type[_Model], value: Mapping[str, Any], where: str) -> _Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _damaged(where, error) from error


def _adapter_config(path: Path) -> AdapterConfig:
    try:
        return AdapterConfig.model_validate_json(read_text(path))
    except (OSError, NotTextError) as error:
        reason = getattr(error, "strerror", None) or error
        raise JournalError(f"Cannot read '{path}': {reason}.") from error
    except ValidationError as error:
        raise _damaged(f"'{path}'", error) from error


def _damaged(where: str, error: ValidationError) -> JournalError:
    return JournalError(
        f"{where} is damaged, or of another version of craftbox: {first_error(error)}.",
        remedy="Put it right in that file, or tune anew.",
    )


def _points(lines: Iterable[_Line], history: Iterable[Moment]) -> Iterator[Point]:
    accuracies = {moment.generation: moment.accuracy for moment in history}
    units, best_loss = Units(), float("inf")
    cost: int | None = 0
    for generation, requests in groupby(lines, key=lambda line: line.generation):
        group = list(requests)
        units += sum((line.charged for line in group), Units())
        more = _cost(group)
        cost = None if cost is None or more is None else cost + more
        # The first request has the population; the paper's recipe scores its mean in a second.
        loss, least = group[0].mean_loss, group[0].best_loss
        if loss is None or least is None:
            continue
        best_loss = min(best_loss, least)
        yield Point(
            queries=units.queries,
            predictions=units.predictions,
            loss=loss,
            best_loss=best_loss,
            accuracy=accuracies.get(generation),
            cost_micros=cost,
        )


def _cost(lines: Iterable[_Line]) -> int | None:
    costs = [line.cost_micros for line in lines]
    return None if None in costs else sum(cost for cost in costs if cost is not None)
