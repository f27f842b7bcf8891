"""What messages have in common: how strictly they are read, and names, labels and times."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Literal, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    StringConstraints,
    field_validator,
)

from craft_shared.amounts import MAX_INTEGER
from craft_shared.names import sound

LONGEST_CLASS_NAME = 200  # characters
LONGEST_TEMPLATE = 300

T = TypeVar("T")

# A handwritten zero of 8 x 8 pixels (scikit-learn's digits), as PNG.
_ZERO = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAARUlEQVR42gXBQRGAIAAAsB3nHxpoA2lCBCMZgQwm0AbQ"
    "wCMBRnBDaWcEbdZZLPYtj5SvIPWhE6SHRPBlMX9Y31JvcLSKH6APEesy1LcOAAAAAElFTkSuQmCC"
)
_RFC_3339 = re.compile(
    r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)


def _read_time(value: object) -> object:
    if isinstance(value, str) and _RFC_3339.fullmatch(value):
        moment = datetime.fromisoformat(value.upper())
        try:
            return moment.astimezone(UTC)
        except OverflowError as error:
            raise ValueError("in UTC this time is not within the years 1 to 9999") from error
    if isinstance(value, datetime):
        return value
    raise ValueError("this is no RFC 3339 time such as 2026-01-31T12:00:00Z")


# Pydantic alone would take a number too, for seconds since 1970.
Time = Annotated[AwareDatetime, BeforeValidator(_read_time)]
Name = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", min_length=1, max_length=64)
]
# Of a text that becomes a name. What was stored before this was asked is not asked again.
_Sound = AfterValidator(sound)
StoredClassName = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_CLASS_NAME)]
ClassName = Annotated[
    StoredClassName,
    _Sound,
    # A part of the rule, as JSON Schema can say it.
    Field(json_schema_extra={"pattern": r"^[^\x00-\x1f\x7f-\x9f=+@-][^\x00-\x1f\x7f-\x9f]*$"}),
]
# That the place is there is checked where prompts are, in the words of that check.
Template = Annotated[
    str,
    StringConstraints(min_length=2, max_length=LONGEST_TEMPLATE),
    Field(json_schema_extra={"pattern": r"\{\}"}, examples=["a photo of the number {}."]),
]
Images = Annotated[list[str] | None, Field(examples=[[_ZERO]])]
Image = Annotated[str, Field(examples=[_ZERO])]
Row = Annotated[int, Field(ge=0, le=MAX_INTEGER, examples=[0])]
Count = Annotated[int, Field(ge=0, examples=[1])]
Positive = Annotated[int, Field(ge=1)]
ModelName = Annotated[str, Field(examples=["pocket"])]
Revision = Annotated[str, Field(examples=["cffb53dbadc7e4fb"])]
Owner = Annotated[str, Field(examples=["digits-app"])]
Moment = Annotated[str, Field(examples=["2026-11-26T12:08:43.138Z"])]


class _FirstFault(FailFast):
    """Pydantic's, which cannot stand in unions because it has no hash."""

    def __hash__(self) -> int:
        return hash(_FirstFault)


# Of what somebody else sends, which may be wrong a million times over: the first fault will do.
Many = Annotated[list[T], _FirstFault()]
Rows = Annotated[list[Row], Field(min_length=1)]
TopK = Annotated[int, Field(ge=1, le=MAX_INTEGER)]

Label = Annotated[
    str,
    StringConstraints(strip_whitespace=True, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$"),
]
# With something that is not white space, of which a NEXT LINE is one to Unicode and not to JSON
# Schema's patterns.
NonEmptyLabel = Annotated[
    Label,
    StringConstraints(
        min_length=1, pattern=r"^[^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f\x85][^\x00-\x1f\x7f]*$"
    ),
]
# The same where they are made.
NewLabel = Annotated[Label, _Sound]
NewName = Annotated[NonEmptyLabel, _Sound]


Format = Literal["labels"] | None  # of an answer; null is tensors


class Message(BaseModel):
    """A JSON object on the wire. Unknown fields are errors, so that a typing slip is noticed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Answer(Message):
    """What a server says. Unknown fields are ignored, so that a newer server may say more.

    Numbers are finite, and integers such as every reader holds.
    """

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _countable(cls, value: object) -> object:
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise ValueError("the number is too large")
        return value


class LabelScore(Answer):
    """A class and its probability, as far as the answer shows it; null where it shows none."""

    label: str = Field(examples=["zero"])
    score: float | None = Field(examples=[0.9351])
