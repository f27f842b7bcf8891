"""`--quiet` and `--verbose`, before the command and behind it."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import stamina
from rich.console import Console
from typer.testing import CliRunner

from craft_client import progress as progress_module
from craft_client import transport
from craft_client.api import Client
from craft_client.cli import app, session
from craft_client.cli import show as view
from craft_client.cli.session import reason
from craft_client.cli.show import Verbosity, remembered_interrupt, speaking
from craft_client.exceptions import AnswerLost, ConnectionFailed, CraftError, InternalError
from craft_client.tune import TuneProgress
from craft_shared import problems
from craft_shared.problems import Problem
from craft_shared.units import Units

from .wire_server import KEY, Fault, WireServer


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
        "units": Units(queries=17 + 40 * generation, requests=1 + generation),
        "elapsed_s": 30.0 * generation,
    }
    return TuneProgress(**(fields | changes))


def drawn(progress: TuneProgress) -> str:
    console = Console(file=io.StringIO(), width=120, record=True)
    console.print(progress_module.panel(progress))
    return console.export_text()


def test_the_live_view_tells_where_the_run_is() -> None:
    text = drawn(at(4))
    for words in (
        "4 of 10",
        "177 of 417",
        "1.2500 (best 0.5000)",
        "87.8 %",
        "3:00",
        "177 queries, 0 predictions, 0 images, 0 texts, 5 requests",
    ):
        assert words in text
    assert text.splitlines()[1].startswith("generation"), "the bar has a line of its own"


@pytest.mark.parametrize(
    ("progress", "seconds"),
    [
        (at(0, stage="start"), None),
        (at(1), 270.0),
        (at(5), 150.0),
        (at(10), 0.0),
        (at(7, stage="deploy"), 0.0),
        (at(0, stage="start", generations=0), 0.0),
    ],
)
def test_time_left_follows_the_pace_of_the_generations(
    progress: TuneProgress, seconds: float | None
) -> None:
    assert progress_module.seconds_left(progress) == seconds


def test_what_cannot_be_measured_is_not_made_up() -> None:
    text = drawn(at(0, stage="start", accuracy=None))
    assert "not measurable" in text
    assert "unknown" in text


def test_a_run_that_asks_everything_at_once_has_no_generations() -> None:
    text = drawn(at(0, generations=0, queries=1, budget=1))
    assert "generation" not in text
    assert "time left" not in text
    assert "1 of 1" in text


def test_no_line_is_told_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_module, "SECONDS_BETWEEN_LINES", 0.0)
    with view.counting("Uploading pictures", 454) as on_count:
        for count in (256, 256, 256, 454, 454):
            on_count(count)
    assert capsys.readouterr().err.splitlines() == [
        "Uploading pictures: 256 of 454",
        "Uploading pictures: 454 of 454",
    ]


def test_an_upload_moves_while_a_chunk_is_sent(
    connected: WireServer, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []

    @contextmanager
    def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
        assert (what, total) == ("Uploading pictures", 10)
        yield told.append

    monkeypatch.setattr(session, "counting", counting)
    monkeypatch.setattr(transport, "SENT_AT_ONCE", 200)
    with Client() as client:
        image_set = client.create_image_set("fake")
        session.upload(client, image_set, files, connected.limits)
    first = told.index(8)
    assert {1, 2, 3, 4, 5, 6, 7} <= set(told[:first]), "eight pictures are one chunk"
    assert told == sorted(told)
    assert told[-1] == 10


def test_without_a_terminal_lines_come_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 0.0, 9.0, 10.5, 11.0, 12.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    with view.watch() as on_progress:
        on_progress(at(0, stage="start"))
        for generation in (1, 2, 3, 4):
            on_progress(at(generation))
        on_progress(at(4, stage="deploy"))
    told = [line.split(",")[0] for line in capsys.readouterr().err.splitlines()]
    # The first of each stage, and one ten seconds after the last.
    assert told == [f"generation {number} of 10" for number in (0, 1, 3, 4)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_a_destructor_swallowed_is_raised_at_the_next_progress() -> None:
    class Deaf:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with remembered_interrupt() as check:
        check()
        Deaf()
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_is_raised_at_once_where_it_can_be() -> None:
    with remembered_interrupt(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("colour", ["", "1"])
def test_what_is_counted_reads_well_in_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], colour: str
) -> None:
    """No control characters where stderr is a file, not even where colours are forced."""
    monkeypatch.setenv("FORCE_COLOR", colour)
    view.stderr.cache_clear()
    clock = iter([0.0, 1.0, 10.0, 12.0, 21.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    with view.counting("Uploading pictures", 4000) as on_count:
        for count in (500, 1000, 1500, 4000):
            on_count(count)
    view.stderr.cache_clear()
    assert capsys.readouterr().err.splitlines() == [
        "Uploading pictures: 1,000 of 4,000",
        "Uploading pictures: 4,000 of 4,000",
    ]


def test_what_is_soon_over_is_not_counted_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with view.counting("Checking pictures", 3) as on_count:
        on_count(3)
    assert capsys.readouterr().err == ""


def test_quiet_shows_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with speaking(Verbosity.QUIET), view.watch() as on_progress:
        on_progress(at(0, stage="start"))
        with view.counting("Checking pictures", 3) as on_count:
            on_count(3)
    assert capsys.readouterr().err == ""


Craft = Callable[..., Any]


@pytest.fixture
def craft(connected: WireServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Craft:
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("words", [("--quiet", "zero-shot"), ("zero-shot", "-q")])
def test_quiet_leaves_results_alone(
    craft: Craft, picture_folder: Path, words: tuple[str, ...]
) -> None:
    loud = craft("zero-shot", "--data", picture_folder)
    assert "Charged:" in loud.stderr
    quiet = craft(*words, "--data", picture_folder)
    assert quiet.exit_code == 0
    assert quiet.stderr == ""
    assert "zero-shot" in quiet.stdout


def test_quiet_still_tells_errors(craft: Craft) -> None:
    done = craft("--quiet", "publish", "nowhere", "--name", "a")
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ")


def test_verbose_tells_each_call_with_its_request_id(craft: Craft, connected: WireServer) -> None:
    done = craft("models", "--verbose", "--json")
    assert done.stdout.startswith("{")
    (line,) = done.stderr.splitlines()
    form = r"GET /v1/models: 200, [\d,]+ bytes \(\d+ ms, request (\S+)\)"
    told = re.fullmatch(form, line)
    assert told, line
    assert told[1] == connected.seen[-1].headers["X-Request-Id"]
    assert KEY not in done.stderr


def test_verbose_tells_short_waits_too(craft: Craft, connected: WireServer) -> None:
    connected.faults.append(Fault("GET /v1/models", status=503))
    with stamina.set_testing(False):
        done = craft("-v", "models")
    lines = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "GET /v1/models",
        lines[1].partition(":")[0],
        "GET /v1/models",
    ]
    assert re.fullmatch(r"Retrying in 0\.\d s: a gateway answered 503\.", lines[1])


def test_without_either_calls_are_not_told_and_no_handler_stays(craft: Craft) -> None:
    craft("-v", "models")
    done = craft("models")
    assert done.stderr == ""
    assert logging.getLogger("craft_client").handlers == []


def test_both_at_once_is_wrong_usage(craft: Craft) -> None:
    done = craft("-q", "-v", "models")
    assert done.exit_code == 2
    assert "exclude each other" in done.stderr


def test_words_behind_two_dashes_are_arguments(craft: Craft) -> None:
    done = craft("publish", "--name", "a", "--", "-q")
    assert done.exit_code == 1
    assert "'-q/run.json' does not exist" in done.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionFailed("x"), "there is no connection to the server"),
        (AnswerLost("x"), "the connection broke"),
        (InternalError(Problem.of(problems.INTERNAL_ERROR, "")), "the server failed at the call"),
        (CraftError("Something. \nelse"), "Something"),
    ],
)
def test_a_wait_has_a_short_reason(error: Exception, words: str) -> None:
    assert reason(error).strip(" .") == words
