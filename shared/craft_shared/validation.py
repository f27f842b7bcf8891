"""What is wrong with a document that its model refuses, in a few words.

It knows pydantic's errors and wire notation (`classes[3]`, `context.dim`); it does not know whose
document it is.
"""

from __future__ import annotations

from pydantic import ValidationError


def first_error(error: ValidationError, whole: str = "") -> str:
    """The first thing that is wrong: `field: message`.

    Args:
        error: has one at least.
        whole: how the document is called where no field of it is at fault; without it the message
            stands alone.
    """
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    field = "".join(parts).removeprefix(".") or whole
    message = first["msg"].removeprefix("Value error, ")
    return f"{field}: {message}" if field else message
