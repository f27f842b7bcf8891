"""BPT-VLM's text half: CMA-ES over codes, of which the best that was asked for is deployed.

It differs from `bbt`, which follows CraFT's code: a population of 15, the first standard deviation
of a code's coordinate is one of the token embeddings', no bound, and the best code of all instead
of a mean. A last generation that the budget does not cover whole is asked in part: it may hold the
best code, though the search is not told.

What a black box cannot follow: the other half, prompt tokens within the image tower, and the deep
variant, tokens in every layer. The released code begins from eight tokens of zeros, not words, and
has a population of 30; 15 is that of its copy in ZIP's repository, which has five tokens.

Published: CLIP ViT-B/32, 16 shots, both halves, shallow: Caltech-101 94.16, DTD 60.52, EuroSAT
86.11; mean of nine data sets 76.11.

Source: Yu et al., "Black-box prompt tuning for vision-language model as a service" (IJCAI 2023),
and the released code.
"""

from __future__ import annotations

import numpy as np

from craft_client.blackbox import Question
from craft_client.exceptions import BudgetExhausted
from craft_client.search import CMAES
from craft_client.tuning_run import Outcome, TuningRun


def run_bpt_text(run: TuningRun, *, population: int = 15) -> Outcome:
    """Runs the recipe, `population` codes a generation."""
    settings = run.settings
    run.plain()
    search = CMAES(
        settings.dim,
        population=population,
        sigma=settings.sigma,
        bound=0.0,
        seed=settings.stream("search"),
    )
    best, best_loss = run.no_codes, float(run.history[0]["best_loss"])
    while some := run.most(Question(population)):
        run.generation += 1
        codes = search.ask()
        try:
            losses = run.ask(codes=codes[:some]).losses
        except BudgetExhausted as error:
            run.refused(error)
            break
        if losses.min() < best_loss:
            best, best_loss = codes[losses.argmin()][None], float(losses.min())
        run.report("search", float(losses.mean()), best_loss, None)
        if some < population:
            break
        search.tell(codes, losses)
    if not len(best):
        return Outcome("the plain prompt")
    return Outcome("the code of least training loss", codes=np.ascontiguousarray(best))
