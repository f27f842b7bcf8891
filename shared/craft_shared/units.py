"""What craftbox counts: five units of work, and their cost; it knows neither prices nor budgets."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, NonNegativeInt

from craft_shared.amounts import MEASURES, UNITS, Measure, Unit

__all__ = ["MEASURES", "UNITS", "Measure", "Unit", "Units"]


class Units(BaseModel):
    """An amount of each unit.

    Attributes:
        queries: prompts scored against one image set (the CraFT paper's unit).
        predictions: prompts scored against one image.
        images: images through the image encoder.
        texts: texts through the text encoder.
        requests: HTTP calls.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    queries: NonNegativeInt = 0
    predictions: NonNegativeInt = 0
    images: NonNegativeInt = 0
    texts: NonNegativeInt = 0
    requests: NonNegativeInt = 0

    def __add__(self, other: Units) -> Units:
        return Units(**{unit: getattr(self, unit) + getattr(other, unit) for unit in UNITS})

    def __getitem__(self, unit: Unit) -> int:
        amount: int = getattr(self, unit)
        return amount
