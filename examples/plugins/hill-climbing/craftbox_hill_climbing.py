"""A recipe in a page: scores random codes, then climbs from the best one by shrinking steps.

It deploys a single prompt and no head, and is no better than craftbox's own recipe; it shows what a
recipe is given and what it returns.
"""

import numpy as np

from craft_client.exceptions import BudgetExhausted
from craft_client.losses import accuracy, cross_entropy
from craft_client.tuning_run import Outcome, Reading, TuningRun
from craft_shared.head import Unrefined

SHRINK = 0.8


def run(run: TuningRun) -> Outcome:
    """The recipe: an entry point of the group `craftbox.recipes`."""
    settings, labels = run.settings, run.labels
    generator = np.random.default_rng(settings.stream("search"))

    def read(log_probs):
        """What is kept of a paid answer: each prompt's loss, and the scores of the best one."""
        losses = cross_entropy(log_probs, labels)
        kept = {"best": log_probs[losses.argmin()], "first": log_probs[0]}
        return Reading(losses, kept)

    codes = generator.standard_normal((settings.random_codes, settings.dim), dtype=np.float32)
    opening = run.ask(read, codes, templates=[settings.template])
    candidates = np.concatenate([np.zeros((1, settings.dim), np.float32), codes])
    best, best_loss = candidates[opening.losses.argmin()], float(opening.losses.min())
    scores, step = opening.kept["best"], settings.sigma
    before = accuracy(opening.kept["first"], labels)
    run.report("start", float(opening.losses.mean()), best_loss, accuracy(scores, labels))

    while run.covers_generation():
        run.generation += 1
        noise = generator.standard_normal((settings.population, settings.dim), dtype=np.float32)
        codes = best + np.float32(step) * noise
        try:
            answer = run.ask(read, codes)
        except BudgetExhausted as error:
            run.refused(error)
            break
        if answer.losses.min() < best_loss:
            best, best_loss = codes[answer.losses.argmin()], float(answer.losses.min())
            scores = answer.kept["best"]
        else:
            step *= SHRINK
        run.report("search", float(answer.losses.mean()), best_loss, accuracy(scores, labels))

    plain = not best.any()
    return Outcome(
        deployed="the plain prompt" if plain else "the best code",
        codes=best[None][:0] if plain else best[None],
        texts=(),
        head=Unrefined(),
        accuracy_before=before,
        accuracy_after=None,  # the code was chosen by all labels: nothing was held out
        best_loss=best_loss,
        candidates=[],
    )
