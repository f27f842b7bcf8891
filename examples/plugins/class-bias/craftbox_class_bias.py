"""A refiner in a page: one number a class, so that classes are predicted as often as they occur.

It ends in a linear head whose weights are zero, which every server knows: what is published is
numbers. A refiner may fit them in any way it likes, with any library.
"""

import numpy as np

from craft_client.losses import accuracy
from craft_client.refine import Refinement, unrefined
from craft_client.refiners import Candidate, Choice, Kept
from craft_client.settings import TuneSettings
from craft_shared.head import LinearHead

STEPS = 50


class ClassBias:
    """The refiner: an entry point of the group `craftbox.refiners`, called with both arguments."""

    def __init__(self, settings: TuneSettings, kept: Kept) -> None:
        self._refinement = _fit(kept)

    @property
    def accuracy(self) -> float | None:
        """Of the head, percent."""
        return self._refinement.accuracy

    def refined(self, log_probs):
        """Nothing that codes have to be consistent with."""
        return

    def learn(self, kept: Kept, generation: int) -> None:
        """The plain prompt's answer, all that it reads, does not change."""

    def choose(self, kept: Kept) -> Choice:
        """Deploys the plain prompt with the head."""
        plain = Candidate("plain", kept.none, unrefined(kept.plain, kept.labels))
        biased = Candidate("plain, class bias", kept.none, self._refinement)
        return Choice(biased, [plain, biased])


def _fit(kept: Kept) -> Refinement:
    classes = kept.plain.shape[1]
    wanted = np.bincount(kept.labels, minlength=classes) / len(kept.labels)
    bias = np.zeros(classes, np.float32)
    for _ in range(STEPS):
        found = np.exp(_head(bias)(kept.plain[None])).mean(axis=0)
        bias += np.log(wanted / found).astype(np.float32)
    head = _head(bias)
    log_probs = head(kept.plain[None])
    losses = -log_probs[np.arange(len(kept.labels)), kept.labels]
    # Measured on the pictures that it was fitted on, of which so few numbers learn little by heart.
    return Refinement(head, log_probs, accuracy(log_probs, kept.labels), losses)


def _head(bias) -> LinearHead:
    weight = np.zeros((len(bias), len(bias)), np.float32)
    return LinearHead(weight, bias, head_scale=1.0, plain_scale=1.0)
