"""Runs that report themselves: what clients reported, by owner.

A run's name belongs to its owner. A point is stored once under its sequence number. Every function
is one transaction of its caller.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from craft_server.clock import rfc3339
from craft_server.database import METADATA, Id, insert_all_missing, insert_missing
from craft_server.ledger.account import units_of
from craft_shared.run_reports import (
    POINTS_PER_OWNER,
    POINTS_PER_RUN,
    RUNS_PER_OWNER,
    RunCard,
    RunCurve,
    RunEvaluation,
    RunOutcome,
    RunPoint,
    RunReport,
)
from craft_shared.units import UNITS

RUN_REPORTS = sa.Table(
    "run_reports",
    METADATA,
    sa.Column("id", Id, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("dataset", sa.Text, nullable=False),
    sa.Column("recipe", sa.Text, nullable=False),
    sa.Column("budget", sa.BigInteger),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("started_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.Column("evaluation", sa.Text),  # a `RunEvaluation`, as JSON
    sa.Column("outcome", sa.Text),  # a `RunOutcome`, as JSON
    sa.Column("note", sa.Text, nullable=False, server_default=""),
    sa.UniqueConstraint("owner", "run"),
)

RUN_POINTS = sa.Table(
    "run_points",
    METADATA,
    sa.Column("report_id", Id, sa.ForeignKey("run_reports.id"), primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("loss", sa.Double),
    sa.Column("best_loss", sa.Double),
    sa.Column("accuracy", sa.Double),
    # What the run has spent by its own count, not only of `units`: the paper's budget.
    sa.Column("spent", sa.BigInteger, nullable=False),
    *(sa.Column(unit, sa.BigInteger, nullable=False) for unit in UNITS),
)


class NoSuchRun(Exception):  # noqa: N818 - reads as what it is where it is caught
    """The owner has no reported run of this name."""


class TooManyPoints(Exception):  # noqa: N818 - reads as what it is where it is caught
    """The run would have more points than are kept of one. Nothing was stored."""


def put(connection: sa.Connection, owner: str, run: str, report: RunReport, at: int) -> RunCard:
    """Makes or changes a report.

    Past `RUNS_PER_OWNER` the one that was heard of longest ago goes.
    """
    outcome = report.outcome and report.outcome.model_dump_json()
    values = {**report.model_dump(), "outcome": outcome, "updated_at": at}
    insert_missing(connection, RUN_REPORTS, owner=owner, run=run, **values, started_at=at)
    connection.execute(
        sa.update(RUN_REPORTS)
        .where(RUN_REPORTS.c.owner == owner, RUN_REPORTS.c.run == run)
        .values(values)
    )
    past = (
        sa.select(RUN_REPORTS.c.id)
        .where(RUN_REPORTS.c.owner == owner)
        .order_by(RUN_REPORTS.c.updated_at.desc(), RUN_REPORTS.c.id.desc())
        .offset(RUNS_PER_OWNER)
        .limit(RUNS_PER_OWNER)
    )
    _delete(connection, list(connection.execute(past).scalars()))
    return _card(connection, _find(connection, owner, run))


def add_points(
    connection: sa.Connection, owner: str, run: str, points: Sequence[RunPoint], at: int
) -> RunCard:
    """Adds the points that are not there yet.

    Past `POINTS_PER_OWNER` the other runs that were heard of longest ago go.

    Raises:
        NoSuchRun: the run was not reported, or was deleted.
        TooManyPoints: there would be more than `POINTS_PER_RUN`; the transaction must be undone.
    """
    row = _find(connection, owner, run)
    insert_all_missing(
        connection,
        RUN_POINTS,
        [
            {
                "report_id": row.id,
                "spent": point.queries,
                **point.model_dump(exclude={"queries", "units"}),
                **point.units.model_dump(),
            }
            for point in points
        ],
    )
    card = _card(connection, row)
    if card.points > POINTS_PER_RUN:
        raise TooManyPoints(run)
    connection.execute(
        sa.update(RUN_REPORTS).where(RUN_REPORTS.c.id == row.id).values(updated_at=at)
    )
    _make_room(connection, owner, row.id)
    return card.model_copy(update={"updated_at": rfc3339(at)})


def put_evaluation(
    connection: sa.Connection, owner: str, run: str, evaluation: RunEvaluation, at: int
) -> RunCard:
    """Keeps what the run's adapter is worth, in the place of what was kept.

    Raises:
        NoSuchRun: the run was not reported, or was deleted.
    """
    row = _find(connection, owner, run)
    connection.execute(
        sa.update(RUN_REPORTS)
        .where(RUN_REPORTS.c.id == row.id)
        .values(evaluation=evaluation.model_dump_json(), updated_at=at)
    )
    return _card(connection, _find(connection, owner, run))


def put_note(connection: sa.Connection, owner: str, run: str, note: str) -> None:
    """Keeps what the owner writes of a run.

    Raises:
        NoSuchRun: the run was not reported, or was deleted.
    """
    row = _find(connection, owner, run)
    connection.execute(sa.update(RUN_REPORTS).where(RUN_REPORTS.c.id == row.id).values(note=note))


def list_runs(connection: sa.Connection, owner: str) -> list[RunCard]:
    """All reported runs of the owner, the one that was heard of last first."""
    ends = (
        sa.select(
            RUN_POINTS.c.report_id,
            sa.func.count().label("points"),
            sa.func.min(RUN_POINTS.c.sequence).label("first"),
            sa.func.max(RUN_POINTS.c.sequence).label("last"),
        )
        .join(RUN_REPORTS, RUN_REPORTS.c.id == RUN_POINTS.c.report_id)
        .where(RUN_REPORTS.c.owner == owner)
        .group_by(RUN_POINTS.c.report_id)
        .subquery()
    )
    first = RUN_POINTS.alias()
    rows = connection.execute(
        sa.select(
            RUN_REPORTS,
            ends.c.points,
            first.c.generation.label("first_generation"),
            first.c.accuracy.label("first_accuracy"),
            *_POINT_COLUMNS,
        )
        .outerjoin(ends, ends.c.report_id == RUN_REPORTS.c.id)
        .outerjoin(
            first, sa.and_(first.c.report_id == RUN_REPORTS.c.id, first.c.sequence == ends.c.first)
        )
        .outerjoin(
            RUN_POINTS,
            sa.and_(
                RUN_POINTS.c.report_id == RUN_REPORTS.c.id, RUN_POINTS.c.sequence == ends.c.last
            ),
        )
        .where(RUN_REPORTS.c.owner == owner)
        .order_by(RUN_REPORTS.c.updated_at.desc(), RUN_REPORTS.c.id.desc())
    )
    return [
        _as_card(
            row,
            row.points or 0,
            None if row.first_generation else row.first_accuracy,
            None if row.points is None else _as_point(row),
        )
        for row in rows
    ]


def read_curve(
    connection: sa.Connection, owner: str, run: str, *, most: int | None = None
) -> RunCurve:
    """A run with its points.

    With `most`, about so many points are read, evenly and with the last one.

    Raises:
        NoSuchRun: the owner has none of this name.
    """
    row = _find(connection, owner, run)
    card = _card(connection, row)
    query = (
        sa.select(*_POINT_COLUMNS)
        .where(RUN_POINTS.c.report_id == row.id)
        .order_by(RUN_POINTS.c.sequence)
    )
    if most is not None and card.latest is not None and card.points > most:
        # By their places: their numbers are the client's, and all may be divisible by anything.
        place = sa.func.row_number().over(order_by=RUN_POINTS.c.sequence) - 1
        numbered = query.add_columns(place.label("place")).subquery()
        is_last = numbered.c.sequence == card.latest.sequence
        step = -(-card.points // most)
        query = (
            sa.select(numbered)
            .where(sa.or_(numbered.c.place % step == 0, is_last))
            .order_by(numbered.c.sequence)
        )
    return RunCurve(card=card, points=[_as_point(point) for point in connection.execute(query)])


def delete(connection: sa.Connection, owner: str, run: str) -> None:
    """Forgets a run and its points; what it was charged stays in the ledger.

    Raises:
        NoSuchRun: the owner has none of this name.
    """
    _delete(connection, [_find(connection, owner, run).id])


_POINT_COLUMNS = tuple(column for column in RUN_POINTS.columns if column.name != "report_id")


def _find(connection: sa.Connection, owner: str, run: str) -> sa.Row[tuple[object, ...]]:
    row = connection.execute(
        sa.select(RUN_REPORTS).where(RUN_REPORTS.c.owner == owner, RUN_REPORTS.c.run == run)
    ).one_or_none()
    if row is None:
        raise NoSuchRun(run)
    return row


def _make_room(connection: sa.Connection, owner: str, newest: int) -> None:
    """Deletes the owner's runs that do not fit beside the newest, the oldest first."""
    of_owner = sa.select(RUN_REPORTS.c.id).where(RUN_REPORTS.c.owner == owner)
    counts = connection.execute(
        sa.select(RUN_POINTS.c.report_id, sa.func.count())
        .where(RUN_POINTS.c.report_id.in_(of_owner))
        .group_by(RUN_POINTS.c.report_id)
    )
    points: dict[int, int] = {row[0]: row[1] for row in counts}
    total = sum(points.values())
    oldest_first = of_owner.where(RUN_REPORTS.c.id != newest).order_by(
        RUN_REPORTS.c.updated_at, RUN_REPORTS.c.id
    )
    gone = []
    for report_id in connection.execute(oldest_first).scalars() if total > POINTS_PER_OWNER else ():
        if total <= POINTS_PER_OWNER:
            break
        if report_id in points:
            total -= points[report_id]
            gone.append(report_id)
    _delete(connection, gone)


