"""What tuning may ask of a model: scores of prompts, and how many queries it may still pay for.

This module knows the question and the answer; it does not know HTTP, nor what is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from craft_shared.units import Units
from craft_shared.wire import Context


@dataclass(frozen=True)
class Scores:
    """The answer to one request.

    Attributes:
        log_probs: float32 [P, N, C], natural-log probabilities of P prompts, N pictures, C classes.
        charged: what the request cost.
    """

    log_probs: NDArray[np.float32]
    charged: Units


class BlackBox(Protocol):
    """A model that answers for a fixed list of pictures and classes, and charges for it."""

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

    def score(
        self,
        *,
        templates: Sequence[str] = (),
        context: Context | None = None,
        codes: NDArray[np.float32] | None = None,
    ) -> Scores:
        """Scores the templates and, after them, the codes [K, dim] on all pictures, in one request.

        Raises:
            CraftError: the request was refused or could not be made.
        """
        ...

    def queries(self, prompts: int) -> int:
        """How many queries scoring that many prompts in one request is: one each, as a rule."""
        ...

    def remaining_queries(self) -> int | None:
        """Queries that may still be charged; None where they are not bounded."""
        ...
