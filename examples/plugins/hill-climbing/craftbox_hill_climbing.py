"""A recipe in a page: scores random codes, then climbs from the best one by shrinking steps.

It deploys a single prompt and no head, and is no better than craftbox's own recipe; it shows what a
recipe is given and what it returns.
"""

import numpy as np

from craft_client.arena import Outcome, Question

SHRINK = 0.8


def run(run, *, first=15, population=40):
    """The recipe: an entry point of the group `craftbox.recipes`, with two settings of its own."""
    generator = np.random.default_rng(run.settings.stream("search"))
    run.plain()
    best, best_loss = np.zeros((1, run.settings.dim), np.float32), run.history[0]["best_loss"]
    step = run.settings.sigma
    while some := run.most(Question(population if run.generation else first)):
        run.generation += 1
        noise = generator.standard_normal((some, run.settings.dim), dtype=np.float32)
        codes = best + np.float32(step) * noise
        losses = run.ask(codes=codes).losses
        if losses.min() < best_loss:
            best, best_loss = codes[losses.argmin()][None], float(losses.min())
        else:
            step *= SHRINK
        run.report("search", float(losses.mean()), best_loss, None)
    if not best.any():
        return Outcome("the plain prompt")
    return Outcome("the best code", codes=best)
