"""What all recipes share: a task, its settings, its progress, and the answers that it pays for.

Every answer is asked for once, on disk before it is used, and read from there later. A run that is
resumed asks the same questions in the same order. Those that the journal has answers to are not
sent: what was read from the answer then, is given again. The first one that it has no answer to is
sent under the name that it had before, so that one that was in flight when the run ended is not
paid for twice. So is one whose tensors are damaged, as after a power failure, as long as the server
is sure to know its name: the answer comes again, free of charge.

Kept answers may be many. Once something has been learnt from them, it can be saved in their place.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import FiniteFloat

from craft_client.blackbox import BlackBox, Scores, shortfall, times_covered
from craft_client.data import groups_of, with_equal_answers
from craft_client.exceptions import BudgetExhausted, CraftError
from craft_client.journal import Journal, JournalError
from craft_client.settings import Question, TuneSettings
from craft_shared.codec import Tensors
from craft_shared.head import Head
from craft_shared.units import Units
from craft_shared.wire import Budget, Context

_log = logging.getLogger(__name__)

Array = NDArray[np.float32]

# Servers remember a call's name for 24 hours at least; what is asked then is charged anew.
REMEMBERED = timedelta(hours=23)

Labels = NDArray[np.int64]
Stage = Literal["start", "search", "deploy"]


class AnswerError(CraftError):
    """The model's answer cannot be learnt from. It was paid for, and the journal says so."""


@dataclass(frozen=True)
class Reading:
    """What is used of an answer."""

    losses: Array  # float32 [P], of the templates and, after them, the codes
    kept: Tensors  # tensors that heads read, by name


@dataclass(frozen=True)
class Checkpoint:
    """What was learnt from the first answers, of which the kept tensors are gone."""

    asked: int  # how many answers
    document: dict[str, Any]  # JSON-able
    tensors: Tensors  # by name


