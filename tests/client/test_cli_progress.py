from __future__ import annotations

import io
import os
import signal
from typing import Any

import pytest
from rich.console import Console

from craft_client.cli import progress as view
from craft_client.cli.progress import remembered_interrupt
from craft_client.cli.show import Verbosity, speaking
from craft_client.tune import TuneProgress
from craft_shared.units import Units


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
    console.print(view.panel(progress))
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
    assert view.seconds_left(progress) == seconds


def test_what_cannot_be_measured_is_not_made_up() -> None:
    text = drawn(at(0, stage="start", accuracy=None))
    assert "not measurable" in text
    assert "unknown" in text


def test_without_a_terminal_lines_come_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 0.0, 9.0, 10.5, 11.0, 12.0])
    monkeypatch.setattr(view.time, "monotonic", lambda: next(clock))
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
    monkeypatch.setattr(view.time, "monotonic", lambda: next(clock))
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
