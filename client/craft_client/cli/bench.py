"""`craft bench`: data sets x shots x recipes x seeds, tuned and measured; it can be interrupted.

Sources of the paper's figures: CraFT (Wang et al., ICML 2024), table 2, and the papers named there,
for CLIP with RN50 at 16 shots, mean over the eleven data sets.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from craft_client.cli.options import (
    PLAIN_TEMPLATE,
    AsJson,
    Key,
    Model,
    ShotsStrict,
    Strict,
    Url,
    option,
    recipes,
)
from craft_client.cli.root import command
from craft_client.cli.show import document, say, table
from craft_client.cli.tune import new_task, tune_task
from craft_client.recipes import OWN
from craft_client.run_folder import LOCK_FILE, RUN_FILE
from craft_shared.amounts import UNITS

if TYPE_CHECKING:
    from craft_client.cli.evaluate import Measured
    from craft_client.data import Dataset, Split
    from craft_shared.units import Units


RESULT_FILE = "result.json"
COLUMNS = ("data", "shots", "recipe", "zero-shot", "tuned", *UNITS)

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


PAPER_NOTE = "The paper's means over its eleven data sets (RN50, 16 shots): {}.".format(
    ", ".join(f"{name} {mean}" for name, mean in PAPER_MEANS.items())
)


@command(
    "Tune and measure",
    "craft bench --data ROOT --recipe craftbox --recipe paper",
    "craft bench --data ROOT --dataset caltech-101 --shots 1 --shots 16 --seed 1",
)
def bench(
    data: Annotated[Path, option("Holds a folder a data set, of any layout.")],
    out: Annotated[Path, option("Results; what is there already is kept.", True)] = Path("bench"),
    dataset: Annotated[
        list[str] | None, option("Folder of a data set; repeatable.", "all that are there")
    ] = None,
    shots: Annotated[
        list[int] | None, option("Training pictures a class; repeatable.", "16")
    ] = None,
    shots_strict: ShotsStrict = False,
    seed: Annotated[
        list[int] | None, option("Of the few-shot draw and the search; repeatable.", "1 2 3")
    ] = None,
    recipe: Annotated[
        list[str] | None,
        option(
            f"{', '.join(OWN)} or a plug-in's, as of tune; repeatable.",
            "craftbox",
            autocompletion=recipes,
        ),
    ] = None,
    budget: Annotated[
        int | None, option("Queries that each run may spend.", "the recipe's", min=1)
    ] = None,
    strict: Strict = False,
    model: Model = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Tune and measure on many data sets, with mean and spread over seeds.

    Each run has a receipt of what it was charged. What was tuned on ImageNet is measured on its
    four shifts too (V2, Sketch, A, R). Data sets and shifts that are not there are named and left
    out. A benchmark that was interrupted continues where it stopped: nothing is paid for twice.
    """
    from craft_client.exceptions import DataError
    from craft_client.journal import Journal
    from craft_client.run_folder import alone
    from craft_shared.files import write_whole

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
    plan = cells(sets, recipe or ["craftbox"], shots or [16], seed or [1, 2, 3])
    out.mkdir(parents=True, exist_ok=True)
    with alone(out / LOCK_FILE, f"the benchmark in '{out}'"):
        results = {cell: result for cell in plan if (result := _result_in(cell.folder(out)))}

        def in_order() -> list[dict[str, Any]]:
            return [results[cell] for cell in plan if cell in results]

        def summed_up() -> list[dict[str, Any]]:
            lines = summarise(in_order())
            write_whole(out / "results.json", json.dumps(in_order(), indent=1).encode())
            write_whole(out / "results.md", markdown(lines).encode())
            return lines

        def store(cell: Cell, result: dict[str, Any]) -> None:
            results[cell] = result
            write_whole(cell.folder(out) / RESULT_FILE, json.dumps(result, indent=1).encode())
            summed_up()

        for number, cell in enumerate(plan, start=1):
            what = (
                f"{number}/{len(plan)} {cell.data}, {cell.recipe}, {cell.shots} shots, {cell.seed}"
            )
            say(what)
            folder, pictures = cell.folder(out), data / cell.data
            if cell not in results:
                run = folder / "run"
                if not ((run / RUN_FILE).exists() and Journal.open(run).whole):
                    task = new_task(
                        sets[cell.data],
                        cell.recipe,
                        cell.shots,
                        cell.seed,
                        shots_strict=shots_strict,
                        strict=strict,
                        budget=budget,
                        template=PLAIN_TEMPLATE,
                    )
                    with Journal.claimed(run) as journal:
                        tune_task(task, journal, model, url, key)
                store(cell, _measure(cell, pictures, folder, url, key))
            for shift in shifts[cell.data]:
                measured = results[cell].get("shifts", {})
                if shift not in measured:
                    say(f"{what}, on {shift}")
                    one = _measure_shift(folder, data / shift, url, key)
                    store(cell, {**results[cell], "shifts": {**measured, shift: one}})
        lines = summed_up()
    if as_json:
        document({"results": in_order(), "summary": lines, "skipped": missing})
        return
    table(COLUMNS, rows(lines))
    say(PAPER_NOTE)


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
    from craft_shared.files import write_whole

    run = folder / "run"
    summary = Journal.open(run).summary()
    text, receipt = fetch_receipt(str(run), url, key)
    write_whole(folder / "receipt.jws", f"{text}\n".encode())
    measured = measure_run(run, data, "test", url, key, once=True)
    charged = _charged(measured, url, key)
    if measured.evaluation:
        keep(run, measured.evaluation.model_copy(update={"charged": charged}))
    return {
        "data": cell.data,
        "recipe": cell.recipe,
        "shots": cell.shots,
        "seed": cell.seed,
        "zero_shot": measured.accuracies["accuracy_before"],
        "accuracy": measured.accuracies["accuracy_after"],
        "deployed": summary["deployed"],
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

    def folder(self, out: Path) -> Path:
        """Where its run directory lies."""
        return out / self.data / self.recipe / f"{self.shots}shots-seed{self.seed}"


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
    datasets: Iterable[str], recipes: Sequence[str], shots: Sequence[int], seeds: Sequence[int]
) -> list[Cell]:
    """All runs of the benchmark, seed by seed, so that a table can be drawn early."""
    return [
        Cell(data, recipe, count, seed)
        for data in datasets
        for count in shots
        for recipe in recipes
        for seed in seeds
    ]


