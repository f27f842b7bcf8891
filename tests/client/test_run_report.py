"""A run's report: told as it goes on, and never in its way."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from craft_client import Client, run_report
from craft_client.cli import app
from craft_client.exceptions import BudgetExhausted, ConnectionFailed, CraftError
from craft_client.run_report import RunReporter, point_of, reported
from craft_client.tune import TuneProgress
from craft_shared import problems
from craft_shared.problems import FieldError, Problem
from craft_shared.run_reports import RunCandidate, RunOutcome, RunPoint, RunReport
from craft_shared.units import Units

from .wire_server import WireServer

REPORT = RunReport(title="a run", budget=100)


class Server:
    """Takes reports; `fails` holds what the next calls raise instead."""

    def __init__(self, *fails: Exception) -> None:
        self.fails = list(fails)
        self.states: list[str] = []
        self.outcome: RunOutcome | None = None
        self.points: list[RunPoint] = []

    def report_run(self, run: str, report: RunReport) -> None:
        self._maybe_fail()
        self.states.append(report.state)
        self.outcome = report.outcome

    def report_points(self, run: str, points: list[RunPoint]) -> None:
        self._maybe_fail()
        self.points += points

    def _maybe_fail(self) -> None:
        if self.fails:
            raise self.fails.pop(0)


def at(generation: int, **changes: Any) -> TuneProgress:
    fields: dict[str, Any] = {
        "stage": "search",
        "generation": generation,
        "generations": 10,
        "queries": 17 + 40 * generation,
        "budget": 417,
        "loss": 1.25,
        "best_loss": 0.5,
        "accuracy": 87.8,
        "units": Units(queries=17 + 40 * generation),
        "elapsed_s": 30.0 * generation,
    }
    return TuneProgress(**(fields | changes))


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_report, "SECONDS_BETWEEN_CALLS", 0.001)
    monkeypatch.setattr(run_report, "SECONDS_AFTER_FAILURE", 0.001)


Start = Callable[..., tuple[RunReporter, list[str]]]


@pytest.fixture
def start() -> Start:
    def make(server: Any) -> tuple[RunReporter, list[str]]:
        told: list[str] = []
        return RunReporter(server, "run", REPORT, told.append), told

    return make


def test_every_point_is_told_in_order_and_then_the_end(start: Start) -> None:
    server = Server()
    reporter, told = start(server)
    for generation in range(5):
        reporter.add(at(generation))
    reporter.end("finished")
    assert [point.sequence for point in server.points] == [0, 1, 2, 3, 4]
    assert server.states == ["running", "finished"]
    assert told == []


def test_points_that_a_server_did_not_take_are_told_later(start: Start) -> None:
    server = Server(ConnectionFailed("away"), ConnectionFailed("away"))
    reporter, told = start(server)
    for generation in range(5):
        reporter.add(at(generation))
    deadline = threading.Event()
    for _ in range(500):
        if len(server.points) == 5:
            break
        deadline.wait(0.01)
    reporter.end("finished")
    assert [point.sequence for point in server.points] == [0, 1, 2, 3, 4]
    assert server.states[-1] == "finished"
    assert told == ["away"], "it is said once"


def test_a_server_that_refuses_is_asked_no_more(start: Start) -> None:
    server = Server(CraftError("no"), RuntimeError("never"))
    reporter, told = start(server)
    reporter.add(at(0))
    reporter.end("finished")
    assert told == ["no"]
    assert len(server.fails) == 1


def test_a_server_that_hangs_holds_nothing_up(start: Start) -> None:
    hanging = threading.Event()

    class Hanging(Server):
        def report_run(self, run: str, report: RunReport) -> None:
            hanging.wait(30)

    reporter, _ = start(Hanging())
    reporter.add(at(0))
    reporter.end("finished", wait=0.05)
    hanging.set()


class Finished:
    """A journal of which the summary alone is read."""

    def summary(self) -> dict[str, Any]:
        found = {"name": "ridge", "prompts": 1, "texts": 256, "loss": 1.25, "regularisation": 0.1}
        return {
            "accuracy_before": 37.5,
            "accuracy_after": None,
            "deployed": "ridge",
            "candidates": [found],
        }


JOURNAL: Any = Finished()


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (None, "finished"),
        (KeyboardInterrupt(), "stopped"),
        (BudgetExhausted(Problem.of(problems.BUDGET_EXHAUSTED, "spent")), "stopped"),
        (RuntimeError("broken"), "failed"),
    ],
)
def test_the_end_is_told_as_it_was(start: Start, error: BaseException | None, state: str) -> None:
    server = Server()
    seen: list[TuneProgress] = []

    def run() -> None:
        with reported(start(server)[0], seen.append, JOURNAL) as on_progress:
            on_progress(at(0))
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(type(error)):
            run()
    assert server.states == ["running", state]
    assert (server.outcome is not None) == (state == "finished")
    assert [progress.generation for progress in seen] == [0]


def test_without_a_reporter_nothing_is_between(start: Start) -> None:
    seen: list[TuneProgress] = []
    with reported(None, seen.append, JOURNAL) as on_progress:
        on_progress(at(0))
    assert len(seen) == 1


def test_what_the_run_came_to_is_told_at_its_end(start: Start) -> None:
    server = Server()
    with reported(start(server)[0], lambda _: None, JOURNAL):
        pass
    ridge = RunCandidate(name="ridge", prompts=1, texts=256, loss=1.25)
    assert server.outcome == RunOutcome(before=37.5, deployed="ridge", candidates=[ridge])


def test_a_summary_that_cannot_be_told_harms_no_run(start: Start) -> None:
    broken: Any = Finished()
    broken.summary = lambda: {"candidates": []}
    reporter, told = start(Server())
    with reported(reporter, lambda _: None, broken):
        pass
    assert len(told) == 1


def test_the_deployed_adapter_is_a_point_of_its_own() -> None:
    assert point_of(at(3)).sequence == 3
    assert point_of(at(3, stage="deploy")).sequence == 4


def test_what_is_no_number_is_left_out() -> None:
    point = point_of(at(0, loss=float("nan"), best_loss=float("inf"), accuracy=None))
    assert (point.loss, point.best_loss, point.accuracy) == (None, None, None)


def test_what_is_not_known_yet_is_not_sent_so_that_earlier_servers_take_a_report() -> None:
    sent: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(200, json={})

    transport = httpx.MockTransport(answer)
    with Client("http://server", "craft_key_secret", transport=transport) as client:
        client.report_run("run", REPORT)
    assert sent == [
        {
            "title": "a run",
            "model": "",
            "dataset": "",
            "recipe": "",
            "budget": 100,
            "state": "running",
        }
    ]


def test_a_server_of_an_earlier_version_gets_the_end_without_the_outcome() -> None:
    taken: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        report = json.loads(request.content)
        if "outcome" in report:
            error = FieldError(field="outcome", message="Extra inputs are not permitted")
            problem = Problem.of(problems.INVALID_REQUEST, "refused", [error])
            headers = {"Content-Type": problems.MEDIA_TYPE}
            return httpx.Response(422, content=problem.model_dump_json(), headers=headers)
        taken.append(report)
        return httpx.Response(200, json={})

    told: list[str] = []
    transport = httpx.MockTransport(answer)
    with Client("http://server", "craft_key_secret", transport=transport) as client:
        reporter = RunReporter(client, "run", REPORT, told.append)
        with reported(reporter, lambda _: None, JOURNAL):
            pass
    assert [report["state"] for report in taken] == ["running", "finished"]
    assert told == []


TUNE = ("--shots", "4", "--budget", "40", "--population", "8", "--random-codes", "3", "--dim", "6")


def tuned(picture_folder: Path, folder: Path, *options: str) -> tuple[dict[str, Any], str]:
    arguments = ["tune", "--data", str(picture_folder), *TUNE, "--run", str(folder), "--json"]
    result = CliRunner().invoke(app, [*arguments, *options])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout), result.stderr


def test_a_server_that_takes_no_reports_changes_nothing(
    connected: WireServer, fast_retries: None, tmp_path: Path, picture_folder: Path
) -> None:
    """The wire server knows no /v1/runs, as an older craft-server."""
    plain, _ = tuned(picture_folder, tmp_path / "plain")
    told, words = tuned(picture_folder, tmp_path / "told", "--report")
    assert told["history"] == plain["history"]
    assert told["charged"]["queries"] == plain["charged"]["queries"]
    adapters = [(tmp_path / name / "adapter" / "adapter.safetensors") for name in ("plain", "told")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    assert "/console/runs/" in words
    assert words.count("The run continues unreported") == 1
