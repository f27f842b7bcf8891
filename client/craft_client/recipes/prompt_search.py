"""A search for one prompt, without a head: what the baselines `random` and `spsa` share.

It knows budgets, losses and searches; it does not know which search it is given, nor what is
deployed of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from craft_client.exceptions import BudgetExhausted
from craft_client.losses import accuracy, cross_entropy
from craft_client.paid_answers import Reading
from craft_client.search import CodeSearch
from craft_client.tuning_run import Outcome, TuningRun
from craft_shared.head import Unrefined

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Searched:
    """What a search came to on the training images.

    Attributes:
        accuracy_before: of the plain prompt, percent.
        best: the code of least loss, float32 [1, dim]; [0, dim] where the plain prompt's is least.
        best_loss: of that prompt.
    """

    accuracy_before: float
    best: Array
    best_loss: float

    def deploying(self, codes: Array, name: str) -> Outcome:
        """The outcome of which a code [1, dim] is deployed by that name; [0, dim]: none is."""
        return Outcome(
            deployed=name if len(codes) else "the plain prompt",
            codes=codes,
            texts=(),
            head=Unrefined(),
            accuracy_before=self.accuracy_before,
            accuracy_after=None,  # the code depends on all labels: nothing was held out
            best_loss=self.best_loss,
            candidates=[],
        )


def search_prompt(run: TuningRun, search: CodeSearch) -> Searched:
    """Asks for the plain prompt, then for one generation of the search after another.

    A code's loss is its cross-entropy. What is reported as accuracy is that of the prompt of least
    loss so far, on the images that chose it.

    Raises:
        CraftError: see `craft_client.tune.tune`.
    """
    settings, labels = run.settings, run.labels

    def with_scores(log_probs: Array) -> Reading:
        return Reading(cross_entropy(log_probs, labels), {"log_probs": log_probs[0]})

    def with_count(log_probs: Array) -> Reading:
        losses = cross_entropy(log_probs, labels)
        right = log_probs[losses.argmin()].argmax(axis=-1) == labels
        return Reading(losses, {"right": np.array([right.sum()], np.float32)})

    best = np.zeros((0, settings.dim), np.float32)
    plain = run.ask(with_scores, best, templates=[settings.template])
    best_loss = float(plain.losses[0])
    before = best_accuracy = accuracy(plain.kept["log_probs"], labels)
    run.report("start", best_loss, best_loss, before)

    while run.covers_generation():
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
    return Searched(before, best, best_loss)
