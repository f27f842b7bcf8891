"""`craft bench`: data sets x shots x recipes x budgets x seeds, tuned and measured.

It can be interrupted. Everything is checked before the first call that is charged.

Sources of the paper's figures: CraFT (Wang et al., ICML 2024), table 2, and the papers named there,
for CLIP with RN50 at 16 shots, mean over the eleven data sets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from craft_client.cli.options import (
    PLAIN_TEMPLATE,
    AsJson,
    Key,
    Model,
    Over,
    ShotsStrict,
    Strict,
    Url,
    budget_of,
    option,
    options_of,
    recipes,
)
from craft_client.cli.root import command
from craft_client.cli.session import check_files, connect
from craft_client.cli.show import Verbosity, document, say, speaking, table
from craft_client.cli.tune import Task, new_task, tune_task
from craft_client.recipes import OWN, label, recipe_of, resolved
from craft_client.run_folder import LOCK_FILE, RUN_FILE

if TYPE_CHECKING:
    from craft_client.cli.evaluate import Measured
    from craft_client.comparison import Asked, Row
    from craft_client.data import Dataset, Split
    from craft_client.recipes import Option
    from craft_shared.units import Units
    from craft_shared.wire import Budget


RESULT_FILE = "result.json"

# Of the paper's means; folders as CoOp's instructions name them.
PAPER_SETS = frozenset(
    {
        *("imagenet", "caltech-101", "oxford_pets", "stanford_cars", "oxford_flowers", "food-101"),
        *("fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101"),
    }
)

# Folders of other images of ImageNet's classes, as CoOp's instructions name them: what is tuned
# on it is measured on them too.
SHIFTED = "imagenet"
SHIFTS = ("imagenetv2", "imagenet-sketch", "imagenet-adversarial", "imagenet-rendition")

PAPER_MEANS = {
    "zero-shot": 58.77,
    "BBT": 65.40,
    "CraFT": 71.22,
    "CoOp (white box)": 73.42,
    "Tip-Adapter-F (white box)": 75.83,
    "GDA (white box)": 76.05,
}
PAPER_MODEL, PAPER_SHOTS = "RN50", 16


@command(
    "Tune and measure",
    "craft bench --data ROOT --recipe craftbox --recipe paper --baseline paper",
    "craft bench --data ROOT --dataset caltech-101 --shots 1 --shots 16 --seed 1",
    "craft bench --data ROOT --recipe bbt --recipe spsa --budget predictions=1e4",
    first=("data", "recipe", "shots", "seed", "budget"),
)
def bench(
    data: Annotated[Path, option("A folder with one folder a data set, of any layout.")],
    out: Annotated[
        Path, option("Folder of the results. Runs that are already there are kept.", True)
    ] = Path("bench"),
    dataset: Annotated[
        list[str] | None, option("Folder of a data set; repeatable.", "all in --data")
    ] = None,
    shots: Annotated[
        list[int] | None, option("Training pictures a class; repeatable.", "16")
    ] = None,
    shots_strict: ShotsStrict = False,
    seed: Annotated[
        list[int] | None,
        option(
            "One run for each seed, which draws training pictures and codes; repeatable.", "1 2 3"
        ),
    ] = None,
    recipe: Annotated[
        list[str] | None,
        option(
            f"The methods to compare, as for craft tune: {', '.join(OWN)}, a plug-in's, or "
            "FILE.py:NAME; repeatable.",
            "craftbox",
            autocompletion=recipes,
        ),
    ] = None,
    budget: Annotated[
        list[str] | None,
        option(
            "The most each run may spend, as for craft tune: N queries, or UNIT=N; repeatable.",
            "the recipe's",
            metavar="[UNIT=]N",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        option("The recipe, or zero-shot, to which all others are compared.", "none"),
    ] = None,
    own: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A setting of one recipe, such as zip.batch=64; repeatable.",
            show_default=False,
            metavar="RECIPE.NAME=VALUE",
        ),
    ] = None,
    strict: Strict = False,
    over: Over = "predictions",
    model: Model = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Tune and measure on many data sets, with mean and spread over seeds.

    Writes results.csv (a row a run), results.md, results.tex, and the curves over what was spent
    (results.png, .svg, .pdf). Each run has a receipt of what it was charged. What was tuned on
    ImageNet is measured on its four shifts too (V2, Sketch, A, R). Data sets and shifts that are
    not there are named and left out. All runs are checked before the first call that is charged.
    A benchmark that was interrupted continues where it stopped: nothing is paid for twice.
    """
    from craft_client.comparison import ZERO_SHOT, Asked, differences, groups, means
    from craft_client.exceptions import DataError
    from craft_client.journal import Journal
    from craft_client.run_folder import alone
    from craft_client.tables import DIFFERENCE_COLUMNS, cells_of, columns, difference_cells

    budgets = [budget_of(one) for one in budget] if budget else [budget_of(None)]
    found, missing = find_datasets(data, dataset or folders_of(data))
    shifts: dict[str, list[str]] = {}
    for tuned in found:
        shifts[tuned.name], unusable = find_shifts(data, tuned)
        missing += unusable
    for reason in missing:
        say(f"Skipped {reason}")
    for tuned in found:
        for note in tuned.notes:
            say(f"{tuned.name}: {note}")
    if not found:
        raise DataError(
            f"'{data}' holds none of the data sets.", remedy="Name folders in it with --dataset."
        )
    sets = {one.name: one for one in found}
    asked = [None if unit is None else Asked(amount or 0, unit) for amount, unit in budgets]
    recipes_of = recipe or ["craftbox"]
    check_names(recipes_of)
    options = options_by_recipe(own or (), recipes_of)
    plan = cells(sets, recipes_of, shots or [16], seed or [1, 2, 3], asked, options, strict=strict)
    methods = {ZERO_SHOT: ZERO_SHOT, **{cell.method: cell.title for cell in plan}}
    if baseline is not None and label(baseline) not in methods:
        raise typer.BadParameter(f"Give one of {', '.join(methods)}.", param_hint="--baseline")
    baseline = None if baseline is None else methods[label(baseline)]

    def task_of(cell: Cell) -> Task:
        return new_task(
            sets[cell.data],
            cell.recipe,
            cell.shots,
            cell.seed,
            shots_strict=shots_strict,
            strict=strict,
            budget=None if cell.asked is None else cell.asked.amount,
            budget_unit=None if cell.asked is None else cell.asked.unit,
            options=dict(cell.options),
            template=PLAIN_TEMPLATE,
        )

    out.mkdir(parents=True, exist_ok=True)
    with alone(out / LOCK_FILE, f"the benchmark in '{out}'"):
        check_runs(plan, out)
        results = {cell: result for cell in plan if (result := _result_in(cell.folder(out)))}

        def in_order() -> list[dict[str, Any]]:
            return [results[cell] for cell in plan if cell in results]

        def store(cell: Cell, result: dict[str, Any]) -> None:
            results[cell] = result
            _write(cell.folder(out) / RESULT_FILE, json.dumps(result, indent=1))
            write_tables(out, in_order(), baseline)

        pending = [cell for cell in plan if cell not in results]
        if pending:
            tasks: dict[Cell, Task] = {}
            for cell in pending:
                if not (cell.folder(out) / "run" / RUN_FILE).exists():
                    with _naming(cell), speaking(Verbosity.QUIET):
                        # Without what lies beside the draw, which is a lot of a large data set.
                        tasks[cell] = replace(task_of(cell), others=())
            _check(out, in_order(), tasks, sets, model, url, key)
        for number, cell in enumerate(plan, start=1):
            what = f"{number}/{len(plan)} {cell}"
            say(what)
            folder, pictures = cell.folder(out), data / cell.data
            if cell not in results:
                run = folder / "run"
                if not ((run / RUN_FILE).exists() and Journal.open(run).whole):
                    task = task_of(cell)
                    with Journal.claimed(run) as journal:
                        tune_task(task, journal, model, url, key)
                store(cell, _measure(cell, pictures, folder, url, key))
            for shift in shifts[cell.data]:
                measured = results[cell].get("shifts", {})
                if shift not in measured:
                    say(f"{what}, on {shift}")
                    one = _measure_shift(folder, data / shift, url, key)
                    store(cell, {**results[cell], "shifts": {**measured, shift: one}})
        write_tables(out, in_order(), baseline)
        rows = rows_of(in_order())
        _draw(out, rows, over)
    summary = groups(rows)
    paired = differences(rows, baseline) if baseline else []
    if as_json:
        document(
            {
                "results": in_order(),
                "summary": [group.document for group in summary],
                "differences": [one.document for one in paired],
                "skipped": missing,
            }
        )
        return
    of_groups = columns(summary)
    spent = of_groups[of_groups.index("n") :]
    spare = [*reversed(spent), "budget", "95 % interval", "shots"]
    table(of_groups, cells_of(summary, [*summary, *means(summary)]), spare=spare)
    if paired:
        spare = ["losses", "ties", "wins", "n", "budget", "shots", "95 % interval"]
        table(DIFFERENCE_COLUMNS, difference_cells(paired), spare=spare)
    if theirs := paper_note(rows):
        say(theirs)
    say(f"Wrote results.csv, .md, .tex, .json, .png, .svg and .pdf into '{out}'.")


