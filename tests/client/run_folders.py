"""Run directories that tests write, answer by answer, as tuning leaves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from craft_client.evaluation import Evaluation, Metrics, keep_evaluation
from craft_client.journal import Journal
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import Unrefined
from craft_shared.units import Units

PICTURES, CLASSES = 30, ["cat", "dog", "owl"]
ADAPTER = Adapter(
    AdapterConfig(
        model="pocket", revision="f00d", classes=CLASSES, templates=["a {}", "the {}"], head="none"
    ),
    np.zeros((0, 0), np.float32),
    Unrefined(),
)
ADAPTER_DIGEST = "ad" * 32
# Ten images: right are 5 before (2, 1, 2 by class) and 8 after (3, 3, 2).
EVALUATION = Evaluation(
    evaluated_at="2026-01-02T04:00:00+00:00",
    data="animals",
    split="test",
    model="pocket",
    revision="f00d",
    adapter=ADAPTER_DIGEST,
    before=Metrics(
        confusion={
            "cat": {"cat": 2, "dog": 1},
            "dog": {"dog": 1, "owl": 3},
            "owl": {"cat": 1, "owl": 2},
        },
        calibration_error=20.0,
    ),
    confusion={"cat": {"cat": 3}, "dog": {"dog": 3, "owl": 1}, "owl": {"cat": 1, "owl": 2}},
    calibration_error=6.5,
    charged=Units(queries=2, predictions=20, images=10, texts=6, requests=3),
)


def answer(
    generation: int, prompts: int, mean_loss: float, best_loss: float, **more: Any
) -> dict[str, Any]:
    """A line of the journal; `cost_micros=None` leaves the cost out."""
    charged = {
        "queries": prompts,
        "predictions": prompts * PICTURES,
        "images": 0,
        "texts": prompts * len(CLASSES),
        "requests": 1,
    }
    line = {
        "stage": "search" if generation else "start",
        "generation": generation,
        "charged": charged,
        "cost_micros": prompts * 1000,
        "best_loss": best_loss,
        "mean_loss": mean_loss,
        **more,
    }
    return {name: value for name, value in line.items() if value is not None}


# The plain prompt and three others, then three generations of eight: 28 queries.
ANSWERS = (
    answer(0, 4, 2.5, 2.0),
    answer(1, 8, 2.25, 1.5),
    answer(2, 8, 2.0, 1.75),
    answer(3, 8, 1.75, 1.25),
)
ACCURACIES = (50.0, 60.0, 62.5, 70.0)


def write_run(
    folder: Path,
    *,
    answers: Sequence[Mapping[str, Any]] = ANSWERS,
    accuracies: Sequence[float | None] = ACCURACIES,
    finished: bool = True,
    settings: Mapping[str, Any] | None = None,
    summary: Mapping[str, Any] | None = None,
    evaluation: Evaluation | None = None,
    adapter: Adapter = ADAPTER,
    **about: Any,
) -> Path:
    """A run's directory; `settings`, `summary` and `about` replace what it says by itself."""
    journal = Journal.create(
        folder,
        {
            "schema_version": 4,
            "craftbox": "0.1.0",
            "started_at": "2026-01-02T03:04:05+00:00",
            "model": "pocket",
            "revision": "f00d",
            "settings": {
                "recipe": "craftbox", "budget": 40, "seed": 1, "shots": 10, **(settings or {})
            },
            "classes": CLASSES,
            "labels": [0, 1, 2] * (PICTURES // 3),
            "data": "/data/animals",
            **about,
        },
    )  # fmt: skip
    for line in answers:
        journal.append(line)
    if finished:
        journal.finish(
            adapter,
            {
                "finished_at": "2026-01-02T03:14:15+00:00",
                "accuracy_before": 40.0,
                "accuracy_after": 72.5,
                "units": {},
                "stopped_by": None,
                "adapter": ADAPTER_DIGEST,
                "deployed": "ridge",
                "candidates": [
                    {
                        "name": name,
                        "prompts": prompts,
                        "texts": 0,
                        "loss": loss,
                        "regularisation": regularisation,
                    }
                    for name, prompts, loss, regularisation in (
                        ("plain", 1, 1.5, None),
                        ("ridge", 28, 1.0, 0.01),
                    )
                ],
                "history": [
                    {"generation": generation, "accuracy": accuracy}
                    for generation, accuracy in enumerate(accuracies)
                ],
                **(summary or {}),
            },
        )
    if evaluation:
        assert keep_evaluation(folder, evaluation) is None
    return folder
