"""The collaborative loop of CraFT: search prompts, refine predictions, each with the other's help.

It knows black boxes, heads and the journal; it does not know HTTP, nor what a picture is.

One run, with P prompts, N pictures, C classes:

1. One request scores the plain prompt and some random codes.
2. A head is fitted on these answers.
3. Each generation asks CMA-ES for a population of codes and scores it in one request. A code's loss
   is the cross-entropy of its prediction, plus a term for how far it is from the refined one. Then
   the head learns from the best code so far, whose answer is already paid for.
4. Of the heads that all these answers allow, the best on held-out pictures is deployed: from the
   plain prediction on, one that has seen more of the labels replaces one that has seen less only
   if it is better beyond chance.

Source: CraFT (arXiv 2402.04050), sections 3.1 to 3.4 and the released code. Not from there: the
random codes, the closed-form head, and the choice in step 4.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from craft_client.blackbox import BlackBox, Scores
from craft_client.budgets import shortfall, times_covered
from craft_client.exceptions import BudgetExhausted, CraftError
from craft_client.journal import Journal
from craft_client.losses import accuracy, cross_entropy, divergence
from craft_client.refiners import Candidate, Choice, Kept, Refiner, Searched, refiner_for
from craft_client.search import CodeSearch
from craft_client.settings import SettingsError, TuneSettings
from craft_shared.adapter import Adapter, AdapterConfig, Provenance
from craft_shared.codec import Tensors
from craft_shared.units import Units
from craft_shared.wire import Budget, Context

__all__ = [
    "AnswerError",
    "SettingsError",
    "TuneProgress",
    "TuneResult",
    "TuneSettings",
    "run_document",
    "tune",
]

Array = NDArray[np.float32]
Labels = NDArray[np.int64]

RUN_SCHEMA = 1


class AnswerError(CraftError):
    """The model's answer cannot be learnt from. It was paid for, and the journal says so."""


@dataclass(frozen=True)
class TuneProgress:
    """Where a run is, after each request.

    Attributes:
        stage: `start` after the first request, `search` after each generation, `deploy` at the end.
        generation: generations done.
        generations: generations that the budgets, the run's and the key's, cover as they stand.
        queries: spent by this run.
        budget: queries that the run may spend in all: the settings' budget, or what others leave.
        loss: mean loss of the latest request's codes (of the plain prompt where it had none).
        best_loss: least loss of a single prompt so far.
        accuracy: percent on the training pictures, held out where a head is fitted; None where the
            labels leave nothing to measure (one picture a class).
        units: everything charged by this run.
        elapsed_s: seconds since the run began.
    """

    stage: Literal["start", "search", "deploy"]
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
class TuneResult:
    """What a run came to.

    Attributes:
        adapter: prompts and head.
        accuracy_before: of the plain prompt on the training pictures, percent.
        accuracy_after: of the adapter, percent, each picture by a head fitted without it; None
            where the labels leave nothing to measure (one picture a class).
        units: everything charged by the run.
        stopped_by: the budget of the key that ended the search before the run's own budget was
            used up, in words; None where none did.
        history: one entry for the first request and each generation: `generation`, `queries`,
            `loss`, `best_loss`, `accuracy`.
    """

    adapter: Adapter
    accuracy_before: float
    accuracy_after: float | None
    units: Units
    stopped_by: str | None
    history: list[dict[str, Any]]


def run_document(
    black_box: BlackBox, labels: Labels, settings: TuneSettings, **more: Any
) -> dict[str, Any]:
    """What `Journal.create` is given for a run: all that it depends on. `more` is kept beside it.

    Raises:
        SettingsError: the run cannot be done; no directory need be made.
    """
    settings.check_task(labels, black_box.classes, black_box.budgets(), black_box.units)
    return {
        "schema_version": RUN_SCHEMA,
        "craftbox": version("craftbox"),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": black_box.model,
        "revision": black_box.revision,
        "settings": asdict(settings),
        "classes": list(black_box.classes),
        "labels": labels.tolist(),
        **more,
    }