class PaidAnswers:
    """Asks the black box about N images, and keeps the books.

    The journal's lines are the answers to the first questions. `units` is all that the run was
    charged so far, `budgets` what bounds the key as of the last answer, and `prices` what such a
    question cost when it was asked last, in micros.
    """

    def __init__(
        self, black_box: BlackBox, images: int, journal: Journal, budgets: Sequence[Budget]
    ) -> None:
        self._black_box = black_box
        self._images = images
        self._journal = journal
        self._past = journal.resume()
        self._asked = 0
        self.prices: dict[Question, int] = {}
        self._kept_bytes: dict[str, int] = {}
        self.units = Units()
        self.budgets = budgets
        self._checkpoint: Checkpoint | None = None
        self._checkpoint = self._last_checkpoint() if self._past else None

    @property
    def held_bytes(self) -> int:
        """What kept tensors take on disk that a checkpoint would free."""
        return sum(self._kept_bytes.values())

    @property
    def learnt(self) -> bool:
        """Whether the checkpoint stands for the last answer, of which nothing else is kept."""
        return self._checkpoint is not None and self._asked <= self._checkpoint.asked

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint, once all answers that it stands for were given again."""
        at = self._checkpoint
        return at if at is not None and at.asked == self._asked else None

    def save_checkpoint(self, document: Mapping[str, Any], tensors: Tensors) -> None:
        """Saves what was learnt from all answers until now, and forgets what was kept of them.

        Of the first answer everything stays, since runs are measured by it.
        """
        self._journal.save_checkpoint({**document, "asked": self._asked}, tensors)
        for name in self._kept_bytes:
            reduced = self._journal.tensors(name)
            self._journal.replace(name, {part: reduced[part] for part in ("codes", "losses")})
        self._kept_bytes.clear()

    @property
    def replaying(self) -> bool:
        """Whether the journal has the answer to the next question."""
        return self._asked < len(self._past)

    def ask(
        self,
        about: Mapping[str, Any],
        read: Callable[[Array], Reading],
        *,
        context: Context,
        codes: Array,
        templates: Sequence[str] = (),
        texts: Sequence[str] = (),
    ) -> Reading:
        """What is to be used of the answer to one question: the scores of templates and codes.

        Args:
            about: what the journal's line says of it, for people and reports.
            read: is given the answer, log-probabilities [P, N, C + M], unless the journal has what
                it made of it.
            context: of the codes.
            codes: float32 [K, dim].
            templates: scored before them.
            texts: M of them, scored beside the class names.

        Raises:
            AnswerError: the answer was not finite or had the wrong shape.
            JournalError: the journal cannot be written, or it answers other questions.
            CraftError: the black box refused or failed.
        """
        question = Question(len(templates) + len(codes), len(texts))

        def send() -> Scores:
            return self._black_box.score(
                templates=templates,
                context=context if len(codes) else None,
                codes=codes if len(codes) else None,
                texts=texts,
                name=_name(self._asked),
            )

        if self.replaying:
            return self._recall(question, codes, read, send)
        self._journal.check_room(codes.nbytes + math.prod(self._shape(question)) * codes.itemsize)
        scores = send()
        self._count(question, scores.charged, scores.cost_micros)
        self.budgets = scores.budgets
        line = {
            **about,
            "charged": scores.charged.model_dump(),
            "cost_micros": scores.cost_micros,
        }
        if fault := self._fault(question, scores.log_probs):
            self._write({**line, "error": fault}, {"codes": codes})
            raise _unusable(fault)
        reading = read(scores.log_probs)
        losses = reading.losses
        line |= {"best_loss": float(losses.min()), "mean_loss": float(losses.mean())}
        kept = _halved_where_exact(reading.kept)
        line |= {"kept": sorted(kept), "at": datetime.now(UTC).isoformat(timespec="seconds")}
        self._count_kept(kept)
        self._write(line, {"codes": codes, "losses": losses, **kept})
        self._black_box.acknowledge(scores)
        return reading

    def _shape(self, question: Question) -> tuple[int, int, int]:
        """Of the answer, [P, N, C + M]."""
        return question.prompts, self._images, len(self._black_box.classes) + question.texts

    def _recall(
        self,
        question: Question,
        codes: Array,
        read: Callable[[Array], Reading],
        send: Callable[[], Scores],
    ) -> Reading:
        line = self._past[self._asked]
        tensors = self._tensors(self._asked)
        if tensors is None and "error" not in line:
            tensors = self._fetch(question, codes, line, read, send)
        if tensors is not None and not np.array_equal(tensors.pop("codes"), codes):
            raise JournalError(
                f"The run in '{self._journal.folder}' was searched by other codes from request "
                f"{self._asked} on, so that it cannot be resumed here.",
                remedy="Resume it with the versions of craftbox, cma and numpy that began it.",
            )
        if tensors is None or "error" in line:
            raise _unusable(line["error"])
        losses = tensors.pop("losses")
        self._count_kept(tensors)
        kept = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
        self._count(question, Units(**line["charged"]), line["cost_micros"])
        self._asked += 1
        return Reading(losses, kept)

    def _tensors(self, asked: int) -> Tensors | None:
        """What the journal has of an answer; None where it is damaged or lacks what is needed."""
        try:
            tensors = self._journal.tensors(_name(asked))
        except JournalError:
            return None
        covered = self._checkpoint is not None and 0 < asked < self._checkpoint.asked
        kept = () if covered else self._past[asked].get("kept", ())
        wanted = {"codes"} if "error" in self._past[asked] else {"codes", "losses", *kept}
        return tensors if wanted <= tensors.keys() else None

    def _fetch(
        self,
        question: Question,
        codes: Array,
        line: Mapping[str, Any],
        read: Callable[[Array], Reading],
        send: Callable[[], Scores],
    ) -> Tensors:
        """An answer's tensors from the server, which was paid for it, and in the journal again."""
        name, charged = _name(self._asked), Units(**line["charged"])
        lost = (
            f"The run in '{self._journal.folder}' has lost what request {self._asked} brought "
            f"({charged.queries:,} queries): its file '{name}' is damaged or missing"
        )

        def gone(why: str) -> JournalError:
            remedy = "Restore the directory from a copy, or tune anew into another one."
            return JournalError(f"{lost}, and {why}", remedy=remedy)

        at = line.get("at", self._journal.document.get("started_at"))
        if at is None or datetime.now(UTC) - datetime.fromisoformat(at) >= REMEMBERED:
            raise gone(
                "it was asked for too long ago for the server to give it again for free. Nothing "
                "was charged."
            )
        _log.info("%s: asked for again under the same name", lost)
        try:
            scores = send()
        except CraftError as error:
            raise gone(f"the server does not give it again: {error.message}") from error
        if fault := self._fault(question, scores.log_probs):
            raise _unusable(fault)
        reading = read(scores.log_probs)
        if not np.isclose(reading.losses.min(), line["best_loss"], rtol=1e-4, atol=1e-6):
            raise gone("the server now gives another answer.")
        tensors = {"codes": codes, "losses": reading.losses, **_halved_where_exact(reading.kept)}
        self._journal.replace(name, tensors)
        self._black_box.acknowledge(scores)
        return dict(tensors)

    def _count(self, question: Question, charged: Units, cost_micros: int) -> None:
        self.units += charged
        self.prices[question] = cost_micros

    def _fault(self, question: Question, log_probs: Array) -> str | None:
        """Why an answer cannot be used, if it cannot."""
        expected = self._shape(question)
        if log_probs.shape != expected:
            return f"the answer has shape {log_probs.shape}; {expected} was asked for"
        bad = np.flatnonzero(~np.isfinite(log_probs).all(axis=(1, 2)))
        return f"the answer holds NaN or infinity for prompts {bad.tolist()}" if bad.size else None

    def _count_kept(self, kept: Tensors) -> None:
        if kept and self._asked:
            self._kept_bytes[_name(self._asked)] = sum(tensor.nbytes for tensor in kept.values())

    def _last_checkpoint(self) -> Checkpoint | None:
        """The checkpoint, unless it or an answer that it stands for is damaged.

        Without it all these answers are fetched, since what had been learnt when a damaged one was
        read is in none of them.
        """
        try:
            found = self._journal.checkpoint()
        except JournalError:
            return None
        if found is None:
            return None
        document, tensors = found
        checkpoint = self._checkpoint = Checkpoint(document.pop("asked"), document, tensors)
        whole = all(self._tensors(asked) is not None for asked in range(checkpoint.asked))
        return checkpoint if whole else None

    def _write(self, line: dict[str, Any], tensors: Tensors) -> None:
        self._journal.append(line, {_name(self._asked): tensors})
        self._asked += 1


