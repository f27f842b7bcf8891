"""craftbox's own recipe: random prompts and a closed form, then a search for what they lack.

With P prompts, N pictures, C classes:

1. One request scores the plain prompt and some random codes. (In open-text mode the plain prompt
   comes first, with a vocabulary beside the class names; every further prompt scores the texts that
   are kept of it.)
2. A closed-form head is fitted on these answers.
3. Each generation asks CMA-ES for a population of codes and scores it in one request. A code's loss
   is the cross-entropy of its prediction, plus a term for how far it is from the refined one. Then
   the head learns from the best code so far, whose answer is already paid for.
4. Of the heads that all these answers allow, the best on left-out pictures is deployed: from the
   plain prediction on, one that has seen more of the labels replaces one that has seen less only
   if it is better beyond chance.
5. The second to the fourth step are done again without a part of the pictures, to see what comes of
   them on pictures that they have not seen (`craft_client.held_out`).

It knows the method; it does not know HTTP, nor what a picture is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from craft_client.exceptions import BudgetExhausted
from craft_client.losses import accuracy, cross_entropy, divergence
from craft_client.open_text import spanning_texts
from craft_client.paid_answers import Reading
from craft_client.refiners import (
    Choice,
    Kept,
    Refiner,
    Searched,
    accuracy_held_out,
    refiner_for,
)
from craft_client.search import search_for
from craft_client.settings import TuneSettings
from craft_client.tuning_run import Outcome, TuningRun
from craft_shared.head import log_softmax

Array = NDArray[np.float32]
Labels = NDArray[np.int64]


def run_craftbox(run: TuningRun) -> Outcome:
    """Runs the recipe.

    Raises:
        CraftError: see `craft_client.tune.tune`.
    """
    settings, labels = run.settings, run.labels
    kept = _open(run)
    refiner = refiner_for(settings, kept)
    losses = cross_entropy(kept.of_classes(kept.opening), labels)
    best_loss = float(losses.min())
    run.report("start", float(losses.mean()), best_loss, refiner.accuracy)

    search = search_for(settings)

    def read(log_probs: Array) -> Reading:
        losses = _losses(kept.of_classes(log_probs), labels, refiner, settings)
        first = int(losses.argmin())
        improved = kept.searched is None or losses[first] < best_loss
        return Reading(losses, {"log_probs": log_probs[first]} if improved else {})

    while run.covers_generation():
        run.generation += 1
        codes = search.ask()
        try:
            reading = run.ask(read, codes, texts=kept.texts)
        except BudgetExhausted as error:
            run.refused(error)
            break
        search.tell(codes, reading.losses)
        if "log_probs" in reading.kept:
            best = codes[reading.losses.argmin()].copy()
            kept.searched = Searched(best, reading.kept["log_probs"].copy())
        refiner.learn(kept, run.generation)
        if kept.searched is not None:
            # Measured anew, because the refined prediction that it is compared with moves.
            log_probs = kept.of_classes(kept.searched.log_probs)[None]
            best_loss = float(_losses(log_probs, labels, refiner, settings)[0])
        run.report("search", float(reading.losses.mean()), best_loss, refiner.accuracy)

    choice = refiner.choose(kept)
    held_out = accuracy_held_out(settings, kept, choice.chosen)
    return _outcome(choice, kept, best_loss, held_out)


def _open(run: TuningRun) -> Kept:
    """Asks what comes before any search."""
    settings, labels = run.settings, run.labels
    random = _random_codes(settings)

    def read(log_probs: Array) -> Reading:
        losses = cross_entropy(log_softmax(log_probs[..., : labels.max() + 1]), labels)
        return Reading(losses, {"log_probs": log_probs})

    template = [settings.template]
    if not settings.texts:
        opening = run.ask(read, random, templates=template).kept["log_probs"]
        return Kept(random, (), opening, labels, groups=run.copies_in(opening))
    wide = run.ask(read, random[:0], templates=template, texts=settings.texts).kept["log_probs"]
    classes = wide.shape[2] - len(settings.texts)
    chosen = spanning_texts(wide[0], classes, settings.keep_texts)
    texts = [settings.texts[text] for text in chosen]
    opening = log_softmax(wide[:, :, np.concatenate([np.arange(classes), classes + chosen])])
    if len(random):
        codes = run.ask(read, random, texts=texts)
        opening = np.concatenate([opening, codes.kept["log_probs"]])
    return Kept(random, texts, opening, labels, groups=run.copies_in(opening))


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


def _outcome(choice: Choice, kept: Kept, best_loss: float, held_out: float | None) -> Outcome:
    chosen = choice.chosen
    return Outcome(
        deployed=chosen.name,
        codes=chosen.codes,
        texts=chosen.texts,
        head=chosen.refinement.head,
        accuracy_before=accuracy(kept.plain, kept.labels),
        accuracy_after=held_out,
        best_loss=best_loss,
        candidates=[
            {
                "name": candidate.name,
                "prompts": 1 + len(candidate.codes),
                "texts": len(candidate.texts),
                "accuracy": candidate.refinement.accuracy,
                "loss": candidate.refinement.loss,
                "regularisation": candidate.refinement.regularisation,
            }
            for candidate in choice.candidates
        ],
    )
