"""What tuning may ask of a model: scores of prompts, their cost, and what may still be spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from craft_shared.units import Units
from craft_shared.wire import Budget, Context, Output


@dataclass(frozen=True)
class Scores:
    """The answer to one request.

    Attributes:
        log_probs: natural-log probabilities of P prompts on N images, C classes and M further
            texts: float32 [P, N, C + M]. Of answers that do not show them all, what
            `craft_shared.output.scores_of` makes of them.
        charged: what the request cost.
        cost_micros: its price, in millionths of the provider's currency.
        budgets: all that bound further requests, as they stand after this one.
        answers: opaque names of what was answered, for `BlackBox.acknowledge`.
    """

    log_probs: NDArray[np.float32]
    charged: Units
    cost_micros: int = 0
    budgets: Sequence[Budget] = ()
    answers: Sequence[str] = ()


class BlackBox(Protocol):
    """A model that answers for a fixed list of images and classes, and charges for it."""

    @property
    def classes(self) -> Sequence[str]:
        """The C class names."""
        ...

    @property
    def model(self) -> str:
        """The model's name."""
        ...

    @property
    def revision(self) -> str:
        """The model's opaque revision."""
        ...

    @property
    def output(self) -> Output:
        """What its answers show of what the model says, and `score` reads."""
        ...

    @property
    def prompt_limit(self) -> int | None:
        """How many different prompts may be asked about the images; None is not bounded."""
        ...

    def score(
        self,
        *,
        templates: Sequence[str] = (),
        context: Context | None = None,
        codes: NDArray[np.float32] | None = None,
        texts: Sequence[str] = (),
        name: str | None = None,
    ) -> Scores:
        """Scores the templates and, after them, the codes [K, dim] on all images, in one request.

        Every prompt is scored on the class names and, after them, the further `texts`. The same
        request under the same `name` is answered as it was, and is not charged again.

        Raises:
            BudgetExhausted: a budget does not cover the request. If the request is
                several calls, as `units` says, some of them may have been charged.
            CraftError: the request was refused or could not be made.
        """
        ...

    def acknowledge(self, scores: Scores) -> None:
        """Reports that the answer is stored safely here: nobody has to keep it any more.

        It never fails; an answer that is not acknowledged is merely kept for longer.
        """
        ...

    def units(self, prompts: int, texts: int = 0) -> Units:
        """What scoring that many prompts in one request is charged: one query each, as a rule.

        `texts` are those beside the class names.
        """
        ...

    def budgets(self) -> Sequence[Budget]:
        """All budgets that bound requests now; a unit without one is not bounded."""
        ...