def _check(
    out: Path,
    kept: Sequence[dict[str, Any]],
    tasks: Mapping[Cell, Task],
    sets: Mapping[str, Dataset],
    model: str | None,
    url: str | None,
    key: str | None,
) -> None:
    """Checks the runs that have not begun, for free: images, settings, classes, prompts, budgets.

    Raises:
        CraftError: one of them could not be made, or all of them together are more than a budget
            of the key covers.
    """
    from craft_client.begin import check_run, empty_image_set
    from craft_client.blackbox import Question, check_budgets
    from craft_client.data import labels_of
    from craft_client.exceptions import DataError
    from craft_client.remote import RemoteBlackBox
    from craft_shared.units import Units

    with connect(url, key) as client:
        card = client.model(model)
        made_by = {(one["model"], one["revision"]) for one in kept} - {(card.name, card.revision)}
        if made_by:
            of_model, revision = min(made_by)
            raise DataError(
                f"'{out}' holds results of revision {revision} of '{of_model}'; the server hosts "
                f"{card.revision} of '{card.name}'. Nothing was charged.",
                remedy="Name another folder with --out.",
            )
        files = {sample.path for task in tasks.values() for sample in task.samples}
        files |= {one.path for name in {cell.data for cell in tasks} for one in sets[name].test}
        check_files(sorted(files), card.limits)
        total = Units()
        lasting: list[Budget] = []
        with empty_image_set(client, card.name) as empty:
            for cell, task in tasks.items():
                with _naming(cell):
                    settings, labels = task.settings_of(card=card), labels_of(task.samples)
                    one = check_run(client, empty, card, labels, task.classes, settings)
                need, unit = one.need, settings.budget_unit
                # A recipe that looks as it goes may spend all of its budget.
                if unit != "cost_micros" and not settings.is_planned:
                    need = need.model_copy(update={unit: max(settings.budget, need[unit])})
                lasting = [budget for budget in one.budgets if budget.window == "lifetime"]
                plain = RemoteBlackBox(client, empty, task.classes, "float32", card=card)
                # Of its evaluation the least: the adapter may have more prompts.
                total += need + plain.with_count(len(sets[cell.data].test)).units(Question(1))
        remedy = "Use smaller budgets or fewer runs, or ask the provider for a top-up."
        check_budgets(lasting, total, remedy=remedy)


