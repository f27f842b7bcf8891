"""Reported runs in the database, of each kind."""

from __future__ import annotations

import pytest

from craft_server import run_reports
from craft_server.database import Database
from craft_server.run_reports import NoSuchRun, TooManyPoints
from craft_shared.run_reports import (
    RunCandidate,
    RunCard,
    RunEvaluation,
    RunOutcome,
    RunPoint,
    RunReport,
)
from craft_shared.units import Units

REPORT = RunReport(title="digits", model="pocket", dataset="digits", recipe="craftbox", budget=72)


def put(store: Database, run: str = "run", owner: str = "owner", at: int = 0) -> RunCard:
    with store.writing() as connection:
        return run_reports.put(connection, owner, run, REPORT, at)


def add(store: Database, *sequences: int, run: str = "run", loss: float = 1.5) -> RunCard:
    points = [
        RunPoint(
            sequence=number,
            generation=number,
            queries=40 * number,
            loss=loss,
            accuracy=50.25,
            units=Units(queries=40 * number, requests=number),
        )
        for number in sequences
    ]
    with store.writing() as connection:
        return run_reports.add_points(connection, "owner", run, points, 5)


def test_a_run_is_what_was_told_of_it(store: Database) -> None:
    assert put(store).latest is None
    card = add(store, 0, 1)
    add(store, 2)
    with store.reading() as connection:
        curve = run_reports.read_curve(connection, "owner", "run")
        listed = run_reports.list_runs(connection, "owner")
    assert card.points == 2
    assert [point.queries for point in curve.points] == [0, 40, 80]
    assert curve.points[1].units == Units(queries=40, requests=1)
    assert (curve.points[1].loss, curve.points[1].best_loss) == (1.5, None)
    assert listed == [curve.card]
    assert curve.card.latest == curve.points[-1]
    assert curve.card.updated_at == "1970-01-01T00:00:00.005Z"


def test_a_long_curve_is_read_in_parts_with_its_end(store: Database) -> None:
    put(store)
    add(store, *range(100))
    with store.reading() as connection:
        curve = run_reports.read_curve(connection, "owner", "run", most=10)
        few = run_reports.read_curve(connection, "owner", "run", most=100)
    assert [point.sequence for point in curve.points] == [*range(0, 100, 10), 99]
    assert curve.card.points == 100
    assert len(few.points) == 100


def test_the_same_point_again_changes_nothing(store: Database) -> None:
    put(store)
    add(store, 0, 1)
    assert add(store, 0, 1, 2, loss=9.0).points == 3
    with store.reading() as connection:
        losses = [point.loss for point in run_reports.read_curve(connection, "owner", "run").points]
    assert losses == [1.5, 1.5, 9.0]


def test_a_report_again_keeps_the_curve_and_the_start(store: Database) -> None:
    put(store, at=10)
    add(store, 0)
    again = put(store, at=99)
    assert again.points == 1
    assert again.started_at == "1970-01-01T00:00:00.010Z"
    assert again.updated_at == "1970-01-01T00:00:00.099Z"


def evaluate(store: Database, accuracy: float = 80) -> RunCard:
    found = RunEvaluation(
        subject="test split", n=9, before=50, accuracy=accuracy, low=accuracy - 9, high=accuracy + 9
    )
    with store.writing() as connection:
        return run_reports.put_evaluation(connection, "owner", "run", found, 7)


def test_the_last_evaluation_is_kept_whatever_the_run_reports_later(store: Database) -> None:
    put(store)
    assert evaluate(store).evaluation != evaluate(store, 85).evaluation
    add(store, 0)
    card = put(store, at=99)
    assert card.evaluation
    assert (card.evaluation.accuracy, card.evaluation.before) == (85, 50)
    with store.writing() as connection:
        assert run_reports.list_runs(connection, "owner") == [card]


def test_before_is_the_first_points_until_the_outcome_says_it(store: Database) -> None:
    assert put(store).before is None
    add(store, 1)
    with store.reading() as connection:
        (listed,) = run_reports.list_runs(connection, "owner")
    assert listed.before is None, "a generation was done by then"
    card = add(store, 0)
    with store.reading() as connection:
        (listed,) = run_reports.list_runs(connection, "owner")
    assert (card.before, listed.before) == (50.25, 50.25)
    ridge = RunCandidate(name="ridge", prompts=1, texts=256, loss=1.25)
    outcome = RunOutcome(before=40, after=None, deployed="ridge", candidates=[ridge])
    finished = REPORT.model_copy(update={"state": "finished", "outcome": outcome})
    with store.writing() as connection:
        card = run_reports.put(connection, "owner", "run", finished, 9)
        assert run_reports.list_runs(connection, "owner") == [card]
    assert (card.before, card.outcome) == (40, outcome)


def test_a_note_stays_whatever_the_run_reports_later(store: Database) -> None:
    put(store)
    with store.writing() as connection:
        run_reports.put_note(connection, "owner", "run", "the best so far")
        with pytest.raises(NoSuchRun):
            run_reports.put_note(connection, "other", "run", "mine")
    assert put(store, at=99).note == "the best so far"


def test_owners_do_not_see_each_others_runs(store: Database) -> None:
    put(store)
    put(store, owner="other")
    with store.writing() as connection:
        run_reports.delete(connection, "other", "run")
        assert run_reports.list_runs(connection, "other") == []
        assert len(run_reports.list_runs(connection, "owner")) == 1
        with pytest.raises(NoSuchRun):
            run_reports.read_curve(connection, "other", "run")


def test_the_run_heard_of_last_is_first_and_the_oldest_makes_room(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_reports, "RUNS_PER_OWNER", 3)
    for at, run in enumerate(("a", "b", "c")):
        put(store, run, at=at)
    add(store, 0, run="a")
    put(store, "d", at=9)
    with store.reading() as connection:
        names = [card.run for card in run_reports.list_runs(connection, "owner")]
    assert names == ["d", "a", "c"]


def test_a_run_has_so_many_points_at_most(store: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_reports, "POINTS_PER_RUN", 3)
    put(store)
    add(store, 0, 1)
    with pytest.raises(TooManyPoints):
        add(store, 2, 3)
    assert add(store, 2).points == 3


def test_past_an_owners_points_the_oldest_runs_make_room_and_no_other_owners(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_reports, "POINTS_PER_OWNER", 6)
    put(store, owner="other")
    for at, run in enumerate(("empty", "a", "b", "c")):
        put(store, run, at=at)
    for run in ("a", "b"):
        add(store, 0, 1, run=run)
    put(store, "b", at=9)
    add(store, 0, 1, 2, run="c")
    with store.reading() as connection:
        names = [card.run for card in run_reports.list_runs(connection, "owner")]
        assert len(run_reports.list_runs(connection, "other")) == 1
    assert names == ["b", "c", "empty"]


def test_a_long_curve_is_read_in_parts_whatever_its_numbers(store: Database) -> None:
    put(store)
    add(store, *range(0, 100_000, 1000))
    with store.reading() as connection:
        curve = run_reports.read_curve(connection, "owner", "run", most=10)
    assert [point.sequence for point in curve.points] == [*range(0, 100_000, 10_000), 99_000]


def test_nothing_can_be_added_to_what_is_not_there(store: Database) -> None:
    with pytest.raises(NoSuchRun):
        add(store, 0)
    with pytest.raises(NoSuchRun):
        evaluate(store)


def test_a_deleted_run_leaves_nothing(store: Database) -> None:
    put(store)
    add(store, 0, 1)
    with store.writing() as connection:
        run_reports.delete(connection, "owner", "run")
    assert put(store).points == 0
