"""Reported runs: a list to search, several in one plot, and each one's page while it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response
from sqlalchemy import Connection

from craft_server import run_reports
from craft_server.api.services import WithServices
from craft_server.clock import epoch_ms, now_ms
from craft_server.console.access import WithPredictor
from craft_server.console.charts import LineChart, Series, line_chart, thinned_rows
from craft_server.console.forms import WithForm, message_of, text_of
from craft_server.console.rendering import page, redirect, render
from craft_server.console.sessions import set_notice
from craft_server.ledger.keys import Caller
from craft_server.run_reports import NoSuchRun
from craft_shared.run_reports import RUNS_PER_OWNER, RunCard, RunCurve, RunName
from craft_shared.units import UNITS
from craft_shared.wire import Message
from craft_shared.wire.messages import Label

router = APIRouter(prefix="/console/runs", include_in_schema=False)

Run = Annotated[RunName, Path()]
Choice = Annotated[str, Query(max_length=200)]

_POINTS = 400
_ROWS = 200
_MOST_DRAWN = 8  # runs; there are as many colours
_LEAST_PERCENT = 8.0
_SILENT_AFTER_MS = 120_000


class Note(Message):
    """What the owner writes of a run; empty for nothing."""

    note: Label = ""


@dataclass(frozen=True)
class Reached:
    """The accuracy that a run is shown with, percent: how it was measured, and on which images."""

    accuracy: float | None
    how: str
    images: str


@dataclass(frozen=True)
class RunRow:
    """A run in the list."""

    card: RunCard
    state: str
    reached: Reached
    drawn: bool  # in the plot above the list


# What the list can be sorted by, in words; where a run has no such value it comes last.
_ORDERS: dict[str, Callable[[RunRow], Any]] = {
    "last heard": lambda row: 0,  # as they are read
    "accuracy": lambda row: (row.reached.how == "before", -_known(row.reached.accuracy)),
    "queries": lambda row: row.card.latest.queries if row.card.latest else 0,
    "name": lambda row: (row.card.title or row.card.run).casefold(),
}


@router.get("")
async def show_all(
    request: Request,
    services: WithServices,
    session: WithPredictor,
    recipe: Choice = "",
    dataset: Choice = "",
    state: Choice = "",
    sort: Choice = "last heard",
    draw: Annotated[list[RunName] | None, Query(max_length=RUNS_PER_OWNER)] = None,
) -> Response:
    """The runs that the owner's keys have reported, and a plot of those that were chosen."""
    owner, chosen = session.caller.owner, (draw or [])[:_MOST_DRAWN]
    cards = await services.database.read(run_reports.list_runs, owner)
    curves = await services.database.read(_read_curves, owner, chosen)
    at = now_ms()
    rows = [RunRow(card, status_of(card, at), reached(card), card.run in chosen) for card in cards]
    shown = [
        row
        for row in rows
        if recipe in ("", row.card.recipe)
        and dataset in ("", row.card.dataset)
        and state in ("", row.state)
    ]
    return await page(
        request,
        "runs.html.jinja",
        rows=sorted(shown, key=_ORDERS.get(sort, _ORDERS["last heard"])),
        choices={
            "recipe": (recipe, _found(row.card.recipe for row in rows)),
            "dataset": (dataset, _found(row.card.dataset for row in rows)),
            "state": (state, _found(row.state for row in rows)),
        },
        sort=sort,
        orders=list(_ORDERS),
        any=bool(rows),
        chart=_accuracy_chart([(one.card.title or one.card.run, one) for one in curves]),
        most_drawn=_MOST_DRAWN,
    )


@router.get("/{run}")
async def show(
    request: Request, services: WithServices, session: WithPredictor, run: Run
) -> Response:
    """One run."""
    return await page(request, "run.html.jinja", **await _curve(services, session.caller, run))


@router.get("/{run}/curve")
async def show_curve(
    request: Request, services: WithServices, session: WithPredictor, run: Run
) -> Response:
    """The part of a run's page that changes while it runs."""
    return render(request, "run_curve.html.jinja", **await _curve(services, session.caller, run))


