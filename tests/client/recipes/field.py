"""A run of a method on a small model, and how good what it deploys is on other pictures."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from craft_client.arena import Method
from craft_client.journal import Journal
from craft_client.losses import accuracy
from craft_client.recipes import added
from craft_client.tune import TuneResult, TuneSettings, run_document, tune
from craft_shared.adapter import prompted

from ..fake_clip import FakeBlackBox, FakeClip

CLIP = FakeClip(5, seed=1, ignorance=2.0)  # the plain prompt is bad at it
PICTURES, LABELS = CLIP.pictures(8)
OTHERS, OTHER_LABELS = CLIP.pictures(40, seed=9)


def tuned(
    folder: Path, method: Method | str, black_box: FakeBlackBox | None = None, **more: Any
) -> tuple[TuneResult, Journal]:
    """What a new run comes to, or one that lies in the folder."""
    black_box = black_box or FakeBlackBox(CLIP, PICTURES)
    with nullcontext(method) if isinstance(method, str) else added(method) as recipe:
        options = {"recipe": recipe, "dim": 16, "scale": 1.0, "budget": 100, **more}
        settings = TuneSettings(**options)
        new = not (folder / "run.json").exists()
        document = run_document(black_box, LABELS, settings)
        journal = Journal.create(folder, document) if new else Journal.open(folder)
        result = tune(black_box, LABELS, settings, journal, pictures=list(PICTURES))
    assert not new or result.units == black_box.charged
    return result, journal


def accuracies(result: TuneResult) -> tuple[float, float]:
    """Of the plain prompt and of the adapter, on other pictures, percent."""
    config = result.adapter.config
    codes = result.adapter.codes if config.codes else None

    def scores(pictures: np.ndarray) -> np.ndarray:
        features = CLIP.features(pictures)
        return CLIP.log_probs(features, config.scored, config.templates, config.context, codes)

    refined = result.adapter.head(scores(prompted(OTHERS, result.adapter.visual)))
    plain = scores(OTHERS)[0, :, : len(CLIP.names)]
    return accuracy(plain, OTHER_LABELS), accuracy(refined, OTHER_LABELS)
