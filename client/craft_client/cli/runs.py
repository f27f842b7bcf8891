"""`craft runs`, `craft report` and `craft compare`: what run directories hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from craft_client.cli.options import AsJson, Over, RunFolder, argument, option, run_folders
from craft_client.cli.page import Section, page, write
from craft_client.cli.root import command
from craft_client.cli.show import complain, document, percent, say, table
from craft_shared.amounts import SPARE_UNITS, UNITS, Measure

if TYPE_CHECKING:
    from craft_client.comparison import Row
    from craft_client.plots import Course, Form
    from craft_client.runs import Run


_FORMS = (".png", ".pdf", ".svg", ".html")


def _picture_or_page(out: Path | None) -> Path | None:
    if out is not None and out.suffix.lower() not in _FORMS:
        raise typer.BadParameter(f"'{out}' ends in none of {', '.join(_FORMS)}.")
    return out


@command("Runs and receipts", "craft runs", "craft runs bench --json")
def runs(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="The folder that holds run directories.")
    ] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder and below: what each was asked for, and what it came to.

    Costs, where there are any, are in the provider's currency.
    """
    from craft_client.runs import runs_below

    found, damaged = runs_below(folder)
    if as_json:
        document(
            {
                "runs": [_facts(run) for run in found],
                "damaged": [{"run": str(bad.folder), "reason": bad.reason} for bad in damaged],
            }
        )
        return
    if found:
        table(*_list(found), spare=_SPARE)
        _complain_of_evaluations(found)
    else:
        say(f"There are no runs in '{folder}' or below.")
    for bad in damaged:
        complain(f"Damaged: '{bad.folder}'. {bad.reason}")