def _delete(connection: sa.Connection, ids: Sequence[int]) -> None:
    if not ids:
        return
    connection.execute(sa.delete(RUN_POINTS).where(RUN_POINTS.c.report_id.in_(ids)))
    connection.execute(sa.delete(RUN_REPORTS).where(RUN_REPORTS.c.id.in_(ids)))


def _card(connection: sa.Connection, row: sa.Row[tuple[object, ...]]) -> RunCard:
    of_run = RUN_POINTS.c.report_id == row.id
    count: int = connection.execute(
        sa.select(sa.func.count()).select_from(RUN_POINTS).where(of_run)
    ).scalar_one()
    points = sa.select(*_POINT_COLUMNS).where(of_run).limit(1)
    first, latest = (
        connection.execute(points.order_by(order)).one_or_none()
        for order in (RUN_POINTS.c.sequence, RUN_POINTS.c.sequence.desc())
    )
    before = None if first is None or first.generation else first.accuracy
    return _as_card(row, count, before, None if latest is None else _as_point(latest))


def _as_card(
    row: sa.Row[tuple[object, ...]], points: int, before: float | None, latest: RunPoint | None
) -> RunCard:
    outcome = row.outcome and RunOutcome.model_validate_json(row.outcome)
    return RunCard(
        run=row.run,
        title=row.title,
        model=row.model,
        dataset=row.dataset,
        recipe=row.recipe,
        budget=row.budget,
        state=row.state,
        started_at=rfc3339(row.started_at),
        updated_at=rfc3339(row.updated_at),
        points=points,
        latest=latest,
        before=outcome.before if outcome else before,
        outcome=outcome,
        evaluation=row.evaluation and RunEvaluation.model_validate_json(row.evaluation),
        note=row.note,
    )


def _as_point(row: sa.Row[tuple[object, ...]]) -> RunPoint:
    return RunPoint(
        sequence=row.sequence,
        generation=row.generation,
        queries=row.spent,
        loss=row.loss,
        best_loss=row.best_loss,
        accuracy=row.accuracy,
        units=units_of(row),
    )