@router.post("/{run}/note")
async def write_note(
    request: Request, services: WithServices, session: WithPredictor, form: WithForm, run: Run
) -> Response:
    """Keeps what the owner writes of a run."""
    request.state.back = f"/console/runs/{run}"
    note = message_of(Note, {"note": text_of(form, "note")}).note
    await services.database.write(run_reports.put_note, session.caller.owner, run, note)
    done = "The note was written." if note else "The note was removed."
    await services.database.write(set_notice, session, done)
    return redirect(f"/console/runs/{run}")


@router.post("/{run}/delete")
async def delete(
    services: WithServices, session: WithPredictor, _form: WithForm, run: Run
) -> Response:
    """Forgets a report."""
    await services.database.write(run_reports.delete, session.caller.owner, run)
    await services.database.write(set_notice, session, f"The report of {run} was deleted.")
    return redirect("/console/runs")


def status_of(card: RunCard, at: int) -> str:
    """The run's state; `silent` if it says that it runs and has not reported for long."""
    heard = epoch_ms(datetime.fromisoformat(card.updated_at))
    silent = card.state == "running" and at - heard > _SILENT_AFTER_MS
    return "silent" if silent else card.state


def reached(card: RunCard) -> Reached:
    """The best measured of a run's accuracies: tested, held out, in training, before tuning."""
    evaluation, outcome, latest = card.evaluation, card.outcome, card.latest
    if evaluation is not None:
        return Reached(evaluation.accuracy, "tested", evaluation.subject)
    if outcome is not None and outcome.after is not None:
        return Reached(outcome.after, "held out", "training pictures")
    if latest is not None and latest.accuracy is not None and latest.sequence > 0:
        # Clients of earlier versions tell no outcome; their last point is held out.
        how = "held out" if card.state == "finished" else "in training"
        return Reached(latest.accuracy, how, "training pictures")
    return Reached(card.before, "before", "training pictures")


def _known(value: float | None) -> float:
    return -1.0 if value is None else value


def _found(values: Any) -> list[str]:
    return sorted({value for value in values if value})


def _read_curves(connection: Connection, owner: str, runs: Sequence[str]) -> list[RunCurve]:
    """The curves of those of the runs that are there."""
    curves = []
    for run in runs:
        try:
            curves.append(run_reports.read_curve(connection, owner, run, most=_POINTS))
        except NoSuchRun:
            continue
    return curves


def _accuracy_chart(curves: Sequence[tuple[str, RunCurve]], *, right: int = 0) -> LineChart | None:
    """A line for each of the named curves."""
    series = [
        Series(name, [(point.queries, point.accuracy) for point in curve.points], curve.card.before)
        for name, curve in curves
    ]
    return line_chart(series, bounds=(0, 100), least_span=_LEAST_PERCENT, right=right)


async def _curve(services: WithServices, caller: Caller, run: str) -> dict[str, Any]:
    """What the templates show of a run: curves over queries, and a table, the newest point first.

    A run that tuned nothing step by step, as of one request, has no course to draw. `left_out` is
    the number of points that the table does not hold.
    """
    curve: RunCurve = await services.database.read(
        run_reports.read_curve, caller.owner, run, most=_POINTS
    )
    card, points = curve.card, curve.points
    right = card.budget or 0
    rows = [points[row] for row in reversed(thinned_rows(len(points), most=_ROWS))]
    loss = [
        Series("mean of the request", [(point.queries, point.loss) for point in points]),
        Series("best so far", [(point.queries, point.best_loss) for point in points]),
    ]
    return {
        "card": card,
        "state": status_of(card, now_ms()),
        "reached": reached(card),
        "is_course": any(point.generation for point in points),
        "accuracy_chart": _accuracy_chart([("accuracy", curve)], right=right),
        "loss_chart": line_chart(loss, right=right),
        "rows": rows,
        "left_out": card.points - len(rows),
        "units": UNITS,
    }
