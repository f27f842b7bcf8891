"""What all recipes share: a task, its settings, the answers that it pays for, and its progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from craft_client.blackbox import BlackBox
from craft_client.budgets import shortfall, times_covered
from craft_client.copies import groups_of, with_equal_answers
from craft_client.exceptions import BudgetExhausted
from craft_client.journal import Journal
from craft_client.paid_answers import Checkpoint, PaidAnswers, Reading
from craft_client.settings import Question, TuneSettings
from craft_shared.codec import Tensors
from craft_shared.head import Head
from craft_shared.units import Units
from craft_shared.wire import Budget, Context

Array = NDArray[np.float32]
Labels = NDArray[np.int64]
Stage = Literal["start", "search", "deploy"]


@dataclass(frozen=True)
class TuneProgress:
    """Where a run is, after each request.

    Attributes:
        stage: `start` after the first request, `search` after each generation, `deploy` at the end.
        generation: generations done.
        generations: generations that the budgets, the run's and the key's, cover as they stand.
        queries: spent by this run.
        budget: queries that the run takes at most: what its settings say, or other budgets leave.
        loss: mean loss of the latest request's codes (of the plain prompt where it had none).
        best_loss: least loss of a single prompt so far.
        accuracy: percent of the training images, of the recipe's best prediction so far, which
            may have been chosen or fitted by them; at the end, held out. None where not measured.
        units: everything charged by this run.
        elapsed_s: seconds since the run began, or was resumed.
    """

    stage: Stage
    generation: int
    generations: int
    queries: int
    budget: int
    loss: float
    best_loss: float
    accuracy: float | None
    units: Units
    elapsed_s: float


@dataclass(frozen=True)
class Candidate:
    """What might have been deployed."""

    name: str  # for the run's summary
    prompts: int  # that its head reads
    texts: int  # that it reads beside the class names
    # Held-out cross-entropy by which it was chosen, nats; None where none was measured.
    loss: float | None
    regularisation: float | None = None  # of a linear head, relative to its inputs' variance


@dataclass(frozen=True)
class Outcome:
    """What a recipe deploys."""

    deployed: str  # its name, for the run's summary
    codes: Array  # that follow the plain prompt, float32 [K, dim]
    texts: Sequence[str]  # that they score beside the class names
    head: Head  # on the plain prompt and the codes
    accuracy_before: float  # of the plain prompt on the training images, percent
    # Percent of images that no fit and no choice has seen; None where there are none.
    accuracy_after: float | None
    best_loss: float  # least loss of a single prompt
    candidates: Sequence[Candidate]  # what was chosen from


class TuningRun:
    """One run of a recipe.

    Attributes:
        settings: what to do.
        labels: the images' classes, int64 [N].
        context: of all codes.
        answers: the books.
        generation: generations begun.
        stopped_by: the budget of the key that ended the search before the run's own did, in words.
        history: one entry for the first request and each generation: `generation`, `queries`,
            `loss`, `best_loss`, `accuracy`.
    """

    def __init__(
        self,
        black_box: BlackBox,
        labels: Labels,
        settings: TuneSettings,
        journal: Journal,
        budgets: Sequence[Budget],
        on_progress: Callable[[TuneProgress], None],
    ) -> None:
        self.settings = settings
        self.labels = labels
        self.context = Context(dim=settings.dim, seed=settings.seed, scale=settings.scale)
        self.answers = PaidAnswers(black_box, len(labels), journal, budgets)
        self.generation = 0
        self.stopped_by: str | None = None
        self.history: list[dict[str, Any]] = []
        self._black_box = black_box
        self._groups = groups_of(journal.document.get("digests"), len(labels))
        self._on_progress = on_progress
        self._began = time.monotonic()
        self._planned = settings.budget
        if settings.recipe == "craftbox":
            questions = settings.questions(black_box.units)
            self._planned = sum(black_box.units(*question).queries for question in questions)

    def ask(
        self,
        read: Callable[[Array], Reading],
        codes: Array,
        *,
        templates: Sequence[str] = (),
        texts: Sequence[str] = (),
    ) -> Reading:
        """One question; see `PaidAnswers.ask`."""
        about = {"stage": "search" if self.generation else "start", "generation": self.generation}
        return self.answers.ask(
            about, read, context=self.context, codes=codes, templates=templates, texts=texts
        )

    def copies_in(self, log_probs: Array) -> Labels:
        """Which images are copies of one, by their files and by whole answers [P, N, C + M]."""
        whole = self._black_box.output.whole
        return with_equal_answers(self._groups, log_probs) if whole else self._groups

    def covers_generation(self) -> bool:
        """Whether the run's budget and, as of the last answer, all others cover one more."""
        if self.stopped_by is not None or self._own_generations_left() < 1:
            return False
        if self.answers.replaying:
            return True
        short = shortfall(self.answers.budgets, self._need(), self._price())
        if short is not None:
            self.stopped_by = f"{short} for a generation"
        return short is None

    def refused(self, error: BudgetExhausted) -> None:
        """Notes that a request was refused, since others have spent what was left.

        Raises:
            BudgetExhausted: some calls of the request may have been charged before, so that the
                books would be wrong.
        """
        if any(
            self._black_box.units(*question).requests > 1
            for question in self.settings.generation_questions(self.generation)
        ):
            raise error
        self.stopped_by = error.problem.detail.removesuffix(".")

    def save_checkpoint(self, document: dict[str, Any], tensors: Tensors) -> None:
        """Saves what was learnt until now; see `PaidAnswers.save_checkpoint`."""
        self.answers.save_checkpoint({**document, "history": self.history}, tensors)

    def recall(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint, as it had been reported until then."""
        self.history[:] = checkpoint.document["history"]

    def report(self, stage: Stage, loss: float, best_loss: float, accuracy: float | None) -> None:
        """Reports where the run is, and adds to the history what a request brought."""
        queries = self.answers.units.queries
        budgets = self.answers.budgets
        need = self._need()
        further = 0 if self.stopped_by else self._own_generations_left()
        further = times_covered(budgets, need, self._price(), most=further)
        remaining = [budget.remaining for budget in budgets if budget.unit == "queries"]
        done = len(self.history) if stage == "search" else max(0, len(self.history) - 1)
        if stage != "deploy":
            self.history.append(
                {
                    "generation": self.generation,
                    "queries": queries,
                    "loss": loss,
                    "best_loss": best_loss,
                    "accuracy": accuracy,
                }
            )
        self._on_progress(
            TuneProgress(
                stage=stage,
                generation=done,
                generations=done + further,
                queries=queries,
                budget=min([self._planned, *(queries + left for left in remaining)]),
                loss=loss,
                best_loss=best_loss,
                accuracy=accuracy,
                units=self.answers.units,
                elapsed_s=time.monotonic() - self._began,
            )
        )

    def _next_questions(self) -> Sequence[Question]:
        return self.settings.generation_questions(self.generation + 1)

    def _need(self) -> Units:
        return self.settings.generation_units(self.generation + 1, self._black_box.units)

    def _price(self) -> int | None:
        prices = [self.answers.price(question) for question in self._next_questions()]
        return None if None in prices else sum(price for price in prices if price is not None)

    def _own_generations_left(self) -> int:
        return self.settings.generations(
            self._black_box.units, done=self.generation, spent=self.answers.units.queries
        )
