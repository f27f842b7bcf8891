"""SPSA: descent along slopes that two queries measure, a baseline for CMA-ES.

Each step asks for two codes, on both sides of the present one, and moves by the difference of
their losses (`craft_client.search.CorrectedSPSA`). The last code is deployed, though it was never
asked for itself.

Source: Spall, IEEE TAC 37 (1992); BlackVIP (Oh et al., CVPR 2023), whose optimizer, SPSA-GC, this
is, on the codes of CraFT in place of a coordinator's weights.
"""

from __future__ import annotations

from craft_client.recipes.prompt_search import search_prompt
from craft_client.search import CorrectedSPSA
from craft_client.tuning_run import Outcome, TuningRun


def run_spsa(run: TuningRun) -> Outcome:
    """Runs the recipe.

    Raises:
        CraftError: see `craft_client.tune.tune`.
    """
    settings = run.settings
    search = CorrectedSPSA(
        settings.dim, sigma=settings.sigma, bound=settings.bound, seed=settings.stream("search")
    )
    searched = search_prompt(run, search)
    codes = search.current()[None]
    # Not moved by a budget that ended before the first step.
    return searched.deploying(codes if codes.any() else codes[:0], "the last code")