def _name(question: int) -> str:
    return f"{question:06d}"


def _unusable(error: str) -> AnswerError:
    return AnswerError(
        f"The model's answer cannot be used: {error}.",
        remedy="Report it to the provider. A smaller scale keeps prompts nearer to the plain one.",
    )


def _halved_where_exact(tensors: Tensors) -> Tensors:
    """Half precision for what travelled in half precision: the same numbers in half the bytes."""
    halves = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    return {
        name: halves[name] if np.array_equal(halves[name], tensor) else tensor
        for name, tensor in tensors.items()
    }


@dataclass(frozen=True)
class TuneProgress:
    """Where a run is, after each request."""

    stage: Stage  # after the first request, after each generation, at the end
    generation: int  # done
    generations: int  # that the budgets, the run's and the key's, cover as they stand
    queries: int  # spent by this run
    budget: int  # queries that the run takes at most, by its settings and other budgets
    loss: float  # mean of the latest request's codes, or of the plain prompt, nats
    best_loss: float  # of a single prompt so far
    accuracy: float | None  # percent of the training images; held out at the end
    units: Units  # charged by this run
    elapsed_s: float  # since the run began, or was resumed


@dataclass(frozen=True)
class Candidate:
    """What might have been deployed."""

    name: str  # for the run's summary
    prompts: int  # that its head reads
    texts: int = 0  # that it reads beside the class names
    loss: FiniteFloat | None = None  # held-out cross-entropy by which it was chosen, nats
    # Of a linear head, relative to its inputs' variance.
    regularisation: FiniteFloat | None = None


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
    """One run of a recipe: `labels` are the images' classes, int64 [N].

    `stopped_by` is the budget that ended the search before the run's own did, in words. `history`
    has an entry for the first request and each generation: `generation`, `queries`, `loss`,
    `best_loss`, `accuracy`.
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
            BudgetExhausted: some calls of the request may have been charged: the books are wrong.
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

    def _need(self) -> Units:
        return self.settings.generation_units(self.generation + 1, self._black_box.units)

    def _price(self) -> int | None:
        questions = self.settings.generation_questions(self.generation + 1)
        prices = [self.answers.prices.get(question) for question in questions]
        return None if None in prices else sum(price for price in prices if price is not None)

    def _own_generations_left(self) -> int:
        return self.settings.generations(
            self._black_box.units, done=self.generation, spent=self.answers.units.queries
        )
