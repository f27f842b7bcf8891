"""Stores: places beside this machine's folders where copies of runs are kept.

A run itself is always a local directory, since a paid answer must be on disk before it is used. A
store gets a copy of it and gives it back, finished or not, so that a run can go on elsewhere.
Stores are plug-ins, named by the scheme of a place: `SCHEME:WHERE`. This module knows places and
runs; it does not know where a store keeps anything.
"""

from __future__ import annotations

import re
from pathlib import Path

from craft_client import plugins
from craft_client.exceptions import DataError
from craft_client.runs import Run
from craft_shared.plugins import Plugin

_PLACE = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+):(?P<where>.+)", re.DOTALL)


def put(folder: Path, place: str) -> Run:
    """Copies a run into a store; what the store had at that place, it replaces.

    Raises:
        JournalError: there is no run in the directory, or it is damaged.
        DataError: the place is not like SCHEME:WHERE.
        UnusablePlugin: the store is not installed, or failed.
    """
    run = Run.load(folder)
    store, where = _store(place)
    with plugins.running(store):
        store.load().put(folder, where)
    return run


def get(place: str, folder: Path) -> Run:
    """Copies a run out of a store, into a new or empty directory.

    Raises:
        JournalError: what came is no run, or is damaged.
        DataError: the directory holds something, or the place is not like SCHEME:WHERE.
        UnusablePlugin: the store is not installed, or failed.
    """
    store, where = _store(place)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise DataError(
            f"'{folder}' already holds a run or other files.", remedy="Name another run directory."
        )
    with plugins.running(store):
        store.load().get(where, folder)
    return Run.load(folder)


def _store(place: str) -> tuple[Plugin, str]:
    found = _PLACE.fullmatch(place)
    if found is None:
        raise DataError(
            f"'{place}' names no place in a store.",
            remedy="Write SCHEME:WHERE; 'craft plugins' lists the stores by their schemes.",
        )
    return plugins.find(plugins.STORES, found["scheme"]), found["where"]
