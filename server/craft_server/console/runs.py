"""Reported runs: a list, and each one's curve while it is drawn."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response

from craft_server import run_reports
from craft_server.api.services import WithServices
from craft_server.clock import epoch_ms, now_ms
from craft_server.console.access import WithPredictor
from craft_server.console.charts import line_chart, thinned_rows
from craft_server.console.forms import WithForm
from craft_server.console.rendering import page, redirect, render
from craft_server.console.sessions import set_notice
from craft_server.ledger.keys import Caller
from craft_shared.run_reports import RunCard, RunCurve, RunName
from craft_shared.units import UNITS

router = APIRouter(prefix="/console/runs", include_in_schema=False)

Run = Annotated[RunName, Path()]

_POINTS = 400
_ROWS = 200
_LEAST_PERCENT = 8.0
_SILENT_AFTER_MS = 120_000


@router.get("")
async def show_all(request: Request, services: WithServices, session: WithPredictor) -> Response:
    """All runs that the owner's keys have reported."""
    cards = await services.database.read(run_reports.list_runs, session.caller.owner)
    at = now_ms()
    return await page(
        request, "runs.html.jinja", runs=[(card, status_of(card, at)) for card in cards]
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


async def _curve(services: WithServices, caller: Caller, run: str) -> dict[str, Any]:
    """What the templates show of a run: curves over queries, and a table, the newest point first.

    `left_out` is the number of points that the table does not hold.
    """
    curve: RunCurve = await services.database.read(
        run_reports.read_curve, caller.owner, run, most=_POINTS
    )
    card, points = curve.card, curve.points
    x, right = [point.queries for point in points], card.budget or 0
    accuracy = [("accuracy", [point.accuracy for point in points])]
    loss = [
        ("mean of the request", [point.loss for point in points]),
        ("best so far", [point.best_loss for point in points]),
    ]
    rows = [points[row] for row in reversed(thinned_rows(len(points), most=_ROWS))]
    return {
        "card": card,
        "state": status_of(card, now_ms()),
        "accuracy_chart": line_chart(
            x, accuracy, bounds=(0, 100), least_span=_LEAST_PERCENT, right=right
        ),
        "loss_chart": line_chart(x, loss, right=right),
        "rows": rows,
        "left_out": card.points - len(rows),
        "units": UNITS,
    }
