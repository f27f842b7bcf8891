"""A run that reports itself: what it has reached goes to the server's console as it tunes.

Points are handed over and sent by a thread of its own, over a connection of its own with a short
timeout, so that reporting can neither fail, slow nor change a run. What goes wrong is said once. A
server that is away is tried again now and then, one that refuses a report is not.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from craft_client.exceptions import (
    BudgetExhausted,
    ConnectionFailed,
    InvalidRequest,
    Overloaded,
    RateLimited,
)
from craft_shared.names import made_sound
from craft_shared.run_reports import (
    CANDIDATES_PER_RUN,
    POINTS_PER_CALL,
    RunCandidate,
    RunOutcome,
    RunPoint,
    RunReport,
    RunState,
)

if TYPE_CHECKING:
    from craft_client.api import Client
    from craft_client.journal import Journal
    from craft_client.tuning_run import TuneProgress

# Seconds: between two calls while a run goes on; before another try where the server did not take
# one; for the last words at the end.
SECONDS_BETWEEN_CALLS = 1.0
SECONDS_AFTER_FAILURE = 10.0
LAST_WORDS_SECONDS = 5.0

OnProgress = Callable[["TuneProgress"], None]


class RunReporter:
    """Reports one run from a thread.

    `on_failure` is called once, from the thread, with what went wrong first.
    """

    def __init__(
        self,
        client: Client,
        run: str,
        report: RunReport,
        on_failure: Callable[[str], None],
    ) -> None:
        self._client = client
        self._run = run
        self._report = report
        self._on_failure = on_failure
        self._changed = threading.Condition()
        self._waiting: list[TuneProgress] = []
        self._end: RunState | None = None
        self._outcome: Callable[[], RunOutcome] | None = None
        self._introduced = False
        self._failed = False
        self._thread = threading.Thread(target=self._work, name="craft-report", daemon=True)
        self._thread.start()

    def add(self, progress: TuneProgress) -> None:
        """Hands a point over; returns at once."""
        with self._changed:
            self._waiting.append(progress)
            self._changed.notify()

    def end(
        self,
        state: RunState,
        outcome: Callable[[], RunOutcome] | None = None,
        *,
        wait: float = LAST_WORDS_SECONDS,
    ) -> None:
        """Reports how the run ended, and waits so many seconds at most until the server knows.

        `outcome` is called by the thread.
        """
        with self._changed:
            self._end, self._outcome = state, outcome
            self._changed.notify()
        self._thread.join(wait)

    def _work(self) -> None:
        try:
            over = False
            while not over:
                is_last_try = self._end is not None
                over = self._try_to_send() or is_last_try
        except Exception as error:  # whatever it is, the run must not know it
            self._fail(error)

    def _try_to_send(self) -> bool:
        """Sends what there is and keeps what the server refuses now; whether that was all."""
        try:
            is_over = self._send()
        except (ConnectionFailed, Overloaded, RateLimited) as error:
            self._fail(error)
            self._pause(SECONDS_AFTER_FAILURE)
            return False
        self._pause(SECONDS_BETWEEN_CALLS)
        return is_over

    def _send(self) -> bool:
        """Waits for something to send, and sends it; whether that was the end."""
        if not self._introduced:
            self._client.report_run(self._run, self._report)
            self._introduced = True
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._end is not None)
            points = [point_of(progress) for progress in self._waiting]
            end = self._end
        for start in range(0, len(points), POINTS_PER_CALL):
            self._client.report_points(self._run, points[start : start + POINTS_PER_CALL])
        with self._changed:
            del self._waiting[: len(points)]
        if end is not None:
            outcome = self._outcome and self._outcome()
            last = self._report.model_copy(update={"state": end, "outcome": outcome})
            try:
                self._client.report_run(self._run, last)
            except InvalidRequest:
                if outcome is None:
                    raise
                # Servers of an earlier version know no outcome.
                self._client.report_run(self._run, last.model_copy(update={"outcome": None}))
        return end is not None

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._end is not None, seconds)

    def _fail(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            self._on_failure(str(error).partition("\n")[0] or type(error).__name__)


@contextmanager
def reported(
    reporter: RunReporter | None, on_progress: OnProgress, journal: Journal
) -> Iterator[OnProgress]:
    """Gives what to call with each progress: `on_progress`, and the reporter where there is one.

    What the run came to is read in its journal.
    """
    if reporter is None:
        yield on_progress
        return

    def on_both(progress: TuneProgress) -> None:
        reporter.add(progress)
        on_progress(progress)

    try:
        yield on_both
    except BaseException as error:
        # Stopped by hand or by its budget, nothing went wrong.
        failed = isinstance(error, Exception) and not isinstance(error, BudgetExhausted)
        reporter.end("failed" if failed else "stopped")
        raise
    reporter.end("finished", lambda: outcome_of(journal.summary()))


def outcome_of(summary: Mapping[str, Any]) -> RunOutcome:
    """What a run's summary says that it came to."""
    candidates = [
        RunCandidate(
            name=made_sound(one["name"])[:200],
            prompts=one["prompts"],
            texts=one["texts"],
            loss=one["loss"],
        )
        for one in summary["candidates"][:CANDIDATES_PER_RUN]
    ]
    return RunOutcome(
        before=summary["accuracy_before"],
        after=summary["accuracy_after"],
        deployed=made_sound(summary["deployed"])[:200],
        candidates=candidates,
    )


def point_of(progress: TuneProgress) -> RunPoint:
    """A progress as a point of the curve; a resumed run gives the same points again."""
    return RunPoint(
        sequence=progress.generation + (progress.stage == "deploy"),
        generation=progress.generation,
        queries=progress.queries,
        loss=_finite(progress.loss),
        best_loss=_finite(progress.best_loss),
        accuracy=progress.accuracy,
        units=progress.units,
    )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
