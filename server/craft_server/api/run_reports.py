"""`/v1/runs`: runs report themselves, for the console and for who asks. Opt-in and free.

A report neither counts against the key's requests a minute nor is charged, so that reporting never
takes from the run what it needs; it has a bound of its own.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path

from craft_server import run_reports
from craft_server.api.auth import WithCallerAtAnyRate
from craft_server.api.body import Body, body_of
from craft_server.api.openapi import refusals, refuses
from craft_server.api.services import WithServices
from craft_server.clock import now_ms
from craft_server.ledger.keys import Caller
from craft_server.problems import ProblemError
from craft_shared.problems import FORBIDDEN, NOT_FOUND, RATE_LIMITED
from craft_shared.run_reports import (
    POINTS_PER_MINUTE,
    RunCard,
    RunCurve,
    RunEvaluation,
    RunList,
    RunName,
    RunPoints,
    RunReport,
)

router = APIRouter(prefix="/v1/runs", tags=["runs"])

CALLS_PER_MINUTE = 600

Run = Annotated[
    RunName,
    Path(description="What the client calls the run, as in `Craft-Run`.", examples=["digits-1"]),
]


@refuses(RATE_LIMITED, FORBIDDEN)
async def _reporter(services: WithServices, caller: WithCallerAtAnyRate) -> Caller:
    await services.rate_limits.use("run-reports", caller.key_id, 1, CALLS_PER_MINUTE)
    if "predict" not in caller.scopes:
        raise ProblemError(FORBIDDEN, "the call needs a key with the scope 'predict'")
    return caller


WithReporter = Annotated[Caller, Depends(_reporter)]


@router.put("/{run}", summary="Report a run")
async def report_run(
    services: WithServices,
    caller: WithReporter,
    run: Run,
    body: Annotated[Body[RunReport], Depends(body_of(RunReport))],
) -> RunCard:
    """Makes or changes the report of a run. Of an owner's runs the latest 1,000 are kept."""
    return await services.database.write(run_reports.put, caller.owner, run, body.message, now_ms())


@router.put("/{run}/points", summary="Report points of a run", responses=refusals(NOT_FOUND))
async def report_points(
    services: WithServices,
    caller: WithReporter,
    run: Run,
    body: Annotated[Body[RunPoints], Depends(body_of(RunPoints))],
) -> RunCard:
    """Adds points to the run's curve. A point that is there already changes nothing.

    A key reports 6,000 points a minute at most. Of an owner 100,000 are kept: past that, the runs
    that reported least recently are deleted.
    """
    points = len(body.message.points)
    await services.rate_limits.use("run-points", caller.key_id, points, POINTS_PER_MINUTE)
    return await services.database.write(
        run_reports.add_points, caller.owner, run, body.message.points, now_ms()
    )


@router.put("/{run}/evaluation", summary="Report an evaluation", responses=refusals(NOT_FOUND))
async def report_evaluation(
    services: WithServices,
    caller: WithReporter,
    run: Run,
    body: Annotated[Body[RunEvaluation], Depends(body_of(RunEvaluation))],
) -> RunCard:
    """Sets what the run's adapter is worth on labelled images; the console leads with it."""
    return await services.database.write(
        run_reports.put_evaluation, caller.owner, run, body.message, now_ms()
    )


@router.get("", summary="Reported runs")
async def list_runs(services: WithServices, caller: WithReporter) -> RunList:
    """The owner's runs, the one that reported last first."""
    return RunList(runs=await services.database.read(run_reports.list_runs, caller.owner))


@router.get("/{run}", summary="A reported run", responses=refusals(NOT_FOUND))
async def get_run(services: WithServices, caller: WithReporter, run: Run) -> RunCurve:
    """A run with its whole curve."""
    return await services.database.read(run_reports.read_curve, caller.owner, run)


@router.delete(
    "/{run}",
    status_code=204,
    summary="Forget a reported run",
    responses=refusals(NOT_FOUND),
)
async def delete_run(services: WithServices, caller: WithReporter, run: Run) -> None:
    """Deletes the report and its points; what the run was charged stays in the ledger."""
    await services.database.write(run_reports.delete, caller.owner, run)
