"""The paper's recipe: prompts searched and a residual MLP trained, each with the other's help.

Each generation,

1. asks CMA-ES for a population of codes and tells it their losses: cross-entropy of the prompt's
   prediction, plus the divergence of the refined prediction from it;
2. draws a second population and takes its mean code for the prompt;
3. trains the head on that prompt's scores for one epoch: cross-entropy of the refined prediction,
   plus, in the first part of the run, the divergence of the unrefined prediction from it.

The last mean code and the head are deployed, whatever they are worth. docs/reproduction.md says
where this follows the released code rather than the paper, and where it can follow neither. Without
refinement it is black-box tuning (`craft_client.recipes.prompt_alone`).

It knows the method; it does not know HTTP, nor what a picture is.

Source: CraFT (arXiv 2402.04050), sections 3.1 to 3.4 and 4.1, and the released code.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from craft_client.exceptions import BudgetExhausted
from craft_client.losses import accuracy, cross_entropy, divergence
from craft_client.paid_answers import Reading
from craft_client.residual_mlp import ResidualMLP
from craft_client.search import search_for
from craft_client.tuning_run import Outcome, TuningRun
from craft_shared.head import Unrefined

Array = NDArray[np.float32]

# What the scores of means may take in the journal before the head's state is saved in their place.
HELD_BYTES = 16 * 2**20


def run_paper(run: TuningRun) -> Outcome:
    """Runs the recipe.

    Raises:
        CraftError: see `craft_client.tune.tune`.
    """
    return search_and_refine(run, refinement=run.settings.refinement)


def search_and_refine(run: TuningRun, *, refinement: bool) -> Outcome:
    """The recipe, with or without the head.

    Raises:
        CraftError: see `craft_client.tune.tune`.
    """
    settings, labels = run.settings, run.labels
    no_codes = np.zeros((0, settings.dim), np.float32)

    def with_scores(log_probs: Array) -> Reading:
        return Reading(cross_entropy(log_probs, labels), {"log_probs": log_probs[0]})

    plain = run.ask(with_scores, no_codes, templates=[settings.template])
    plain_scores, codes = plain.kept["log_probs"], no_codes
    loss = best_loss = float(plain.losses[0])
    before = accuracy(plain_scores, labels)
    mlp = ResidualMLP(plain_scores.shape[1], hidden=settings.hidden, seed=settings.stream("mlp"))
    run.report("start", loss, best_loss, before)

    def losses_of(log_probs: Array) -> Reading:
        losses = cross_entropy(log_probs, labels)
        if refinement and settings.consistency:
            head = mlp.head()
            refined = np.stack([head(one[None]) for one in log_probs])
            losses += np.float32(settings.consistency_weight) * divergence(refined, log_probs)
        return Reading(losses, {})

    def train(scores: Array) -> None:
        within = run.generation <= settings.consistency_share * settings.generations()
        weight = settings.consistency_weight if settings.consistency and within else 0.0
        mlp.train_epoch(scores, labels, batch_size=settings.batch_size, consistency_weight=weight)

    def learn(scores: Array) -> float:
        """Trains on the mean's scores; the accuracy on them."""
        if refinement:
            train(scores)
        refined = mlp.head()(scores[None]) if refinement else scores
        return accuracy(refined, labels)

    search = search_for(settings)
    while run.covers_generation():
        run.generation += 1
        population = search.ask()
        try:
            losses = run.ask(losses_of, population).losses
            search.tell(population, losses)
            mean = search.current()[None]
            of_mean, codes = run.ask(with_scores, mean), mean
        except BudgetExhausted as error:
            run.refused(error)
            break
        loss, best_loss = float(losses.mean()), min(best_loss, float(losses.min()))
        if not run.answers.learnt:
            run.report("search", loss, best_loss, learn(of_mean.kept["log_probs"]))
            if run.answers.held_bytes > HELD_BYTES:
                run.save_checkpoint(*mlp.state())
        elif (checkpoint := run.answers.checkpoint) is not None:
            mlp.restore(checkpoint.document, checkpoint.tensors)
            run.recall(checkpoint)

    if not settings.search and refinement:
        for _ in range(settings.budget // settings.population):
            train(plain_scores)
    return Outcome(
        deployed="the last mean, refined" if refinement else "the last mean",
        codes=codes,
        texts=(),
        head=mlp.head() if refinement else Unrefined(),
        accuracy_before=before,
        accuracy_after=None,
        best_loss=best_loss,
        candidates=[],
    )
