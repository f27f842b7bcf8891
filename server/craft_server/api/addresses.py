"""Names and numbers in addresses, where they are more than a word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import Path
from pydantic import BeforeValidator
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

# What follows an adapter's name in the address of a call, and so cannot be one: an owner's name
# may come before it, slashes and all.
ADAPTER_CALLS = ("predictions", "restore", "settings", "usage", "versions")


def _digits(value: object) -> object:
    if isinstance(value, str) and not (value.isascii() and value.isdecimal()):
        raise ValueError("this is no whole number in decimal digits")
    return value


# Pydantic alone would take " 1", "+1", "1_0", "1.0" and digits of other scripts. It comes after a
# type's bounds, or pydantic leaves them out of the description.
DIGITS = BeforeValidator(_digits)

_METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")


class _AnyText(PathConvertor):
    """Any text, line breaks among it: whether it names something is the call's to say."""

    regex = r"[\s\S]*"


class _AdapterName(PathConvertor):
    """Any text that is not the address of another of an adapter's calls."""

    regex = rf"(?:(?!/(?:{'|'.join(ADAPTER_CALLS)})\Z)[\s\S])*"


register_url_convertor("text", _AnyText())
register_url_convertor("adapter", _AdapterName())
# In the address of an adapter, and in that of one of its calls.
ADAPTER = "/{name:adapter}"
ADAPTER_OF_CALL = "/{name:text}"
AnyName = Annotated[
    str,
    Path(description="`[OWNER/]NAME[@VERSION|@ALIAS]`; the newest version.", examples=["digits"]),
]


def allowed_methods(routes: Sequence[BaseRoute], scope: Scope) -> list[str]:
    """The methods of the resource that a request is for, in alphabetical order (RFC 9110, `Allow`).

    Starlette names those of the first route alone, and a route has one.
    """
    return [
        method
        for method in _METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    ]
