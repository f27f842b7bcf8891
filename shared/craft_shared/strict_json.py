"""JSON objects as both sides take them: no field twice, no NaN, and no more values than allowed.

The values are counted before anything is parsed, from the bytes alone: each one but the outermost
follows a comma or an opening bracket, so that these are as many at least, whatever texts hold. The
parser is pydantic's own.

Source: RFC 8259, and RFC 7493 (I-JSON) for what is refused beyond it.
"""

from __future__ import annotations

import math
from typing import Any

import jiter

MAX_VALUES = 2**18
# Names, lists and objects cost some ten times what a number does; who sends them needs few.
MAX_PARTS = 2**14


class JsonError(ValueError):
    """The bytes are not a JSON object that is taken; the message says why."""


class TooManyValues(JsonError):  # noqa: N818 - reads as what it is where it is caught
    """The object may hold more values than allowed; nothing was parsed."""


def most_values(data: bytes) -> int:
    """How many values JSON holds at most, beside the outermost."""
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def parse_object(data: bytes, *, max_values: int = MAX_VALUES) -> dict[str, Any]:
    """Parses an object in UTF-8.

    Integers are exact; any other number is a float, perhaps an infinite one (`1e999`).

    Raises:
        TooManyValues: commas and opening brackets, texts' own among them, are more than allowed;
            or colons and opening brackets are more than `MAX_PARTS`.
        JsonError: it is no JSON, no object, nested too deeply, or names a field twice.
    """
    if most_values(data) > max_values:
        raise TooManyValues(f"more than {max_values} values; {max_values} are allowed")
    if data.count(b":") + data.count(b"[") + data.count(b"{") > MAX_PARTS:
        raise TooManyValues(
            f"more than {MAX_PARTS} members, lists and objects; {MAX_PARTS} are allowed"
        )
    try:
        value = jiter.from_json(
            data, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="none"
        )
    except ValueError as error:
        raise JsonError(str(error)[:200]) from error
    if not isinstance(value, dict):
        raise JsonError("not a JSON object")
    return value


def with_whole_numbers(value: Any) -> Any:
    """The value with 8 for each 8.0: to JSON Schema they are the same integer.

    Raises:
        JsonError: a number is too large for double precision.
    """
    if isinstance(value, dict):
        return {name: with_whole_numbers(item) for name, item in value.items()}
    if isinstance(value, list):
        # Most lists are long and flat, and are looked through at once.
        if _TO_LOOK_INTO.isdisjoint(map(type, value)):
            return value
        return [with_whole_numbers(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise JsonError("a number is too large")
        return int(value) if value.is_integer() and abs(value) < 2**63 else value
    return value


_TO_LOOK_INTO = frozenset((dict, float, list))
