"""Adapters' names that the commands have seen, so that a shell can complete them without a call.

It knows a small file beside the user's configuration, one list of names a server. A file that
cannot be read or written is no file: nobody's command fails for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import typer

from craft_shared.files import make_private

_MOST = 1000  # names of a server


def remember(url: str, names: Iterable[str], *, all_of_them: bool = False) -> None:
    """Adds names of adapters on a server, or puts them in the place of those known before."""
    known = _read()
    before = [] if all_of_them else known.get(url, [])
    known[url] = sorted({*before, *names})[:_MOST]
    with suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        make_private(_file())
        _file().write_text(json.dumps(known, indent=1))


def known_names() -> list[str]:
    """The names on all servers, without duplicates."""
    return sorted({name for names in _read().values() for name in names})


def _read() -> dict[str, list[str]]:
    try:
        known = json.loads(_file().read_bytes())
        return {str(url): [str(name) for name in names] for url, names in known.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _file() -> Path:
    return Path(typer.get_app_dir("craft")) / "known-adapters.json"
