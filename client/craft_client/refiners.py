"""The half of the collaborative loop that refines predictions, and chooses what is deployed.

It knows answers already paid for, and heads; it does not know black boxes, budgets or the journal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from craft_client.held_out import accuracy_on_unseen
from craft_client.plugins import REFINERS
from craft_client.refine import (
    Refinement,
    fit_ridge,
    unrefined,
)
from craft_client.settings import TuneSettings
from craft_shared import plugins
from craft_shared.head import HEAD_KINDS, head_from_tensors, log_softmax

Array = NDArray[np.float32]
Labels = NDArray[np.int64]

# A closed form on 1,600 pictures takes about as long as a generation; this keeps it a tenth.
GENERATIONS_A_REFIT = 10
# Standard errors by which a candidate with a searched prompt must be better than one without.
SEARCHED_ERRORS = 2.0


@dataclass(frozen=True)
class Searched:
    """The best code of the search, float32 [dim], and its log-probabilities [N, C + M]."""

    code: Array
    log_probs: Array


@dataclass
class Kept:
    """The answers that heads read.

    Attributes:
        random: the random codes, float32 [K, dim].
        texts: M texts that every prompt has scored beside the class names; none in strict mode.
        opening: log-probabilities of the plain prompt and the random codes, float32
            [1 + K, N, C + M].
        labels: int64 [N].
        searched: None before the first generation.
        groups: copies of one picture have one number, int64 [N]; None where there are none.
    """

    random: Array
    texts: Sequence[str]
    opening: Array
    labels: Labels
    searched: Searched | None = None
    groups: Labels | None = None

    @property
    def plain(self) -> Array:
        """Log-probabilities [N, C] of the plain prompt."""
        return self.of_classes(self.opening[0])

    def of_classes(self, log_probs: Array) -> Array:
        """Log-probabilities [..., C + M] as they are without the texts: [..., C]."""
        if not self.texts:
            return log_probs
        return log_softmax(log_probs[..., : -len(self.texts)])

    def of_rows(self, rows: NDArray[np.bool_]) -> Kept:
        """The same of some of the pictures [N], before any search."""
        groups = None if self.groups is None else self.groups[rows]
        return Kept(
            self.random, self.texts, self.opening[:, rows], self.labels[rows], groups=groups
        )

    @property
    def none(self) -> Array:
        """No codes: float32 [0, dim]."""
        return self.random[:0]


@dataclass(frozen=True)
class Candidate:
    """What might be deployed: the plain prompt, then `codes` [k, dim], and a head on them all.

    Attributes:
        name: for the run's summary.
        codes: float32 [k, dim].
        texts: that the head reads beside the class names.
        refinement: the head, and its worth.
        errors: standard errors by which it must be better to replace a simpler candidate.
    """

    name: str
    codes: Array
    refinement: Refinement
    errors: float = 1.0
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class Choice:
    """What is deployed, of what might have been."""

    chosen: Candidate
    candidates: list[Candidate]


def accuracy_held_out(settings: TuneSettings, kept: Kept, chosen: Candidate) -> float | None:
    """Percent of pictures that what is deployed predicts rightly when made without them.

    Everything is made again for each part of the pictures, the choices included. None where nothing
    can be left out, or where a search chose a prompt by all labels.
    """
    if _answers(kept, chosen) is None:
        return None

    def predicted(rows: NDArray[np.bool_], about: NDArray[np.bool_]) -> Array | None:
        part, asked = kept.of_rows(rows), kept.of_rows(about)
        made = refiner_for(settings, part).choose(part).chosen
        answers = _answers(asked, made)
        head = made.refinement.head
        if answers is None or head.kind not in HEAD_KINDS:
            return None
        # As it would be served: numbers, whatever object a plug-in made.
        served = head_from_tensors(
            head.kind,
            head.tensors(),
            prompts=len(answers),
            classes=kept.plain.shape[-1],
            texts=len(made.texts),
        )
        return served(answers)

    groups = np.arange(len(kept.labels)) if kept.groups is None else kept.groups
    return accuracy_on_unseen(kept.labels, groups, predicted)


def _answers(kept: Kept, candidate: Candidate) -> Array | None:
    """What a candidate's head reads, log-probabilities [1 + k, N, C + M]; None if not kept."""
    matches = (candidate.codes[:, None] == kept.random[None]).all(axis=-1)
    if not matches.any(axis=1).all() or tuple(candidate.texts) not in ((), tuple(kept.texts)):
        return None
    prompts = np.concatenate([[0], 1 + matches.argmax(axis=1)]) if len(matches) else [0]
    answers = kept.opening[prompts]
    return answers if candidate.texts else kept.of_classes(answers)


class Refiner(Protocol):
    """The half of the loop that refines predictions."""

    @property
    def accuracy(self) -> float | None:
        """Of the present head, as `TuneProgress.accuracy`."""
        ...

    def refined(self, log_probs: Array) -> Array | None:
        """What codes with these log-probabilities [P, N, C] should be consistent with.

        Log-probabilities [N, C], or [P, N, C]; None while there is no refined prediction.
        """
        ...

    def learn(self, kept: Kept, generation: int) -> None:
        """Learns from answers already paid for, after a generation."""
        ...

    def choose(self, kept: Kept) -> Choice:
        """What to deploy."""
        ...