def tune(
    black_box: BlackBox,
    labels: Labels,
    settings: TuneSettings,
    journal: Journal,
    on_progress: Callable[[TuneProgress], None] = lambda progress: None,
) -> TuneResult:
    """Tunes prompts and a head for the black box's pictures.

    Equal arguments and answers give equal adapters, byte for byte. Memory holds one generation's
    answers and those that heads read. The search ends in good order before a generation that a
    budget does not cover.

    Args:
        black_box: answers for N pictures and C classes.
        labels: the pictures' classes, int64 [N].
        settings: what to do.
        journal: of this run; gets every paid answer before it is used, and the adapter.
        on_progress: called after each request and at the end.

    Raises:
        SettingsError: the run cannot be done; nothing was asked.
        AnswerError: an answer was not finite or had the wrong shape.
        JournalError: the journal cannot be written.
        CraftError: the black box refused or failed. The journal has what was paid until then.
    """
    budgets = black_box.budgets()
    settings.check_task(labels, black_box.classes, budgets, black_box.units)
    context = Context(dim=settings.dim, seed=settings.seed, scale=settings.scale)
    run = _Run(black_box, len(labels), settings, journal, budgets, on_progress)

    codes = _random_codes(settings)
    log_probs = run.ask(templates=[settings.template], context=context, codes=codes)
    losses = cross_entropy(log_probs, labels)
    run.record(codes, losses, {"log_probs": log_probs})
    kept = Kept(codes, log_probs, labels)
    refiner = refiner_for(settings, kept)
    best_loss = float(losses.min())
    run.report("start", float(losses.mean()), best_loss, refiner.accuracy)

    search = CodeSearch(
        settings.dim,
        population=settings.population,
        sigma=settings.sigma,
        seed=settings.stream("search"),
    )
    while run.covers_generation():
        run.generation += 1
        codes = search.ask()
        try:
            log_probs = run.ask(context=context, codes=codes)
        except BudgetExhausted as error:
            run.refused(error)
            break
        losses = _losses(log_probs, labels, refiner, settings)
        first = int(losses.argmin())
        best = kept.searched
        if best is None or losses[first] < best_loss:
            best = Searched(codes[first].copy(), log_probs[first].copy())
        improved = best is not kept.searched
        run.record(codes, losses, {"log_probs": best.log_probs} if improved else {})
        search.tell(codes, losses)
        kept.searched = best
        refiner.learn(kept, run.generation)
        # Measured anew each time, because the refined prediction that it is compared with moves.
        best_loss = float(_losses(best.log_probs[None], labels, refiner, settings)[0])
        run.report("search", float(losses.mean()), best_loss, refiner.accuracy)

    choice = refiner.choose(kept)
    result = _result(choice.chosen, kept, run, settings, context, black_box)
    journal.finish(result.adapter, _summary(result, choice))
    run.report("deploy", run.history[-1]["loss"], best_loss, result.accuracy_after)
    return result


def _random_codes(settings: TuneSettings) -> Array:
    generator = np.random.default_rng(settings.stream("random codes"))
    return generator.standard_normal((settings.random_codes, settings.dim), dtype=np.float32)


def _losses(log_probs: Array, labels: Labels, refiner: Refiner, settings: TuneSettings) -> Array:
    """Losses [P] of codes: cross-entropy plus inconsistency with the refined prediction."""
    losses = cross_entropy(log_probs, labels)
    refined = refiner.refined(log_probs) if settings.consistency else None
    if refined is not None:
        losses += np.float32(settings.consistency_weight) * divergence(refined, log_probs)
    return losses


