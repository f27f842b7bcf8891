"""Published adapters: names, versions, aliases, owners, grants, and what serving them needs.

A name belongs to its owner; each publication under it is a new, immutable version, and aliases move
between versions. Every function is one transaction of its caller, or a part of one. This package
does not know how adapters are found, how texts are encoded, nor what anything costs.
"""

from craft_server.adapters.references import NoSuchAdapter, Reference
from craft_server.adapters.registry import (
    Publication,
    add,
    find,
    find_digest,
    list_cards,
    resolve,
    restore,
    retire,
    versions,
)
from craft_server.adapters.servable import ServableAdapter, read_content, servable
from craft_server.adapters.sharing import NoSuchVersion, change, move_aliases, settings
from craft_server.adapters.usage import count_use, usage

__all__ = [
    "NoSuchAdapter",
    "NoSuchVersion",
    "Publication",
    "Reference",
    "ServableAdapter",
    "add",
    "change",
    "count_use",
    "find",
    "find_digest",
    "list_cards",
    "move_aliases",
    "read_content",
    "resolve",
    "restore",
    "retire",
    "servable",
    "settings",
    "usage",
    "versions",
]
