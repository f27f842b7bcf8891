"""`craft bench`: data sets x shots x recipes x seeds, tuned and measured; it can be interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from craft_client.cli.completion import recipes
from craft_client.cli.options import (
    PLAIN_TEMPLATE,
    AsJson,
    Key,
    Model,
    ShotsStrict,
    Strict,
    Url,
)
from craft_client.cli.root import command
from craft_client.cli.show import document, say, table
from craft_client.recipes import OWN
from craft_client.run_files import LOCK_FILE, RUN_FILE

if TYPE_CHECKING:
    from craft_client.bench import Cell
    from craft_client.cli.evaluate import Measured
    from craft_client.data import Dataset
    from craft_shared.units import Units

RESULT_FILE = "result.json"


@command(
    "Tune and measure",
    "craft bench --data ROOT --recipe craftbox --recipe paper",
    "craft bench --data ROOT --dataset caltech-101 --shots 1 --shots 16 --seed 1",
)
def bench(
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            show_default=False,
            help="Holds a folder a data set, named as CoOp names them.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Results; what is there already is kept.")] = Path(
        "bench"
    ),
    dataset: Annotated[
        list[str] | None,
        typer.Option(show_default="the paper's eleven", help="Folder of a data set; repeatable."),
    ] = None,
    shots: Annotated[
        list[int] | None,
        typer.Option(show_default="16", help="Training pictures a class; repeatable."),
    ] = None,
    shots_strict: ShotsStrict = False,
    seed: Annotated[
        list[int] | None,
        typer.Option(show_default="1 2 3", help="Of the few-shot draw and the search; repeatable."),
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            show_default="craftbox",
            help=f"{', '.join(OWN)} or a plug-in's, as of tune; repeatable.",
            autocompletion=recipes,
        ),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(min=1, show_default="the recipe's", help="Queries that each run may spend."),
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
    from craft_client import bench as benchmark
    from craft_client.exceptions import DataError
    from craft_client.locks import alone
    from craft_shared.files import write_whole

    found, missing = benchmark.find_datasets(data, dataset or benchmark.PAPER_SETS)
    shifts: dict[str, list[str]] = {}
    for tuned in found:
        shifts[tuned.name], unusable = benchmark.find_shifts(data, tuned)
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
    plan = benchmark.cells(sets, recipe or ["craftbox"], shots or [16], seed or [1, 2, 3])
    out.mkdir(parents=True, exist_ok=True)
    with alone(out / LOCK_FILE, f"the benchmark in '{out}'"):
        results = {cell: result for cell in plan if (result := _result_in(cell.folder(out)))}

        def in_order() -> list[dict[str, Any]]:
            return [results[cell] for cell in plan if cell in results]

        def summed_up() -> list[dict[str, Any]]:
            lines = benchmark.summarise(in_order())
            write_whole(out / "results.json", json.dumps(in_order(), indent=1).encode())
            write_whole(out / "results.md", benchmark.markdown(lines).encode())
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
                result = _measure(
                    cell,
                    sets[cell.data],
                    pictures,
                    folder,
                    budget,
                    model,
                    url,
                    key,
                    shots_strict=shots_strict,
                    strict=strict,
                )
                store(cell, result)
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
    table(benchmark.COLUMNS, benchmark.rows(lines))
    say(benchmark.PAPER_NOTE)


def _result_in(folder: Path) -> dict[str, Any] | None:
    """What a cell came to; None where that is not there or damaged, and to be put together anew."""
    try:
        result: dict[str, Any] = json.loads((folder / RESULT_FILE).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return result


def _measure(
    cell: Cell,
    dataset: Dataset,
    data: Path,
    folder: Path,
    budget: int | None,
    model: str | None,
    url: str | None,
    key: str | None,
    *,
    shots_strict: bool,
    strict: bool,
) -> dict[str, Any]:
    from craft_client.cli.evaluate import keep, measure_run
    from craft_client.cli.receipts import fetch_receipt
    from craft_client.cli.task import new_task, tune_task
    from craft_client.journal import Journal
    from craft_shared.files import write_whole

    run = folder / "run"
    if not ((run / RUN_FILE).exists() and Journal.open(run).whole):
        task = new_task(
            dataset,
            data,
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
