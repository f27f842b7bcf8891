"""What is wrong with a document that its model refuses, in a few words and wire notation."""

from __future__ import annotations

from pydantic import ValidationError

from craft_shared import names
from craft_shared.problems import FieldError

_REMEDIES = {names.FAULT: names.REMEDY}


def first_error(error: ValidationError, whole: str = "") -> str:
    """The first thing that is wrong: `field: message`.

    Args:
        error: has one at least.
        whole: how the document is called where no field of it is at fault; without it the message
            stands alone.
    """
    first = field_errors(error)[0]
    field = first.field or whole
    return f"{field}: {first.message}" if field else first.message


def field_errors(error: ValidationError) -> list[FieldError]:
    """Everything that is wrong; of the whole document where the field is empty."""
    return [
        FieldError(
            field="".join(
                f"[{part}]" if isinstance(part, int) else f".{part}" for part in one["loc"]
            ).removeprefix("."),
            message=one["msg"].removeprefix("Value error, "),
            remedy=_REMEDIES.get(one["type"], ""),
        )
        for one in error.errors(include_url=False, include_context=False, include_input=False)
    ]
