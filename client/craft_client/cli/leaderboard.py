"""`craft leaderboard`: runs that prove what they were charged, as a page, CSV and JSON."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from craft_client.cli.options import (
    AsJson,
    Key,
    Over,
    RunFolder,
    Url,
    argument,
    option,
    run_folders,
)
from craft_client.cli.page import Section, page, write
from craft_client.cli.receipts import Keys, known_keys
from craft_client.cli.root import app
from craft_client.cli.show import complain, document, report_done, say
from craft_shared.commands import Typer, examples
from craft_shared.printing import json_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from craft_client.comparison import Group, Row
    from craft_client.exceptions import CraftError
    from craft_client.leaderboard import Leaderboard, Submission

_PROVES = (
    "What each run was charged is proved: the provider has signed it, and the run's journal, "
    "adapter and evaluation say the same. Accuracies were computed by those who ran it; each run "
    "has its adapter, so that whoever has the images can measure it anew.",
    "Accuracy is of the whole test split, in percent, mean ± standard deviation over seeds; "
    "intervals are of 95 % (Student's t, over seeds). Lines of the picture join the budgets of a "
    "method, each of which has runs of its own. In strict access class names alone are scored, in "
    "open-text access other texts beside them. Budgets are what tuning was given; the columns "
    "after n are what it spent.",
)
_REMEDY = "See why: craft leaderboard check RUN"
_leaderboard = Typer(
    no_args_is_help=True,
    help="Publish runs whose receipts add up.",
    epilog=examples("craft leaderboard build bench --out site"),
)
app.add_typer(_leaderboard, name="leaderboard", rich_help_panel="Runs and receipts")


@_leaderboard.command(
    "build",
    epilog=examples(
        "craft leaderboard build bench --out site",
        "craft leaderboard build runs/one runs/two --out site --keys keys.json",
    ),
)
def build(
    runs: Annotated[
        list[Path], argument("RUN...", "Run directories, or folders that hold some.", run_folders)
    ],
    out: Annotated[Path, option("The folder to write into.", file_okay=False)],
    keys: Keys = None,
    over: Over = "predictions",
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Verify runs, and write those that add up as a page with a table for each task.

    OUT/tasks.json freezes tasks: runs that come later must be of the same images and the same
    model. A run that does not add up is named with the reason, and left out.
    """
    from craft_client.comparison import groups, measure
    from craft_client.exceptions import DataError
    from craft_client.leaderboard import TASKS_FILE, Leaderboard, read_tasks, tasks_document
    from craft_client.plots import draw_methods
    from craft_client.tables import csv

    board = Leaderboard(read_tasks(out / TASKS_FILE))
    refused = _take(board, runs, keys, url)
    if not board.taken:
        raise DataError("None of these runs adds up.", remedy=_REMEDY)
    rows = [row for _, row in board.rows()]
    found = groups(rows)
    draw = partial(draw_methods, found, measure(over))
    documents = {
        TASKS_FILE: tasks_document(board.tasks),
        "results.json": {
            "runs": [_document(one) for one, _ in board.rows()],
            "summary": [group.document for group in found],
        },
    }
    texts = {name: f"{json_text(one, indent=1)}\n" for name, one in documents.items()}
    texts["results.csv"] = csv(rows)
    index = page(
        "Leaderboard",
        _PROVES,
        _sections(board),
        alt=f"Test accuracy of each method over the {over} that it spent.",
        light=draw(),
        dark=draw(dark=True),
        files=list(texts),
    )
    contents = {"index.html": index, **{name: text.encode() for name, text in texts.items()}}
    write({out / name: content for name, content in contents.items()})
    words = f"Wrote '{out / 'index.html'}': {len(board.taken):,} runs, {len(board.tasks):,} tasks."
    left_out = {str(folder): error.lines for folder, error in refused.items()}
    report_done({"taken": len(board.taken), "refused": left_out}, words, as_json)