def refiner_for(settings: TuneSettings, kept: Kept) -> Refiner:
    """The refiner that the settings name, fitted on the first request's answers.

    Raises:
        PluginError: it is a plug-in's, which is not installed or cannot be loaded.
    """
    if not settings.refinement:
        return _NoRefiner(kept)
    if settings.refiner == "ridge":
        return _RidgeRefiner(kept)
    made: Refiner = plugins.find(REFINERS, settings.refiner).load()(settings, kept)
    return made


def _unrefined_candidates(kept: Kept) -> list[Candidate]:
    plain = Candidate("plain", kept.none, unrefined(kept.plain, kept.labels, kept.groups))
    if kept.searched is None:
        return [plain]
    searched = unrefined(kept.of_classes(kept.searched.log_probs), kept.labels, kept.groups)
    code = kept.searched.code[None]
    return [plain, Candidate("searched", code, searched, SEARCHED_ERRORS)]


class _NoRefiner:
    """The ablation: single prompts, as they are. The one of least loss is deployed."""

    def __init__(self, kept: Kept) -> None:
        self.accuracy = self.choose(kept).chosen.refinement.accuracy

    def refined(self, log_probs: Array) -> Array | None:
        return None

    def learn(self, kept: Kept, generation: int) -> None:
        self.accuracy = self.choose(kept).chosen.refinement.accuracy

    def choose(self, kept: Kept) -> Choice:
        random = [
            Candidate(f"random {index}", code[None], unrefined(log_probs, kept.labels, kept.groups))
            for index, (code, log_probs) in enumerate(
                zip(kept.random, kept.of_classes(kept.opening[1:]), strict=True)
            )
        ]
        candidates = [*_unrefined_candidates(kept), *random]
        return Choice(min(candidates, key=_loss), candidates)


class _RidgeRefiner:
    """The closed form on the plain prompt, the random codes and the best code so far.

    Consistency is with its held-out prediction: what it says of a picture that it was fitted on is
    little more than the label.

    The searched prompt was found with all labels, so what is measured with it is too good: such
    candidates come last and have to be better by more (`SEARCHED_ERRORS`).
    """

    def __init__(self, kept: Kept) -> None:
        self._plain = unrefined(kept.plain, kept.labels, kept.groups)
        self._opening = fit_ridge(kept.opening, kept.labels, groups=kept.groups)
        self._present = self._opening
        self._seen: Searched | None = None

    @property
    def accuracy(self) -> float | None:
        improved = self._present.improves_on(self._plain)
        return self._present.accuracy if improved else self._plain.accuracy

    def refined(self, log_probs: Array) -> Array | None:
        improved = self._present.improves_on(self._plain)
        return self._present.log_probs if improved else None

    def learn(self, kept: Kept, generation: int) -> None:
        due = generation % GENERATIONS_A_REFIT == 1
        if due and kept.searched is not None and kept.searched is not self._seen:
            self._seen = kept.searched
            self._present = _fit_all(kept, kept.searched)

    def choose(self, kept: Kept) -> Choice:
        plain, *searched = _unrefined_candidates(kept)
        opening = Candidate(
            _name(kept.texts, kept.random), kept.random, self._opening, texts=kept.texts
        )
        if self._opening.loss is None:
            # Nothing can be held out: texts and random codes, which are fitted to nothing, can be
            # trusted.
            return Choice(opening, [plain, opening])
        candidates = [plain]
        if kept.texts or len(kept.random):
            alone = fit_ridge(kept.plain[None], kept.labels, groups=kept.groups)
            candidates.append(Candidate("plain ridge", kept.none, alone))
        if kept.texts and len(kept.random):
            with_texts = fit_ridge(kept.opening[:1], kept.labels, groups=kept.groups)
            name = _name(kept.texts, kept.none)
            candidates.append(Candidate(name, kept.none, with_texts, texts=kept.texts))
        candidates += [opening, *searched]
        if kept.searched is not None:
            code = kept.searched.code[None]
            if len(kept.random):
                pair = np.stack([kept.opening[0], kept.searched.log_probs])
                candidates.append(
                    Candidate(
                        _name(kept.texts, kept.none, code),
                        code,
                        fit_ridge(pair, kept.labels, groups=kept.groups),
                        SEARCHED_ERRORS,
                        kept.texts,
                    )
                )
            candidates.append(
                Candidate(
                    _name(kept.texts, kept.random, code),
                    np.concatenate([kept.random, code]),
                    _fit_all(kept, kept.searched),
                    SEARCHED_ERRORS,
                    kept.texts,
                )
            )
        return Choice(_last_improvement(candidates), candidates)


def _name(texts: Sequence[str], random: Array, searched: Sequence[Array] | Array = ()) -> str:
    """A closed-form candidate's name, after what its head reads."""
    parts = {"plain": True, "texts": bool(texts), "random": len(random), "searched": len(searched)}
    return "+".join(part for part, there in parts.items() if there) + " ridge"


def _fit_all(kept: Kept, searched: Searched) -> Refinement:
    log_probs = np.concatenate([kept.opening, searched.log_probs[None]])
    return fit_ridge(log_probs, kept.labels, groups=kept.groups)


def _loss(candidate: Candidate) -> float:
    loss = candidate.refinement.loss
    return np.inf if loss is None else loss


def _last_improvement(candidates: Sequence[Candidate]) -> Candidate:
    """Each candidate that improves on the one chosen so far, beginning with the first, replaces it.

    They come in the order in which they depend on the labels more, and take more prompts.
    """
    chosen, *others = candidates
    for other in others:
        if other.refinement.improves_on(chosen.refinement, errors=other.errors):
            chosen = other
    return chosen
