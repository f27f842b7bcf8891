"""A results repository: what is verified of each run, the tasks it takes, and what it publishes.

A run proves what it was charged: the receipt is signed, and the run's journal, adapter and
evaluation must say the same. It does not prove an accuracy, which its maker has computed; whoever
has the images measures the adapter anew, which is part of the run.

A task is frozen when its first run comes, by a name and a digest over everything that makes its
figures comparable, and by the digest of the training images that each seed draws.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from joserfc.jwk import KeySet
from pydantic import BaseModel, StringConstraints, TypeAdapter, ValidationError

from craft_client.comparison import Asked, Row, rows_of
from craft_client.data import digest_of_images
from craft_client.evaluation import Evaluation
from craft_client.exceptions import CraftError, DataError
from craft_client.journal import Journal
from craft_client.recipes import label
from craft_client.runs import Run
from craft_shared.adapter import Adapter
from craft_shared.names import made_sound
from craft_shared.problems import FieldError, first_error
from craft_shared.receipt import Receipt, ReceiptError, verify
from craft_shared.text_files import NotTextError, read_text
from craft_shared.units import UNITS

RECEIPT_FILE = "receipt.jws"
TASKS_FILE = "tasks.json"

_Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class RefusedError(CraftError):
    """A run that does not add up; `errors` are the reasons."""


class Task(BaseModel):
    """What runs must have in common to stand in one table."""

    data: str
    test: _Digest  # of the test split's images and their classes
    classes: _Digest  # of the class names, in order
    shots: int
    model: str  # and what was seen of its answers where that is not everything
    revision: str
    draws: dict[int, _Digest]  # by seed, of the training images and their classes

    @property
    def name(self) -> str:
        """For people, and for its place in the file."""
        return f"{self.data}, {self.shots} shots, {self.model}"

    @property
    def digest(self) -> str:
        """SHA-256 over all but the draws, which seeds are added to."""
        return _sha256(self.model_dump(exclude={"draws"}))


@dataclass(frozen=True)
class Submission:
    """A run that adds up."""

    run: Run
    receipt: Receipt
    access: str  # `strict` or `open-text`
    task: Task


@dataclass
class Leaderboard:
    """Runs that were taken, by task."""

    tasks: dict[str, Task] = field(default_factory=dict)
    taken: list[Submission] = field(default_factory=list)

    def take(self, one: Submission) -> None:
        """Adds a run.

        Raises:
            RefusedError: it is not of the task that it names, or is there already.
        """
        task = self.tasks.get(one.task.name)
        faults = [] if task is None else list(_strange(one.task, task))
        for other in self.taken:
            if other.receipt.lines_sha256 == one.receipt.lines_sha256:
                faults.append(f"receipt: '{other.run.folder}' has the same: it is one run.")
            elif _place(other) == _place(one):
                faults.append(f"settings: '{other.run.folder}' is the same run with this seed.")
        _refuse(one.run.folder, faults)
        draws = {**(task.draws if task else {}), **one.task.draws}
        self.tasks[one.task.name] = one.task.model_copy(update={"draws": draws})
        self.taken.append(one)

    def rows(self) -> list[tuple[Submission, Row]]:
        """What each run came to on the test split, in the order of tasks and access modes."""
        by_run = {id(one.run): one for one in self.taken}
        _, rows = rows_of([one.run for one in self.taken])
        found = [(by_run[id(run)], row) for run, row in rows]
        return sorted(found, key=lambda pair: (pair[0].task.name, pair[0].access))


def read_tasks(path: Path) -> dict[str, Task]:
    """The frozen tasks of a file, by name; none where there is no file.

    Raises:
        DataError: it is no such file.
    """
    try:
        tasks = TypeAdapter(list[Task]).validate_json(read_text(path))
    except FileNotFoundError:
        return {}
    except (OSError, NotTextError) as error:
        raise DataError(f"'{path}' cannot be read: {error}.") from error
    except ValidationError as error:
        raise DataError(f"'{path}' holds no tasks: {first_error(error)}.") from error
    return {task.name: task for task in tasks}


def tasks_document(tasks: Mapping[str, Task]) -> list[dict[str, Any]]:
    """What the file says, JSON-able; names and digests are for its readers."""
    return [
        {"name": task.name, "digest": task.digest, **task.model_dump(mode="json")}
        for _, task in sorted(tasks.items())
    ]


def verified(folder: Path, keys: KeySet) -> Submission:
    """A run whose receipt, journal, adapter and evaluation say the same.

    The receipt is in the run directory, or beside it as `craft bench` has it.

    Raises:
        RefusedError: they do not.
        JournalError: the run cannot be read.
    """
    run = Run.load(folder)
    if run.summary is None or run.evaluation is None:
        why = "summary: the run did not come to its end."
        if run.summary is not None:
            why = f"evaluation: {run.fault or 'there is none: craft evaluate RUN --data DIR'}"
        raise _refused(folder, [why])
    try:
        receipt = verify(_receipt(folder), keys)
    except (ReceiptError, NotTextError) as error:
        raise _refused(folder, [f"receipt: it is not valid: {error}."]) from error
    adapter = Journal.open(folder).adapter()
    faults = [
        *_of_receipt(receipt, run),
        *_of_adapter(adapter, run),
        *_of_evaluation(run.evaluation, run),
        *_of_images(run),
        *_of_budget(run),
    ]
    _refuse(folder, faults)
    settings, tested = run.about.settings, run.evaluation
    task = Task(
        data=run.data,
        test=str(tested.digest),
        classes=_sha256(run.about.classes),
        shots=settings.shots or 0,
        model=run.model,
        revision=run.about.revision,
        draws={settings.seed or 0: digest_of_images(run.about.digests, _names(run))},
    )
    return Submission(run, receipt, adapter.config.access_mode, task)


def check_anew(run: Run, anew: Evaluation) -> None:
    """Holds what a run says of its adapter against an evaluation that was made anew.

    Raises:
        RefusedError: they differ.
    """
    said, faults = run.evaluation, []
    if said is None or anew.digest != said.digest:
        faults.append("evaluation: it is of other images than these.")
    elif (anew.confusion, anew.before.confusion) != (said.confusion, said.before.confusion):
        faults.append(f"evaluation: it says {said}; measured anew, it is {anew}.")
    _refuse(run.folder, faults)


def check_apart(run: Run, test: Iterable[str]) -> None:
    """Looks for test images, by their files' digests, among those that the run was tuned on.

    Raises:
        RefusedError: there are some.
    """
    both = set(run.about.digests) & set(test)
    fault = f"images: the run was tuned on {len(both):,} of the test images."
    _refuse(run.folder, [fault] if both else [])


def _of_receipt(receipt: Receipt, run: Run) -> Iterator[str]:
    if receipt.run is None or receipt.run != run.about.run:
        yield f"receipt: it is of the run '{receipt.run}'; this one is '{run.about.run}'."
    if receipt.since or receipt.until:
        yield "receipt: it is of a period, which may leave calls of the run out."
    charged, cost = receipt.but_uploads()
    for unit in UNITS:
        if charged[unit] != run.units[unit]:
            yield (
                f"units: the receipt has {charged[unit]:,} {unit}, the journal {run.units[unit]:,}."
            )
    if run.cost_micros not in (None, cost):
        yield f"cost: the receipt has {cost:,} micros, the journal {run.cost_micros:,}."
    for item in receipt.items:
        if (item.model, item.revision) != (run.about.model, run.about.revision):
            yield (
                f"model: the receipt has revision {item.revision} of '{item.model}', the run "
                f"{run.about.revision} of '{run.about.model}'."
            )


def _of_adapter(adapter: Adapter, run: Run) -> Iterator[str]:
    config, settings, summary = adapter.config, run.about.settings, run.summary
    if summary and adapter.digest != summary.adapter:
        yield "adapter: it is another than the one that the run ended in."
    if (config.model, config.revision) != (run.about.model, run.about.revision):
        yield f"adapter: it is of revision {config.revision} of '{config.model}'."
    if config.classes != run.about.classes:
        yield "adapter: it has other classes than the run."
    if config.output != run.about.output:
        yield "adapter: it was fitted on answers of another level than the run's."
    made = config.provenance
    for field_, said, ran in (
        ("recipe", made.recipe, made_sound(label(settings.recipe or ""))[:64]),
        ("shots", made.shots, settings.shots),
        ("seed", made.seed, settings.seed),
        ("data", made.data, made_sound(run.data)[:200]),
    ):
        if said is not None and said != ran:
            yield f"{field_}: the adapter was made with '{said}', the run with '{ran}'."
    if made.units != run.units:
        yield "units: the adapter was made with others than the journal has."


def _of_evaluation(tested: Evaluation, run: Run) -> Iterator[str]:
    if (tested.split, tested.data) != ("test", run.data):
        yield f"evaluation: it is of the {tested.split} split of '{tested.data}'."
    if (tested.model, tested.revision) != (run.about.model, run.about.revision):
        yield f"evaluation: it is of revision {tested.revision} of '{tested.model}'."
    if tested.digest is None:
        yield "evaluation: it does not say of which images: craft evaluate RUN --data DIR"


def _of_images(run: Run) -> Iterator[str]:
    settings, labels = run.about.settings, run.about.labels
    if not all(0 <= label < len(run.about.classes) for label in labels):
        yield "images: one of them is of no class."
    if len(run.about.digests) != len(labels):
        yield "images: the run does not say by which images it was tuned."
    if settings.shots is None or settings.seed is None:
        yield "settings: shots and seed are not known."
    elif max(Counter(labels).values(), default=0) > settings.shots:
        yield f"images: a class has more of them than the {settings.shots} shots."


def _of_budget(run: Run) -> Iterator[str]:
    settings = run.about.settings
    if settings.budget is None:
        return
    asked = Asked(settings.budget, settings.budget_unit)
    spent = run.cost_micros if asked.unit == "cost_micros" else run.units[asked.unit]
    if spent is None:
        yield f"budget: it was {asked}; what the run spent of that is not known."
    elif spent > asked.amount:
        yield f"budget: it was {asked}; the run spent {spent:,}."


def _strange(task: Task, frozen: Task) -> Iterator[str]:
    """In what a run is of another task than the frozen one of that name."""
    for name in ("test", "classes", "revision"):
        found, known = getattr(task, name), getattr(frozen, name)
        if found != known:
            yield f"{name}: the task was frozen with {known[:16]}; the run has {found[:16]}."
    for seed, digest in task.draws.items():
        if frozen.draws.get(seed, digest) != digest:
            yield f"images: the task draws others for seed {seed}."


def _place(one: Submission) -> tuple[object, ...]:
    return one.task.digest, one.run.about.settings


def _names(run: Run) -> list[str]:
    return [run.about.classes[label] for label in run.about.labels]


def _receipt(folder: Path) -> str:
    for place in (folder / RECEIPT_FILE, folder.parent / RECEIPT_FILE):
        if place.is_file():
            return read_text(place)
    raise _refused(
        folder, [f"receipt: there is none: craft receipt {folder} --out {folder / RECEIPT_FILE}"]
    )


def _refuse(folder: Path, faults: Iterable[str]) -> None:
    if found := list(faults):
        raise _refused(folder, found)


def _refused(folder: Path, faults: Sequence[str]) -> RefusedError:
    errors = [
        FieldError(field=name, message=why)
        for name, _, why in (fault.partition(": ") for fault in faults)
    ]
    return RefusedError(f"The run in '{folder}' does not add up.", errors=errors)


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
