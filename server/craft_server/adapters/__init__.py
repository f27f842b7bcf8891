"""Published adapters: names, versions, aliases, owners, grants, and what serving them needs.

A name belongs to its owner; each publication under it is a new, immutable version, and aliases move
between versions. Every function is one transaction of its caller, or a part of one.
"""

from craft_server.adapters.registry import (
    Publication,
    ServableAdapter,
    add,
    find,
    find_digest,
    list_cards,
    read_content,
    resolve,
    restore,
    retire,
    servable,
    versions,
)
from craft_server.adapters.sharing import (
    NoSuchVersion,
    change,
    count_use,
    move_aliases,
    settings,
    usage,
)
from craft_server.adapters.tables import NoSuchAdapter, Reference

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