@command(
    "Runs and receipts",
    "craft report runs/digits-16shots-seed1",
    "craft report runs/digits-16shots-seed1 --out reports",
)
def report(
    run: RunFolder,
    out: Annotated[
        Path | None,
        option("The folder to write into.", "RUN", file_okay=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw what a run came to, and its course over its budget: report.png and report.html.

    The page needs nothing but itself, so that it can be sent to others as it is.
    """
    from craft_client.plots import draw_run
    from craft_client.runs import Run

    found = Run.load(run)
    light, dark = draw_run(found), draw_run(found, dark=True)
    text = page(
        f"Run {found.name}",
        _notes(found),
        _sections(found),
        alt="Accuracy before and after, and the run's course over its queries where it has one.",
        light=light,
        dark=dark,
    )
    folder = out or run
    png, html = folder / "report.png", folder / "report.html"
    write({png: light, html: text})
    if as_json:
        document({**_facts(found), "png": str(png), "html": str(html)})
    _complain_of_evaluations([found])
    if not found.summary:
        say(f"The run in '{run}' is unfinished; the report says what its journal holds.")
    say(f"Wrote '{png}' and '{html}'.")


@command(
    "Runs and receipts",
    "craft compare runs/digits-16shots-seed1 runs/digits-16shots-seed2",
    "craft compare runs/one runs/two --out comparison.html",
)
def compare(
    run: Annotated[list[Path], argument("RUN...", "Run directories.", run_folders)],
    out: Annotated[
        Path | None,
        option(
            "Draw accuracies over what was spent into this .png, .pdf, .svg or .html file.",
            dir_okay=False,
            callback=_picture_or_page,
        ),
    ] = None,
    over: Over = "predictions",
    as_json: AsJson = False,
) -> None:
    """Compare runs: what each was asked for, what it was charged, and what it came to.

    The picture is that of `craft bench`: runs that differ in their seeds alone are one point.
    """
    from craft_client.comparison import measure, rows_of
    from craft_client.runs import compared

    found = compared(run)
    subject, rows = rows_of(found)
    drawn = None
    if out is not None:
        form = cast('Form | Literal["html"]', out.suffix.lower()[1:])
        drawn = _drawn(found, subject, rows, measure(over), form)
    if as_json:
        document({"runs": [_facts(one) for one in found]})
    else:
        table(*_comparison(found), spare=_SPARE)
    _complain_of_evaluations(found)
    _say_differences(found)
    if out is not None and drawn is not None:
        write({out: drawn})
        points = {id(one) for one, _ in rows}
        left_out = [f"'{one.folder}'" for one in found if id(one) not in points]
        if left_out:
            say(f"Without a point, because no {subject} is known: {', '.join(left_out)}.")
        say(f"Wrote '{out}'.")


def _facts(run: Run) -> dict[str, Any]:
    """JSON-able; what is not known is null."""
    settings, summary = run.about.settings, run.summary
    return {
        "run": str(run.folder),
        "data": run.data,
        "model": run.about.model,
        "revision": run.about.revision,
        "profile": run.about.profile.model_dump() if run.about.profile else None,
        "recipe": settings.recipe,
        "mode": settings.mode,
        "shots": settings.shots,
        "seed": settings.seed,
        "state": run.state,
        "deployed": summary.deployed if summary else None,
        "prompts": run.prompts,
        **run.units.model_dump(),
        "cost_micros": run.cost_micros,
        "accuracy_before": summary.accuracy_before if summary else None,
        "accuracy_after": summary.accuracy_after if summary else None,
        "evaluation": run.evaluation.summary if run.evaluation else None,
        "evaluation_fault": run.fault,
    }


_Columns = dict[str, Callable[["Run"], object]]
_ACCURACIES: _Columns = {
    "accuracy before": lambda run: run.leading.before,
    "accuracy after": lambda run: run.leading.after,
    "measured on": lambda run: run.leading.subject,
}
# The first one goes first, where a terminal is narrow.
_SPARE = (
    *SPARE_UNITS[:-1],
    *("seed", "mode", "shots", "prompts", "deployed", "model", "predictions", "measured on"),
    *("recipe", "queries", "data", "accuracy before"),
)


def _list(found: Sequence[Run]) -> tuple[list[str], list[list[object]]]:
    columns: _Columns = {
        "run": lambda run: run.folder,
        "data": lambda run: run.data,
        "model": lambda run: run.about.model,
        "shots": lambda run: _known(run.about.settings.shots),
        "seed": lambda run: str(_known(run.about.settings.seed)),
        "state": lambda run: run.state,
        "queries": lambda run: run.units.queries,
        "predictions": lambda run: run.units.predictions,
        **_ACCURACIES,
    }
    if any(run.cost_micros for run in found):
        columns["cost"] = _cost
    return _rows(columns, found)


def _comparison(found: Sequence[Run]) -> tuple[list[str], list[list[object]]]:

    columns: _Columns = {"run": lambda run: run.folder, "data": lambda run: run.data}
    if any(run.about.settings.recipe for run in found):
        columns["recipe"] = lambda run: _known(run.about.settings.recipe)
    if any(run.about.settings.mode for run in found):
        columns["mode"] = lambda run: _known(run.about.settings.mode)
    columns["shots"] = lambda run: _known(run.about.settings.shots)
    columns["seed"] = lambda run: str(_known(run.about.settings.seed))
    columns["deployed"] = lambda run: run.summary.deployed if run.summary else "not yet"
    columns["prompts"] = lambda run: "not yet" if run.prompts is None else run.prompts
    for unit in UNITS:
        columns[unit] = lambda run, unit=unit: run.units[unit]  # type: ignore[misc] # the default binds the loop's unit
    return _rows({**columns, **_ACCURACIES}, found)


def _rows(columns: _Columns, found: Sequence[Run]) -> tuple[list[str], list[list[object]]]:
    return list(columns), [[value(run) for value in columns.values()] for run in found]


def _cost(run: Run) -> object:
    from craft_client.blackbox import currency

    return "unknown" if run.cost_micros is None else currency(run.cost_micros)


def _known(value: object) -> object:
    return "unknown" if value is None else value


def _complain_of_evaluations(found: Sequence[Run]) -> None:
    for run in found:
        if run.fault:
            complain(f"Unusable: {run.fault}")


def _say_differences(found: Sequence[Run]) -> None:
    data = dict.fromkeys(str(run.about.data or "unknown") for run in found)
    if len(data) > 1:
        say(f"The runs differ in their data: {', '.join(data)}.")
    if len({tuple(run.about.classes) for run in found}) > 1:
        say("The runs differ in their classes.")
    # Of those without, the table says so itself.
    subjects = dict.fromkeys(run.leading.subject for run in found if run.evaluation)
    if len(subjects) > 1:
        say(f"The runs were measured on different pictures: {'; '.join(subjects)}.")


def _drawn(
    found: Sequence[Run],
    subject: str,
    rows: Sequence[tuple[Run, Row]],
    unit: Measure,
    form: Form | Literal["html"],
) -> bytes:
    from craft_client.comparison import groups, unit_name
    from craft_client.plots import draw_methods

    means = groups(row for _, row in rows)
    draw = partial(draw_methods, means, unit, subject=subject, courses=_courses(found, unit))
    if form != "html":
        return draw(form=form)
    return page(
        f"Comparison of {len(found)} runs",
        ["Points are accuracies of tuned adapters; lines below them are of runs while they tune."],
        [Section("Runs", *_comparison(found))],
        alt=f"{subject} of each method over the {unit_name(unit)} that it spent.",
        light=draw(),
        dark=draw(dark=True),
    )


def _courses(found: Sequence[Run], unit: Measure) -> list[Course]:
    """Of runs that have more than a point."""
    from craft_client.comparison import methods_of
    from craft_client.plots import Course, panel_title

    courses = []
    for run, method in zip(found, methods_of(found), strict=True):
        points = [(spent, at) for point, at in run.accuracies for spent in [point.spent(unit)]]
        known = [(spent, at) for spent, at in points if spent]
        if len(known) > 1:
            title = panel_title(run.data, run.about.settings.shots, run.model)
            spent, accuracies = zip(*known, strict=True)
            courses.append(Course(title, method, spent, accuracies))
    return courses


def _notes(run: Run) -> list[str]:
    notes = []
    if not run.summary:
        notes.append(
            "The run is unfinished: this is what its journal holds. Accuracy is known when it ends."
        )
    if run.failure:
        notes.append(f"It broke off: {run.failure}.")
    if run.summary and run.summary.stopped_by:
        stopped_by = run.summary.stopped_by
        notes.append(f"Stopped before the run's own budget was used up: {stopped_by}.")
    if run.fault:
        notes.append(f"The evaluation is left out. {run.fault}")
    elif run.summary and not run.evaluation:
        notes.append(
            "Accuracies are of the training pictures. On pictures that tuning has not seen: "
            f"craft evaluate {run.folder} --data DIR"
        )
    return notes


def _sections(run: Run) -> list[Section]:
    about, summary = run.about, run.summary
    facts: dict[str, object] = {
        "state": run.state,
        "began": about.started_at,
        "ended": summary.finished_at if summary else "not yet",
        "data": run.data,
        "classes": len(about.classes),
        "training pictures": len(about.labels),
        "model": about.model,
        "revision": about.revision,
        "craftbox": about.craftbox,
    }
    if about.profile:
        profile = about.profile
        facts["simulated provider"] = f"{profile.name}, version {profile.version}, {profile.digest}"
    if summary:
        facts |= {
            "deployed": summary.deployed,
            "its prompts": run.prompts,
            "its digest": summary.adapter,
        }
    charged: dict[str, object] = {unit: run.units[unit] for unit in UNITS}
    if run.cost_micros != 0:
        charged["cost"] = _cost(run)
    settings = {name: str(value) for name, value in about.settings if name != "mode" or value}
    sections = [
        *_accuracies(run),
        Section("Run", [], list(facts.items())),
        Section("Charged by the tuning, without the upload", list(charged), [[*charged.values()]]),
    ]
    if summary and summary.candidates:
        sections.append(
            Section(
                "What might have been deployed",
                [
                    "candidate",
                    "prompts",
                    "texts",
                    "held-out loss",
                    "regularisation",
                    "",
                ],
                [
                    [
                        one.name,
                        one.prompts,
                        one.texts,
                        "" if one.loss is None else f"{one.loss:.4f}",
                        "" if one.regularisation is None else f"{one.regularisation:.2g}",
                        "deployed" if one.name == summary.deployed else "",
                    ]
                    for one in summary.candidates
                ],
                [
                    index
                    for index, one in enumerate(summary.candidates)
                    if one.name == summary.deployed
                ],
            )
        )
    last = Section("Settings", ["setting", "value"], list(settings.items()))
    return [*sections, *_classes(run), last]


def _accuracies(run: Run) -> list[Section]:
    """The accuracies that are known, the ones that the run leads with first."""
    if not run.summary:
        return []
    rows = [
        ["training pictures, before: the plain prompt", run.training.before],
        ["training pictures, after: the adapter, held out", run.training.after],
    ]
    tested = run.evaluation
    if not tested:
        return [Section("Accuracy", [], rows, [1])]
    before = [f"{tested.subject}, before: the plain prompt", str(tested.before)]
    after = [f"{tested.subject}, after: the adapter", str(tested)]
    errors = [percent(one.calibration_error) for one in (tested.before, tested)] + ["", ""]
    return [
        Section(
            "Accuracy",
            [
                "",
                "accuracy (95 % interval)",
                f"calibration error ({tested.calibration_bins} bins)",
            ],
            [[*row, error] for row, error in zip([before, after, *rows], errors, strict=True)],
            [1],
        )
    ]


def _classes(run: Run) -> list[Section]:
    """What tuning changed in each class, where it was evaluated."""
    tested = run.evaluation
    if not tested:
        return []
    return [
        Section(
            f"Accuracy by class, {tested.subject}",
            ["class", "pictures", "before", "after", "change in points"],
            [
                [
                    one.name,
                    one.n,
                    percent(one.accuracy_before),
                    percent(one.accuracy),
                    f"{one.change:+.1f}",
                ]
                for one in tested.per_class
            ],
        )
    ]