def summarise(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds, a line for each data set, shift, shots and recipe.

    `spread` is None for one seed. What a shift's lines say of tuning is nothing: what was tuned was
    tuned on the data set.
    """
    groups: dict[tuple[str, str | None, int, str], list[dict[str, Any]]] = {}
    for result in results:
        measured = {None: result} | {
            shift: {**one, "seed": result["seed"], "tuning": dict.fromkeys(UNITS, 0)}
            for shift, one in result.get("shifts", {}).items()
        }
        for shift, one in measured.items():
            key = result["data"], shift, result["shots"], result["recipe"]
            groups.setdefault(key, []).append(one)
    lines = []
    for (data, shift, shots, recipe), runs in groups.items():
        accuracies = [run["accuracy"] for run in runs]
        tuning: dict[str, float] = {
            unit: statistics.mean(run["tuning"][unit] for run in runs) for unit in UNITS
        }
        lines.append(
            {
                "data": data,
                "shift": shift,
                "shots": shots,
                "recipe": recipe,
                "seeds": [run["seed"] for run in runs],
                "zero_shot": statistics.mean(run["zero_shot"] for run in runs),
                "mean": statistics.mean(accuracies),
                "spread": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
                **tuning,
            }
        )
    return lines


def rows(lines: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The lines as cells of a table, a mean over data sets for each recipe and shots last.

    Shifts are no data sets of their own: they are in no mean.
    """
    shown = [_row(_name(line), line) for line in lines]
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for line in lines:
        if line["shift"] is None:
            groups.setdefault((line["shots"], line["recipe"]), []).append(line)
    for members in groups.values():
        if len(members) > 1:
            fields = ("zero_shot", "mean", *UNITS)
            means: dict[str, float] = {
                field: statistics.mean(line[field] for line in members) for field in fields
            }
            name = f"mean of {len(members)}"
            shown.append(_row(name, {**members[0], **means, "spread": None}))
    return shown


def markdown(lines: Sequence[dict[str, Any]]) -> str:
    """The table as Markdown, with the paper's means below it."""
    head = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    body = [f"| {' | '.join(row)} |" for row in rows(lines)]
    return "\n".join([*head, *body, "", PAPER_NOTE, ""])


def _name(line: dict[str, Any]) -> str:
    return line["data"] if line["shift"] is None else f"{line['data']} -> {line['shift']}"


def _row(name: str, line: dict[str, Any]) -> list[str]:
    spread = "" if line["spread"] is None else f" ± {line['spread']:.2f}"
    return [
        name,
        str(line["shots"]),
        line["recipe"],
        f"{line['zero_shot']:.2f}",
        f"{line['mean']:.2f}{spread}",
        *(f"{line[unit]:,.0f}" for unit in UNITS),
    ]