@contextmanager
def _naming(cell: Cell) -> Iterator[None]:
    """Says which run it is that cannot be made."""
    from craft_client.exceptions import CraftError

    try:
        yield
    except CraftError:
        say(f"Nothing was begun, because of {cell}.")
        raise


def _write(path: Path, text: str) -> None:
    from craft_shared.files import write_whole

    write_whole(path, text.encode())


def _result_in(folder: Path) -> dict[str, Any] | None:
    """What a cell came to; None where that is not there or damaged, and to be put together anew."""
    try:
        result: dict[str, Any] = json.loads((folder / RESULT_FILE).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return result


def _measure(
    cell: Cell, data: Path, folder: Path, url: str | None, key: str | None
) -> dict[str, Any]:
    """What the cell's run came to, with its receipt in the folder."""
    from craft_client.cli.evaluate import keep, measure_run
    from craft_client.cli.receipts import fetch_receipt
    from craft_client.journal import Journal

    run = folder / "run"
    summary = Journal.open(run).summary()
    text, receipt = fetch_receipt(str(run), url, key)
    asked, cost = receipt.but_uploads()
    _write(folder / "receipt.jws", f"{text}\n")
    measured = measure_run(run, data, "test", url, key, once=True)
    charged = _charged(measured, url, key)
    if measured.evaluation:
        keep(run, measured.evaluation.model_copy(update={"charged": charged}))
    return {
        "data": cell.data,
        "recipe": cell.title,
        "shots": cell.shots,
        "seed": cell.seed,
        "budget": None if cell.asked is None else vars(cell.asked),
        "settings": dict(cell.options),
        "zero_shot": measured.accuracies["accuracy_before"],
        "accuracy": measured.accuracies["accuracy_after"],
        "test_images": measured.pictures,
        "deployed": summary["deployed"],
        # Without the upload, which the first run pays for those after it.
        "spent": {**asked.model_dump(), "cost_micros": cost},
        "tuning": receipt.total.model_dump(),
        "evaluation": charged.model_dump(),
        "model": measured.about["model"],
        "revision": measured.about["revision"],
    }


def _measure_shift(folder: Path, data: Path, url: str | None, key: str | None) -> dict[str, Any]:
    """What the cell's run comes to on a shift, among the classes that the shift has."""
    from craft_client.cli.evaluate import measure_run

    run = folder / "run"
    measured = measure_run(run, data, "test", url, key, among_its_classes=True, once=True)
    return {
        "zero_shot": measured.accuracies["accuracy_before"],
        "accuracy": measured.accuracies["accuracy_after"],
        "evaluation": _charged(measured, url, key).model_dump(),
    }


def _charged(measured: Measured, url: str | None, key: str | None) -> Units:
    """What an evaluation was charged, by all processes that were at it."""
    from craft_client.cli.receipts import fetch_receipt

    _, receipt = fetch_receipt(measured.run, url, key)
    return receipt.total


@dataclass(frozen=True)
class Cell:
    """One run of the benchmark."""

    data: str
    recipe: str
    shots: int
    seed: int
    asked: Asked | None = None  # what it may spend; None: the recipe's own
    options: tuple[tuple[str, Option], ...] = ()  # settings of the recipe's own
    strict: bool = False

    def __str__(self) -> str:
        asked = [] if self.asked is None else [str(self.asked)]
        words = [self.data, self.method, f"{self.shots} shots", *asked, f"seed {self.seed}"]
        return ", ".join(words)

    @property
    def method(self) -> str:
        """What its recipe is called in folders."""
        name = label(self.recipe)
        return f"{name}-strict" if self.strict and name == "craftbox" else name

    @property
    def title(self) -> str:
        """What it is called in tables: with the settings that it was given."""
        from craft_client.comparison import LONGEST_SETTING

        given = [f"{name}={value}"[:LONGEST_SETTING] for name, value in self.options]
        return f"{self.method} ({', '.join(given)})" if given else self.method

    def folder(self, out: Path) -> Path:
        """Where its run directory lies."""
        asked = [] if self.asked is None else [self.asked.option]
        name = "-".join([f"{self.shots}shots", *asked, f"seed{self.seed}"])
        return out / self.data / self.method.replace(":", "-") / name


def check_names(recipes: Iterable[str]) -> None:
    """Raises BadParameter where two recipes have one name in tables and folders."""
    called: dict[str, str] = {}
    for one in map(resolved, recipes):
        other = called.setdefault(label(one), one)
        if other != one:
            raise typer.BadParameter(
                f"'{one}' and '{other}' would both be called '{label(one)}': rename a file.",
                param_hint="--recipe",
            )


def options_by_recipe(texts: Iterable[str], recipes: Iterable[str]) -> dict[str, dict[str, Option]]:
    """Settings of recipes' own, of `RECIPE.NAME=VALUE` each, by the recipe's name in tables.

    Raises:
        typer.BadParameter: one is of a recipe that is not asked for, or the recipe has none such.
        UnusablePlugin: the recipe cannot be loaded.
    """
    asked = {label(recipe): recipe for recipe in recipes}
    found: dict[str, dict[str, Option]] = {}
    for text in texts:
        name = max((one for one in asked if text.startswith(f"{one}.")), key=len, default=None)
        if name is None:
            raise typer.BadParameter(
                f"'{text}' is not RECIPE.NAME=VALUE, of {', '.join(asked)}.", param_hint="--set"
            )
        try:
            own = recipe_of(resolved(asked[name])).options(options_of([text[len(name) + 1 :]]))
        except ValueError as error:
            raise typer.BadParameter(f"{error}.", param_hint="--set") from error
        found.setdefault(name, {}).update(own)
    return found


def check_runs(plan: Iterable[Cell], out: Path) -> None:
    """Raises JournalError where another recipe, or other settings of its own, began a run."""
    from craft_client.begin import check_recipe
    from craft_client.journal import Journal, JournalError

    for cell in plan:
        run = cell.folder(out) / "run"
        if not (run / RUN_FILE).exists():
            continue
        journal = Journal.open(run)
        check_recipe(resolved(cell.recipe), journal)
        if journal.document["settings"].get("options", {}) != dict(cell.options):
            raise JournalError(
                f"The run in '{run}' was begun with other settings of the recipe's own (--set). "
                "Nothing was charged.",
                remedy="Give the same ones, or name another folder with --out.",
            )


def find_datasets(
    root: Path, names: Sequence[str], splits: Sequence[Split] = ("train", "test")
) -> tuple[list[Dataset], list[str]]:
    """The data sets in folders below a folder, and of each that cannot be used why."""
    from craft_client.exceptions import DataError
    from craft_client.layouts import load_dataset

    found, missing = [], []
    for name in names:
        try:
            dataset = load_dataset(root / name)
            for split in splits:
                dataset.split(split)
        except DataError as error:
            missing.append(f"{name}: {error.message}")
        else:
            found.append(dataset)
    return found, missing


def folders_of(root: Path) -> list[str]:
    """The folders in a folder that may be data sets of their own, by name."""
    from craft_client.layouts import folders_in

    return [folder.name for folder in folders_in(root) if folder.name not in SHIFTS]


def find_shifts(root: Path, tuned: Dataset) -> tuple[list[str], list[str]]:
    """The shifts of ImageNet below a folder, and of each that cannot be used why."""
    from craft_shared.names import same_text

    if tuned.name != SHIFTED:
        return [], []
    datasets, missing = find_datasets(root, SHIFTS, ["test"])
    known = {same_text(name) for name in tuned.classes}
    found = []
    for dataset in datasets:
        unknown = [name for name in dataset.classes if same_text(name) not in known]
        if unknown:
            missing.append(f"{dataset.name}: '{unknown[0]}' is no class of '{tuned.name}'.")
        else:
            found.append(dataset.name)
    return found, missing


def cells(
    datasets: Iterable[str],
    recipes: Sequence[str],
    shots: Sequence[int],
    seeds: Sequence[int],
    budgets: Sequence[Asked | None] = (None,),
    options: Mapping[str, Mapping[str, Option]] | None = None,
    *,
    strict: bool = False,
) -> list[Cell]:
    """All runs of the benchmark, once each, all seeds of one before the next."""
    own = options or {}
    every = (
        Cell(data, recipe, count, seed, asked, tuple(own.get(label(recipe), {}).items()), strict)
        for data in datasets
        for count in shots
        for asked in budgets
        for recipe in recipes
        for seed in seeds
    )
    return list(dict.fromkeys(every))


def rows_of(results: Iterable[dict[str, Any]]) -> list[Row]:
    """The runs, and what each came to on shifts, where nothing was tuned."""
    from craft_client.comparison import Asked, Row

    rows = []
    for result in results:
        asked = result.get("budget")
        # Earlier versions kept what the receipt says alone.
        spent = result.get("spent", result["tuning"])
        measured = {None: {**result, "spent": spent}, **result.get("shifts", {})}
        rows += [
            Row(
                data=result["data"],
                method=result["recipe"],
                shots=result["shots"],
                seed=result["seed"],
                accuracy=one["accuracy"],
                zero_shot=one["zero_shot"],
                spent=one.get("spent", {}),
                asked=None if asked is None else Asked(**asked),
                images=one.get("test_images"),
                shift=shift,
                model=result["model"],
                revision=result["revision"],
                settings=result.get("settings", {}),
            )
            for shift, one in measured.items()
        ]
    return rows


def write_tables(out: Path, results: Sequence[dict[str, Any]], baseline: str | None) -> None:
    """Writes what runs came to until now: as JSON, CSV, Markdown and LaTeX."""
    from craft_client import tables
    from craft_client.comparison import differences, groups, means

    rows = rows_of(results)
    found = groups(rows)
    over, paired = means(found), differences(rows, baseline) if baseline else []
    parts = [tables.markdown(tables.columns(found), tables.cells_of(found, [*found, *over]))]
    parts.append(f"{tables.NOTE}.\n")
    if paired:
        cells = tables.difference_cells(paired)
        parts.append(tables.markdown(tables.DIFFERENCE_COLUMNS, cells))
    if note := paper_note(rows):
        parts.append(f"{note}\n")
    _write(out / "results.json", json.dumps(list(results), indent=1))
    _write(out / "results.csv", tables.csv(rows))
    _write(out / "results.md", "\n".join(parts))
    _write(out / "results.tex", tables.latex(found, over, paired))


def _draw(out: Path, rows: Sequence[Row], over: str) -> None:
    """Draws curves over a unit; of shifts there are none, because nothing is spent on them."""
    from craft_client.comparison import groups, measure
    from craft_client.plots import FORMS, draw_methods
    from craft_shared.files import write_whole

    found = groups(row for row in rows if row.shift is None)
    for form in FORMS:
        write_whole(out / f"results.{form}", draw_methods(found, measure(over), form=form))


def paper_note(rows: Sequence[Row]) -> str | None:
    """The paper's own means, beside the model, the shots and all the data sets that they are of."""
    like_theirs = {row.data for row in rows if (row.model, row.shots) == (PAPER_MODEL, PAPER_SHOTS)}
    if not like_theirs.issuperset(PAPER_SETS):
        return None
    listed = ", ".join(f"{name} {mean}" for name, mean in PAPER_MEANS.items())
    return f"The paper's means over its eleven data sets (RN50, 16 shots): {listed}."
