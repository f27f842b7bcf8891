"""What craftbox counts: five units of work."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from craft_shared.amounts import MAX_INTEGER
from craft_shared.amounts import MEASURES as MEASURES
from craft_shared.amounts import UNITS as UNITS
from craft_shared.amounts import Measure as Measure
from craft_shared.amounts import Unit as Unit

_Amount = Annotated[int, Field(ge=0, le=MAX_INTEGER)]


class Units(BaseModel):
    """An amount of each unit.

    Attributes:
        queries: prompts scored against one image set (the CraFT paper's unit).
        predictions: prompts scored against one image.
        images: images through the image encoder.
        texts: texts through the text encoder.
        requests: HTTP calls.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"examples": [{"queries": 32, "predictions": 1280, "requests": 1}]},
    )

    queries: _Amount = 0
    predictions: _Amount = 0
    images: _Amount = 0
    texts: _Amount = 0
    requests: _Amount = 0

    def __add__(self, other: Units) -> Units:
        return Units(**{unit: getattr(self, unit) + getattr(other, unit) for unit in UNITS})

    def __getitem__(self, unit: Unit) -> int:
        amount: int = getattr(self, unit)
        return amount
