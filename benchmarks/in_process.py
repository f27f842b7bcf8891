"""Tuning without HTTP: a black box whose answers are computed in this process, and runs on it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from craft_client.blackbox import Question, Scores
from craft_client.journal import Journal
from craft_client.settings import TuneSettings
from craft_client.tune import TuneResult, run_document, tune
from craft_shared.units import Units
from craft_shared.wire import EVERYTHING, Budget, Context, Output


class InProcess:
    """What all such black boxes share; implements `BlackBox` but for `images`, `classes`, `score`.

    Attributes:
        images: features, float32 [N, W].
        classes: the C class names.
    """

    images: NDArray[np.float32]
    classes: Sequence[str]
    model = "in process"
    revision = "0" * 16
    output: Output = EVERYTHING
    prompt_limit: int | None = None
    image_size: int = 224

    def score(
        self,
        *,
        templates: Sequence[str] = (),
        context: Context | None = None,
        codes: NDArray[np.float32] | None = None,
        texts: Sequence[str] = (),
        **_: Any,
    ) -> Scores:
        """See `BlackBox`."""
        raise NotImplementedError

    def acknowledge(self, scores: Scores) -> None:
        """See `BlackBox`."""

    def units(self, question: Question) -> Units:
        """See `BlackBox`."""
        return Units(
            queries=question.prompts,
            predictions=question.prompts * len(self.images),
            texts=question.prompts * question.scored(len(self.classes)),
            requests=1,
        )

    def budgets(self) -> Sequence[Budget]:
        """See `BlackBox`."""
        return ()


def tuned(
    black_box: InProcess, labels: NDArray[np.int64], settings: TuneSettings
) -> tuple[TuneResult, str]:
    """A run's result, and the name of what it deployed."""
    with tempfile.TemporaryDirectory() as folder:
        about = run_document(black_box, labels, settings)
        journal = Journal.create(Path(folder) / "run", about)
        result = tune(black_box, labels, settings, journal)
        return result, journal.summary()["deployed"]
