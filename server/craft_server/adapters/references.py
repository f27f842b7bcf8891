"""How calls name an adapter: `[OWNER/]NAME[@VERSION|@ALIAS]`.

It knows the syntax; it does not know what exists.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from craft_shared.wire.adapters import LATEST

# An owner is any text that a database can hold, so that only the last slash divides.
_FORM = re.compile(
    r"((?P<owner>[^\x00]+)/)?(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,63})"
    r"(@((?P<version>[1-9][0-9]{0,8})|(?P<alias>[A-Za-z][A-Za-z0-9._-]{0,31})))?",
    re.ASCII,
)


class NoSuchAdapter(Exception):  # noqa: N818 - reads as what it is where it is caught
    """There is no adapter that the caller may use under this reference."""


@dataclass(frozen=True)
class Reference:
    """An adapter, and which version of it.

    Attributes:
        owner: whose; None means the caller's.
        name: of the adapter.
        version: exactly this one.
        alias: the version that has it; None for the newest, and where `version` says which.
    """

    owner: str | None
    name: str
    version: int | None
    alias: str | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Reads a reference.

        Raises:
            NoSuchAdapter: it is none.
        """
        parts = _FORM.fullmatch(text)
        if parts is None:
            raise NoSuchAdapter(text)
        version, alias = parts["version"], parts["alias"]
        return cls(
            parts["owner"],
            parts["name"],
            None if version is None else int(version),
            None if alias == LATEST else alias,
        )