class _Run:
    """Asks the black box, and keeps the books: units, budgets, journal lines, history, progress."""

    def __init__(
        self,
        black_box: BlackBox,
        pictures: int,
        settings: TuneSettings,
        journal: Journal,
        budgets: Sequence[Budget],
        on_progress: Callable[[TuneProgress], None],
    ) -> None:
        self._black_box = black_box
        self._pictures = pictures
        self._journal = journal
        self._own_budget = settings.budget
        self._searches = settings.search
        self._need = black_box.units(settings.population)
        self._on_progress = on_progress
        self._began = time.monotonic()
        self._budgets = budgets
        self._price: int | None = None
        self._answered: Scores
        self.units = Units()
        self.generation = 0
        self.stopped_by: str | None = None
        self.history: list[dict[str, Any]] = []

    def covers_generation(self) -> bool:
        """Whether the run's budget and, as the last answer told, all others cover one more."""
        if not self._own_generations_left():
            return False
        short = shortfall(self._budgets, self._need, self._price)
        if short:
            self.stopped_by = f"{short} for a generation"
        return short is None

    def refused(self, error: BudgetExhausted) -> None:
        """Notes that a generation was refused, since others have spent what was left.

        Raises:
            BudgetExhausted: some calls of the generation may have been charged before, so that the
                books would be wrong.
        """
        if self._need.requests > 1:
            raise error
        self.generation -= 1
        self.stopped_by = error.problem.detail.removesuffix(".")

    def ask(self, *, context: Context, codes: Array, templates: Sequence[str] = ()) -> Array:
        """Log-probabilities [P, N, C] of the templates and, after them, the codes."""
        codes_or_none = codes if len(codes) else None
        scores = self._black_box.score(
            templates=templates, context=context if len(codes) else None, codes=codes_or_none
        )
        self._answered = scores
        self._budgets = scores.budgets
        self._price = scores.cost_micros if scores.charged == self._need else None
        self.units += scores.charged
        prompts = len(templates) + len(codes)
        expected = (prompts, self._pictures, len(self._black_box.classes))
        if scores.log_probs.shape != expected:
            self._refuse(codes, f"has shape {scores.log_probs.shape}; {expected} was asked for")
        if not np.isfinite(scores.log_probs).all():
            bad = np.flatnonzero(~np.isfinite(scores.log_probs).all(axis=(1, 2)))
            self._refuse(codes, f"holds NaN or infinity for prompts {bad.tolist()}")
        return scores.log_probs

    def record(self, codes: Array, losses: Array, answers: Tensors) -> None:
        """Puts the answer that was paid for last into the journal, and acknowledges it.

        Args:
            codes: float32 [K, dim].
            losses: float32 [P], of the templates and, after them, the codes.
            answers: those that heads read.
        """
        self._write(
            {"best_loss": float(losses.min()), "mean_loss": float(losses.mean())},
            {"codes": codes, "losses": losses, **_halved_where_exact(answers)},
        )
        self._black_box.acknowledge(self._answered)

    def report(
        self,
        stage: Literal["start", "search", "deploy"],
        loss: float,
        best_loss: float,
        accuracy: float | None,
    ) -> None:
        """Tells the caller where the run is, and adds to the history what a request brought."""
        queries = self.units.queries
        further = 0 if self.stopped_by else self._own_generations_left()
        further = times_covered(self._budgets, self._need, self._price, most=further)
        remaining = [budget.remaining for budget in self._budgets if budget.unit == "queries"]
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
                generation=self.generation,
                generations=self.generation + further,
                queries=queries,
                budget=min([self._own_budget, *(queries + left for left in remaining)]),
                loss=loss,
                best_loss=best_loss,
                accuracy=accuracy,
                units=self.units,
                elapsed_s=time.monotonic() - self._began,
            )
        )

    def _own_generations_left(self) -> int:
        left = self._own_budget - self.units.queries
        return left // self._need.queries if self._searches else 0

    def _refuse(self, codes: Array, problem: str) -> NoReturn:
        self._write({"error": f"the answer {problem}"}, {"codes": codes})
        raise AnswerError(
            f"The model's answer {problem}.",
            remedy="Tell the provider. A smaller scale keeps prompts nearer to the plain one.",
        )

    def _write(self, line: dict[str, Any], tensors: Tensors) -> None:
        stage = "search" if self.generation else "start"
        self._journal.append(
            {
                "stage": stage,
                "generation": self.generation,
                "charged": self._answered.charged.model_dump(),
                **line,
            },
            {f"{self.generation:06d}": tensors},
        )


def _halved_where_exact(tensors: Tensors) -> Tensors:
    """Half precision for what travelled in half precision: the same numbers in half the bytes."""
    halves = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    return {
        name: halves[name] if np.array_equal(halves[name], tensor) else tensor
        for name, tensor in tensors.items()
    }


def _result(
    chosen: Candidate,
    kept: Kept,
    run: _Run,
    settings: TuneSettings,
    context: Context,
    black_box: BlackBox,
) -> TuneResult:
    before = accuracy(kept.plain, kept.labels)
    after = chosen.refinement.accuracy
    config = AdapterConfig(
        model=black_box.model,
        revision=black_box.revision,
        classes=list(black_box.classes),
        templates=[settings.template],
        context=context if len(chosen.codes) else None,
        codes=len(chosen.codes),
        head=chosen.refinement.head.kind,
        provenance=Provenance(
            shots=settings.shots,
            seed=settings.seed,
            accuracy_before=before,
            accuracy_after=after,
            units=run.units,
        ),
    )
    adapter = Adapter(config, chosen.codes, chosen.refinement.head)
    return TuneResult(adapter, before, after, run.units, run.stopped_by, run.history)


def _summary(result: TuneResult, choice: Choice) -> dict[str, Any]:
    return {
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "accuracy_before": result.accuracy_before,
        "accuracy_after": result.accuracy_after,
        "units": result.units.model_dump(),
        "stopped_by": result.stopped_by,
        "adapter": result.adapter.digest,
        "deployed": choice.chosen.name,
        "candidates": [
            {
                "name": candidate.name,
                "prompts": 1 + len(candidate.codes),
                "accuracy": candidate.refinement.accuracy,
                "loss": candidate.refinement.loss,
                "regularisation": candidate.refinement.regularisation,
            }
            for candidate in choice.candidates
        ],
        "history": result.history,
    }
