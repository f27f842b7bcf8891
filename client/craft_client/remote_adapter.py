"""A published adapter over HTTP: classifies pictures in as few calls as the limits allow.

It knows one version of one adapter; it does not know how the adapter came to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from craft_client.answer_blocks import rows_per_call
from craft_client.api import AdapterPrediction, Client
from craft_client.uploads import bodies
from craft_shared.counting import blocks, prediction_units
from craft_shared.output import scores_of, shown_bytes
from craft_shared.units import Units
from craft_shared.wire import AdapterCard, ImageSet, Limits, ModelCard, Output

T = TypeVar("T")


@dataclass(frozen=True)
class Classified:
    """Refined predictions of a published adapter.

    Attributes:
        log_probs: float32 [N, C], of answers that do not show all what
            `craft_shared.output.scores_of` makes of them.
        charged: what they cost.
        output: what the answers show.
    """

    log_probs: NDArray[np.float32]
    charged: Units
    output: Output


@dataclass(frozen=True)
class RemoteAdapter:
    """A published adapter that classifies pictures, in as few calls as the limits allow.

    Attributes:
        client: the connection.
        card: the adapter's, its version included: a later version is not used.
    """

    client: Client
    card: AdapterCard

    @cached_property
    def _model(self) -> ModelCard:
        return self.client.model(self.card.model)

    @property
    def limits(self) -> Limits:
        """The model's."""
        return self._model.limits

    def row_calls(self, rows: int) -> list[range]:
        """Which rows of an image set each call classifies. Each call is `prompts` queries."""
        row_bytes = shown_bytes(self._model.output, len(self.card.classes))
        return blocks(rows, rows_per_call(self.limits, row_bytes, rows))

    def picture_calls(
        self, images: Iterable[T], size_of: Callable[[T], int], top: int
    ) -> Iterator[list[T]]:
        """Which images each call sends along and classifies. Each call is `prompts` queries.

        Args:
            images: what stands for them.
            size_of: their bytes.
            top: how many classes are asked for, of each.
        """
        seen, count = self._model.output, self.limits.images_per_call
        shown = seen.model_copy(update={"k": min(top, seen.k or top)})
        most = rows_per_call(self.limits, shown_bytes(shown, len(self.card.classes)), count)
        return bodies(images, size_of, self.limits, most)

    def units(self, calls: int, rows: int, *, sent: int = 0) -> Units:
        """What so many calls that classify so many rows are charged, images sent among them."""
        return prediction_units(self.card.prompts, rows, sent=sent, calls=calls)

    def classify_image_set(self, image_set: ImageSet) -> Classified:
        """Classifies all N pictures of an image set."""
        return _joined(
            self.client.adapter_predict(
                self.reference,
                image_set=image_set.id,
                rows=None if len(rows) == image_set.count else rows,
                classes=self.card.classes,
                count=image_set.count,
            )
            for rows in self.row_calls(image_set.count)
        )

    @property
    def reference(self) -> str:
        """What calls name the version by, whoever makes them."""
        owner = f"{self.card.owner}/" if self.card.owner else ""
        return f"{owner}{self.card.name}@{self.card.version}"


def _joined(answers: Iterable[AdapterPrediction]) -> Classified:
    every = list(answers)
    return Classified(
        np.concatenate(
            [scores_of(answer.tensors, answer.output, len(answer.classes)) for answer in every]
        ),
        sum((answer.cost.charged for answer in every), Units()),
        every[0].output,
    )
