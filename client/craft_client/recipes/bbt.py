"""Black-box tuning: the prompt alone, searched by CMA-ES.

Each generation asks for a population of codes and tells CMA-ES their cross-entropies, then asks for
the mean code of a second draw. The last mean is deployed, without a head. It is CraFT without its
refinement, request for request, so that the two differ in nothing else.

Source: BBT (Sun et al., ICML 2022, arXiv 2201.03514), on the codes of CraFT (arXiv 2402.04050). BBT
itself searches for continuous prompt tokens of a language model that are prepended to its input.
"""

from __future__ import annotations

from craft_client.recipes.paper import search_and_refine
from craft_client.tuning_run import Outcome, TuningRun


def run_bbt(run: TuningRun) -> Outcome:
    """Runs the recipe.

    Raises:
        CraftError: see `craft_client.tune.tune`.
    """
    return search_and_refine(run, refinement=False)
