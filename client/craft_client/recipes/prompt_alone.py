"""The prompt alone, without a head: the baselines `random` and `spsa`.

`random`: all codes are drawn from one normal distribution, whatever the losses. The one of least
cross-entropy on the training images is deployed, or the plain prompt where none has less. As the
labels chose it, nothing was held out, and no accuracy is called that. Source: Bergstra and Bengio,
JMLR 2012, as the baseline that a search has to beat.

`spsa`: each step asks for two codes, on both sides of the present one, and moves by the difference
of their losses (`craft_client.search.CorrectedSPSA`). The last code is deployed, though it was
never asked for itself. Source: Spall, IEEE TAC 37 (1992); BlackVIP (Oh et al., CVPR 2023), whose
optimizer, SPSA-GC, this is, on the codes of CraFT in place of a coordinator's weights.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from craft_client.exceptions import BudgetExhausted
from craft_client.losses import cross_entropy
from craft_client.search import CodeSearch, CorrectedSPSA, search_for
from craft_client.tuning_run import Outcome, Reading, TuningRun

Array = NDArray[np.float32]


def run_random(run: TuningRun) -> Outcome:
    """Runs `random`; raises as `craft_client.tune.tune` does."""
    return search_prompt(run, search_for(run.settings, "random"))


def run_spsa(run: TuningRun) -> Outcome:
    """Runs `spsa`; raises as `craft_client.tune.tune` does."""
    settings = run.settings
    search = CorrectedSPSA(
        settings.dim, sigma=settings.sigma, bound=settings.bound, seed=settings.stream("search")
    )
    outcome = search_prompt(run, search)
    codes = search.current()[None]
    # Not moved by a budget that ended before the first step.
    if not codes.any():
        return replace(outcome, deployed="the plain prompt", codes=codes[:0])
    return replace(outcome, deployed="the last code", codes=codes)


def search_prompt(run: TuningRun, search: CodeSearch) -> Outcome:
    """Asks for the plain prompt, then for one generation of the search after another.

    A code's loss is its cross-entropy; the code of least loss is deployed. The accuracy that is
    reported is that of the prompt of least loss so far, on the images that chose it.
    """
    labels = run.labels

    def with_count(log_probs: Array) -> Reading:
        losses = cross_entropy(log_probs, labels)
        right = log_probs[losses.argmin()].argmax(axis=-1) == labels
        return Reading(losses, {"right": np.array([right.sum()], np.float32)})

    run.plain()
    best, best_loss, best_accuracy = run.no_codes, run.history[0]["best_loss"], run.accuracy_before

    while run.covers():
        run.generation += 1
        codes = search.ask()
        try:
            reading = run.ask(with_count, codes)
        except BudgetExhausted as error:
            run.refused(error)
            break
        search.tell(codes, reading.losses)
        if reading.losses.min() < best_loss:
            best_loss = float(reading.losses.min())
            best = codes[reading.losses.argmin()][None].copy()
            best_accuracy = 100.0 * int(reading.kept["right"][0]) / len(labels)
        run.report("search", float(reading.losses.mean()), best_loss, best_accuracy)
    return Outcome(
        deployed="the random code of least training loss" if len(best) else "the plain prompt",
        codes=best,
        best_loss=best_loss,
    )
