"""Random search: the best of random prompts, a baseline for searches and for heads.

All codes are drawn from one normal distribution, whatever the losses. The one of least
cross-entropy on the training images is deployed, or the plain prompt where none has less. As the
labels chose it, nothing was held out, and no accuracy is called that.

Source: Bergstra and Bengio, JMLR 2012, as the baseline that a search has to beat.
"""

from __future__ import annotations

from craft_client.recipes.prompt_search import search_prompt
from craft_client.search import search_for
from craft_client.tuning_run import Outcome, TuningRun


def run_random(run: TuningRun) -> Outcome:
    """Runs the recipe.

    Raises:
        CraftError: see `craft_client.tune.tune`.
    """
    searched = search_prompt(run, search_for(run.settings, "random"))
    return searched.deploying(searched.best, "the random code of least training loss")