@_leaderboard.command(
    "check",
    epilog=examples(
        "craft leaderboard check runs/one --keys keys.json",
        "craft leaderboard check runs/one --tasks site/tasks.json --data digits",
    ),
)
def check(
    run: RunFolder,
    data: Annotated[
        Path | None,
        option("Pictures to measure the adapter on again. This is charged.", "not measured"),
    ] = None,
    tasks: Annotated[
        Path | None, option("A leaderboard's tasks.json, to whose tasks the run must belong.")
    ] = None,
    keys: Keys = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Verify a run as `craft leaderboard build` does, before it is handed in."""
    from craft_client.cli.evaluate import measure_run
    from craft_client.data import digest_of
    from craft_client.layouts import load_dataset
    from craft_client.leaderboard import (
        Leaderboard,
        check_anew,
        check_apart,
        read_tasks,
        verified,
    )
    from craft_shared.units import Units

    board = Leaderboard({} if tasks is None else read_tasks(tasks))
    one = verified(run, known_keys(keys, url))
    is_known = one.task.name in board.tasks
    board.take(one)
    if data is not None:
        check_apart(one.run, (digest_of(sample.path) for sample in load_dataset(data).test))
    anew = None if data is None else measure_run(run, data, "test", url, key)
    if anew and anew.evaluation:
        check_anew(one.run, anew.evaluation)
        say(f"Measured anew, its accuracy is {anew.evaluation}, as it says.")
    task = f"the task '{one.task.name}' ({one.task.digest[:16]})"
    words = f"The run adds up. It is of {task}, {'which is known' if is_known else 'a new one'}."
    charged = (anew.charged if anew else Units()).model_dump()
    if as_json:
        document({**_document(one), "known": is_known, "charged": charged})
    else:
        say(words)


def _take(
    board: Leaderboard, folders: Sequence[Path], keys: Path | None, url: str | None
) -> dict[Path, CraftError]:
    """Gives the leaderboard all runs below the folders; why not, of those that it refuses."""
    from craft_client.exceptions import CraftError, DataError
    from craft_client.leaderboard import verified
    from craft_client.runs import runs_below

    known, refused = known_keys(keys, url), dict[Path, CraftError]()
    for folder in folders:
        found, damaged = runs_below(folder)
        refused |= {bad.folder: DataError(bad.reason) for bad in damaged}
        for run in found:
            try:
                board.take(verified(run.folder, known))
            except CraftError as error:
                refused[run.folder] = error
    for where, why in refused.items():
        head, *more = why.lines
        complain(f"Refused: '{where}'. {head}", *more)
    return refused


def _sections(board: Leaderboard) -> list[Section]:
    """A table for each task and access mode, by budget, the best first."""
    from craft_client.comparison import groups
    from craft_client.tables import cells_of, columns

    by_place: dict[tuple[str, str], list[Row]] = {}
    owners: dict[tuple[object, ...], set[str]] = {}
    for one, row in board.rows():
        by_place.setdefault((one.task.name, one.access), []).append(row)
        owners.setdefault((*row.cell, row.method), set()).add(one.receipt.owner)
    sections = []
    for (name, access), rows in by_place.items():
        found = sorted(groups(rows), key=_rank)
        # Data and shots are in the heading.
        cells = [
            [*cells[2:], ", ".join(sorted(owners[*group.cell, group.method]))]
            for group, cells in zip(found, cells_of(found, found), strict=True)
        ]
        heading = f"{name}; {access} access; task {board.tasks[name].digest[:16]}"
        sections.append(Section(heading, [*columns(found)[2:], "handed in by"], cells))
    return sections


def _rank(group: Group) -> tuple[str, int, float]:
    asked = group.asked
    place = ("", 0) if asked is None else (asked.unit, asked.amount)
    return *place, -group.accuracy.mean


def _document(one: Submission) -> dict[str, Any]:
    """JSON-able."""
    from craft_client.runs import Run

    run: Run = one.run
    settings, tested = run.about.settings, run.evaluation
    return {
        "run": run.name,
        "task": one.task.name,
        "task_digest": one.task.digest,
        "access": one.access,
        "recipe": settings.recipe,
        "seed": settings.seed,
        "budget": settings.budget,
        "budget_unit": settings.budget_unit,
        **run.units.model_dump(),
        "cost_micros": run.cost_micros,
        "accuracy": tested and tested.accuracy,
        "interval": tested and list(tested.interval),
        "zero_shot": tested and tested.before.accuracy,
        "issuer": one.receipt.issuer,
        "owner": one.receipt.owner,
        "adapter": run.summary and run.summary.adapter,
    }
