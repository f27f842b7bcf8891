"""What all recipes share: a task, its settings, its progress, and the answers that it pays for.

Every answer is asked for once, on disk before it is used, and read from there later. A run that is
resumed asks the same questions in the same order. Those that the journal has answers to are not
sent: what was read from the answer then, is given again. The first one that it has no answer to is
sent under the name that it had before, so that one that was in flight when the run ended is not
paid for twice. So is one whose tensors are damaged, as after a power failure, as long as the server
is sure to know its name: the answer comes again, free of charge.

What a method sees of a task and of money is all here: see `craft_client.arena`.

Kept answers may be many. Once something has been learnt from them, it can be saved in their place.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import FiniteFloat

from craft_client.blackbox import BlackBox, Question, Scores, amount_of, shortfall, times_covered
from craft_client.data import groups_of, with_equal_answers
from craft_client.exceptions import BudgetExhausted, CraftError
from craft_client.journal import Journal, JournalError
from craft_client.losses import accuracy, cross_entropy
from craft_client.pictures import Picture, files, pixels
from craft_client.settings import TuneSettings, shows_texts
from craft_shared.adapter import MOST_SIDE
from craft_shared.codec import Tensors
from craft_shared.head import Head, Unrefined, log_softmax
from craft_shared.units import Units
from craft_shared.wire import Budget, Context

_log = logging.getLogger(__name__)

Array = NDArray[np.float32]

# Servers remember a call's name for 24 hours at least; what is asked then is charged anew.
REMEMBERED = timedelta(hours=23)

_MANY = 10**9  # generations, where only budgets say how many

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


@dataclass(frozen=True, eq=False)
class Asked:
    """A question as it is asked: prompts, texts, and the images that it is about."""

    codes: Array  # float32 [K, dim]
    templates: Sequence[str] = ()  # scored before them
    texts: Sequence[str] = ()  # M, scored beside the class names, or alone
    alone: bool = False
    rows: Sequence[int] | None = None  # of the training images; all when None
    images: Sequence[bytes] | None = None  # encoded files in their place

    @cached_property
    def size(self) -> Question:
        """How much it asks."""
        chosen = self.rows if self.images is None else self.images
        count = None if chosen is None else len(chosen)
        prompts = len(self.templates) + len(self.codes)
        return Question(prompts, len(self.texts), count, self.images is not None, self.alone)

    @property
    def digest(self) -> str:
        """Names all of it but the codes, which the journal has."""
        images = [hashlib.sha256(image).hexdigest() for image in self.images or ()]
        rows = None if self.rows is None else list(self.rows)
        about = [list(self.templates), list(self.texts), self.alone, rows, images]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


class PaidAnswers:
    """Asks the black box about N images, and keeps the books.

    The journal's lines are the answers to the first questions. `units` is all that the run was
    charged so far, `cost_micros` their price, and `budgets` what bounds the key as of the last
    answer.
    """

    def __init__(
        self, black_box: BlackBox, images: int, journal: Journal, budgets: Sequence[Budget]
    ) -> None:
        self._black_box = black_box
        self._images = images
        self._journal = journal
        self._past = journal.resume()
        self._asked = 0
        self._prices: dict[Units, int] = {}
        self._kept_bytes: dict[str, int] = {}
        self.units = Units()
        self.cost_micros = 0
        self.prompts = 0  # asked so far
        self.budgets = budgets
        self._checkpoint: Checkpoint | None = None
        self._checkpoint = self._last_checkpoint() if self._past else None

    def price(self, need: Units) -> int | None:
        """What units cost at most, in micros, by what answers have cost; None where none says.

        Prices are for each unit: of so many times an answer's units, so many times its price.
        """
        bounds = []
        for units, cost in self._prices.items():
            asked = [(amount, had) for (_, amount), (_, had) in zip(need, units, strict=True)]
            if all(had or not amount for amount, had in asked):
                times = max((amount / had for amount, had in asked if amount), default=0)
                bounds.append(math.ceil(cost * times))
        return min(bounds, default=None)

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

    @property
    def ahead(self) -> Mapping[str, Any]:
        """What the journal says of the next question, if it has the answer."""
        return self._past[self._asked] if self.replaying else {}

    def ask(
        self,
        about: Mapping[str, Any],
        read: Callable[[Array], Reading],
        asked: Asked,
        context: Context,
    ) -> Reading:
        """What is to be used of the answer to one question: the scores of templates and codes.

        Args:
            about: what the journal's line says of it, for people and reports.
            read: is given the answer, log-probabilities [P, n, C + M], unless the journal has what
                it made of it.
            asked: the question.
            context: of its codes.

        Raises:
            AnswerError: the answer was not finite or had the wrong shape.
            JournalError: the journal cannot be written, or it answers other questions.
            CraftError: the black box refused or failed.
        """
        question, codes = asked.size, asked.codes

        def send() -> Scores:
            return self._black_box.score(
                templates=asked.templates,
                context=context if len(codes) else None,
                codes=codes if len(codes) else None,
                texts=asked.texts,
                alone=asked.alone,
                rows=asked.rows,
                images=asked.images,
                name=_name(self._asked),
            )

        if self.replaying:
            return self._recall(asked, read, send)
        self._journal.check_room(codes.nbytes + math.prod(self._shape(question)) * codes.itemsize)
        scores = send()
        self._count(question, scores.charged, scores.cost_micros)
        self.budgets = scores.budgets
        line = {
            **about,
            "question": asked.digest,
            "prompts": question.prompts,
            "templates": list(asked.templates),
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
        """Of the answer, [P, n, C + M]."""
        images = self._images if question.images is None else question.images
        return question.prompts, images, question.scored(len(self._black_box.classes))

    def _recall(
        self, asked: Asked, read: Callable[[Array], Reading], send: Callable[[], Scores]
    ) -> Reading:
        line = self._past[self._asked]
        tensors = self._tensors(self._asked)
        # Runs that earlier versions began have codes alone to tell questions apart.
        same = line.get("question", asked.digest) == asked.digest
        if same and tensors is None and "error" not in line:
            tensors = self._fetch(asked, line, read, send)
        if tensors is not None:
            same = same and np.array_equal(tensors.pop("codes"), asked.codes)
        if not same:
            raise JournalError(
                f"The run in '{self._journal.folder}' was searched by other codes, texts or images "
                f"from request {self._asked} on, so that it cannot be resumed here.",
                remedy="Resume it with the method and the versions of craftbox, cma and numpy that "
                "began it.",
            )
        if tensors is None or "error" in line:
            raise _unusable(line["error"])
        losses = tensors.pop("losses")
        self._count_kept(tensors)
        kept = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
        self._count(asked.size, Units(**line["charged"]), line["cost_micros"])
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
        asked: Asked,
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
        if fault := self._fault(asked.size, scores.log_probs):
            raise _unusable(fault)
        reading = read(scores.log_probs)
        if not np.isclose(reading.losses.min(), line["best_loss"], rtol=1e-4, atol=1e-6):
            raise gone("the server now gives another answer.")
        kept = _halved_where_exact(reading.kept)
        tensors = {"codes": asked.codes, "losses": reading.losses, **kept}
        self._journal.replace(name, tensors)
        self._black_box.acknowledge(scores)
        return dict(tensors)

    def _count(self, question: Question, charged: Units, cost_micros: int) -> None:
        self.prompts += question.prompts
        self.units += charged
        self.cost_micros += cost_micros
        self._prices[charged] = cost_micros

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


def _prompts(questions: Sequence[Question]) -> int:
    return sum(question.prompts for question in questions)


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
    codes: Array | None = None  # that follow the templates, float32 [K, dim]; None for none
    texts: Sequence[str] = ()  # M, that all prompts score beside the class names
    head: Head = field(default_factory=Unrefined)  # on the plain prompt, the templates, the codes
    # Of the plain prompt on the training images, percent; None where `TuningRun.plain` knows.
    accuracy_before: float | None = None
    # Percent of images that no fit and no choice has seen; None where there are none.
    accuracy_after: float | None = None
    best_loss: float | None = None  # least of a single prompt; None where the history has it
    candidates: Sequence[Candidate] = ()  # what was chosen from
    templates: Sequence[str] = ()  # that follow the plain prompt
    # Added to the pixels that the model reads, grey levels float32 [S, S, 3]; None for nothing.
    visual: Array | None = None


class TuningRun:
    """One run of a recipe: all that it may look at, ask and say.

    `labels` are the images' classes, int64 [N]. `generation` is what the method is at, from 0.
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
        pictures: Sequence[Picture] | None = None,
    ) -> None:
        self.settings = settings
        self.labels = labels
        self.context = Context(dim=settings.dim, seed=settings.seed, scale=settings.scale)
        self.answers = PaidAnswers(black_box, len(labels), journal, budgets)
        self.generation = 0
        self.stopped_by: str | None = None
        self.history: list[dict[str, Any]] = []
        self.accuracy_before: float | None = None
        self._black_box = black_box
        self._groups = groups_of(journal.document.get("digests"), len(labels))
        self._on_progress = on_progress
        self._pictures = pictures
        self._began = time.monotonic()
        self._questions: tuple[Question, ...] = ()  # of a generation, where they are not planned

    # --- the task ---------------------------------------------------------------------------------

    @property
    def classes(self) -> Sequence[str]:
        """The C class names."""
        return self._black_box.classes

    @property
    def no_codes(self) -> Array:
        """float32 [0, dim]."""
        return np.zeros((0, self.settings.dim), np.float32)

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        """The training images as the model reads them, uint8 [N, S, S, 3], to make others of.

        Raises:
            CraftError: the run was begun without them, or the model's images are too large.
        """
        if self._pictures is None:
            raise CraftError(
                f"'{self.settings.recipe}' makes images, and was given none to make them of.",
                remedy="Give the run its training images.",
            )
        size = self._black_box.image_size
        if size > MOST_SIDE:
            raise CraftError(
                f"The model reads images of {size:,} pixels a side; an adapter's visual prompt has "
                f"{MOST_SIDE:,} at most.",
                remedy="Use a recipe that makes no images.",
            )
        found = np.empty((len(self._pictures), size, size, 3), np.uint8)
        for row, picture in zip(found, self._pictures, strict=True):
            row[:] = pixels(picture, self._black_box.view)
        return found

    # --- what may be spent ------------------------------------------------------------------------

    def units(self, question: Question) -> Units:
        """What a question will be charged."""
        return self._black_box.units(question)

    @property
    def budgets(self) -> Sequence[Budget]:
        """The run's own budget, and all that bounded the key as of the last answer."""
        unit, limit = self.settings.budget_unit, self.settings.budget
        left = limit - self._spent
        own = Budget(unit=unit, limit=limit, spent=self._spent, reserved=0, remaining=left)
        return [own, *self.answers.budgets]

    def covers(self, *questions: Question) -> bool:
        """Whether the run's budget and, as of the last answer, all others cover one generation.

        Its questions are those that are given, or else those that the recipe is known to ask.
        """
        if not self.settings.is_planned:
            self._questions = questions or self._questions
        need = self._need()
        if self.stopped_by is not None or need == Units():
            return False
        price = self._price()
        own, *others = self.budgets
        if self._is_unpriced([own], price) or shortfall([own], need, price) is not None:
            return False
        is_known = price is not None or own.unit != "cost_micros"
        if is_known and not amount_of(own.unit, need, price):
            unit = own.unit.removesuffix("_micros")
            self.stopped_by = f"the run's budget is of {unit}, and a generation takes none"
            return False
        if self.answers.replaying:
            return True
        limit = self._black_box.prompt_limit
        if limit is not None and self.answers.prompts + _prompts(self._next()) > limit:
            self.stopped_by = f"the key may ask {limit:,} different prompts about the pictures"
            return False
        if self._is_unpriced(others, price):
            return False
        short = shortfall(others, need, price)
        if short is not None:
            self.stopped_by = f"{short} for a generation"
        return short is None

    def _is_unpriced(self, budgets: Sequence[Budget], price: int | None) -> bool:
        """Whether cost is bounded, and no answer so far says what a generation costs."""
        unpriced = price is None and self.answers.units != Units()
        if unpriced and any(budget.unit == "cost_micros" for budget in budgets):
            self.stopped_by = "cost is bounded, and no answer says what a generation's images cost"
            return True
        return False

    def most(self, question: Question) -> int:
        """How many of a question's prompts all budgets cover, so that a last generation is smaller.

        None of them once a budget has ended the run.
        """
        asked: int | None = self.answers.ahead.get("prompts")
        if asked is not None:
            return min(asked, question.prompts)

        def is_short(prompts: int) -> bool:
            return not self._within(question._replace(prompts=prompts))

        most = bisect.bisect_left(range(1, question.prompts + 1), True, key=is_short)
        return most if self.covers(question._replace(prompts=most or 1)) else 0

    def _within(self, question: Question) -> bool:
        need, limit = self.units(question), self._black_box.prompt_limit
        if limit is not None and self.answers.prompts + question.prompts > limit:
            return False
        return shortfall(self.budgets, need, self.answers.price(need)) is None

    def refused(self, error: BudgetExhausted) -> None:
        """Notes that a request was refused, since others have spent what was left.

        Raises:
            BudgetExhausted: some calls of the request may have been charged: the books are wrong.
        """
        questions = self.settings.generation_questions(self.generation) or self._questions
        if any(self.units(question).requests > 1 for question in questions):
            raise error
        self.stopped_by = error.problem.detail.removesuffix(".")

    # --- asking -----------------------------------------------------------------------------------

    def ask(
        self,
        read: Callable[[Array], Reading] | None = None,
        codes: Array | None = None,
        *,
        templates: Sequence[str] = (),
        texts: Sequence[str] = (),
        alone: bool = False,
        rows: Sequence[int] | NDArray[np.int64] | None = None,
        images: Sequence[Picture] | NDArray[Any] | None = None,
    ) -> Reading:
        """One question: the scores of P templates and, after them, codes, on n images.

        Args:
            read: makes of the answer, log-probabilities float32 [P, n, C + M], what is used of it.
                That is in the journal, and is given again when the run is resumed. None for each
                prompt's cross-entropy with the labels of the rows, over the class names.
            codes: float32 [K, dim].
            templates: prompts with one `{}` each for a class name or text.
            texts: M of them, scored beside the class names.
            alone: whether they are scored in the place of class names, which are then not there.
            rows: of the training images, n of them; all N when None.
            images: made by the method of these rows, in their place: n arrays [S, S, 3] of
                `images`' form, uint8 or floating-point from 0 to 1, or whatever
                `craft_client.pictures` knows. They travel as PNG, which loses nothing of 8 bits,
                and are encoded, and charged, each time.

        Raises:
            AnswerError: the answer was not finite or had the wrong shape.
            BudgetExhausted: others have spent what there was (`refused`).
            CraftError: the question cannot be asked, or see `craft_client.tune.tune`.
        """
        if alone and not shows_texts(self._black_box.output):
            level = self._black_box.output.level
            raise CraftError(
                f"'{self.settings.recipe}' scores texts in the place of class names; answers of "
                f"level '{level}' show too little of them. Nothing was charged for it.",
                remedy="Use a key that sees log-probabilities, or a recipe that asks for classes.",
            )
        made = None if images is None else list(files(images))
        asked = Asked(
            codes=self.no_codes if codes is None else np.asarray(codes, np.float32),
            templates=templates,
            texts=texts,
            alone=alone,
            rows=None if rows is None or made is not None else np.asarray(rows).tolist(),
            images=made,
        )
        if read is None and alone:
            raise ValueError("texts that stand alone have no labels: give `read`")

        def losses(log_probs: Array) -> Reading:
            if texts:
                log_probs = log_softmax(log_probs[..., : len(self.classes)])
            labels = self.labels if rows is None else self.labels[np.asarray(rows)]
            return Reading(cross_entropy(log_probs, labels), {})

        about = {"stage": "search" if self.generation else "start", "generation": self.generation}
        return self.answers.ask(about, read or losses, asked, self.context)

    def templates(self, propose: Callable[[], Sequence[str]]) -> list[str]:
        """The templates of the next question: what `propose` gives, or gave when the run was here.

        So a run is resumed whose templates cannot be made the same again, as a language model's.
        """
        asked: Sequence[str] | None = self.answers.ahead.get("templates")
        return list(propose() if asked is None else asked)

    def plain(self) -> Array:
        """Asks for the plain prompt alone, and reports it: log-probabilities float32 [N, C]."""

        def with_scores(log_probs: Array) -> Reading:
            return Reading(cross_entropy(log_probs, self.labels), {"log_probs": log_probs[0]})

        reading = self.ask(with_scores, templates=[self.settings.template])
        log_probs, loss = reading.kept["log_probs"], float(reading.losses[0])
        self.accuracy_before = accuracy(log_probs, self.labels)
        self.report("start", loss, loss, self.accuracy_before)
        return log_probs

    def copies_in(self, log_probs: Array) -> Labels:
        """Which images are copies of one, by their files and by whole answers [P, N, C + M]."""
        whole = self._black_box.output.whole
        return with_equal_answers(self._groups, log_probs) if whole else self._groups

    # --- saying where it is -----------------------------------------------------------------------

    @cached_property
    def planned_generations(self) -> int:
        """How many generations the run's own budget covers, of recipes that are planned."""
        return self.settings.generations(self.units, price=self.answers.price)

    def save_checkpoint(self, document: dict[str, Any], tensors: Tensors) -> None:
        """Saves what was learnt until now; see `PaidAnswers.save_checkpoint`."""
        self.answers.save_checkpoint({**document, "history": self.history}, tensors)

    def report(self, stage: Stage, loss: float, best_loss: float, accuracy: float | None) -> None:
        """Reports where the run is, and adds to the history what a request brought."""
        queries = self.answers.units.queries
        done = len(self.history) if stage == "search" else max(0, len(self.history) - 1)
        further = 0 if self.stopped_by else self._generations_left()
        remaining = [budget.remaining for budget in self.budgets if budget.unit == "queries"]
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
                budget=min([self._most_queries(further), *(queries + left for left in remaining)]),
                loss=loss,
                best_loss=best_loss,
                accuracy=accuracy,
                units=self.answers.units,
                elapsed_s=time.monotonic() - self._began,
            )
        )

    def _most_queries(self, further: int) -> int:
        """How many queries the run takes at most, with so many generations still to come."""
        settings, queries = self.settings, self.answers.units.queries
        if settings.recipe == "craftbox":
            return sum(self.units(one).queries for one in settings.questions(self.units))
        if settings.budget_unit == "queries":
            return settings.budget
        return queries + further * self._need().queries

    def _next(self) -> Sequence[Question]:
        """The next generation's questions."""
        if self.settings.is_planned:
            return self.settings.generation_questions(self.generation + 1)
        return self._questions

    def _need(self) -> Units:
        return sum((self.units(question) for question in self._next()), Units())

    def _price(self) -> int | None:
        prices = [self.answers.price(self.units(question)) for question in self._next()]
        return None if None in prices else sum(price for price in prices if price is not None)

    @property
    def _spent(self) -> int:
        return amount_of(self.settings.budget_unit, self.answers.units, self.answers.cost_micros)

    def _generations_left(self) -> int:
        need, most = self._need(), _MANY
        if self.settings.is_planned or need == Units():
            spent, price = self._spent, self.answers.price
            most = self.settings.generations(
                self.units, done=self.generation, spent=spent, price=price
            )
        return times_covered(self.budgets, need, self._price(), most=most)
