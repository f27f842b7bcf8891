"""What a shell completes: run directories, recipes and adapters' names, from this machine alone.

Nothing here asks a server, and nothing slow is imported: it runs at every press of a key. Shells
evaluate what they complete, so that only plain names are given to them: others, from a server or in
a folder that somebody gave, are to be typed.

Adapters' names are those that commands have seen. They are in a file beside the user's
configuration, a list for each server. No command fails where that cannot be read or written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import typer

from craft_client.recipes import OWN
from craft_client.run_files import RUN_FILE
from craft_shared.files import make_private

_MOST = 1000  # names of a server
_PLAIN = re.compile(r"[\w./@+=,~-][\w ./@+=,~-]*")


def run_folders(incomplete: str) -> list[str]:
    """Run directories at what is written so far, and up to two folders below it."""
    written = Path(incomplete)
    base = written if incomplete.endswith("/") else written.parent
    depths = (f"*/{RUN_FILE}", f"*/*/{RUN_FILE}")
    found = {str(file.parent) for depth in depths for file in base.glob(depth)}
    return sorted(one for one in found if one.startswith(incomplete) and _PLAIN.fullmatch(one))


def recipes(incomplete: str) -> list[str]:
    """Craftbox's own recipes; those of plug-ins are not looked for."""
    return [name for name in OWN if name.startswith(incomplete)]


def adapter_names(incomplete: str) -> list[str]:
    """Adapters that `craft adapters` or `craft publish` has shown."""
    return [
        name for name in known_names() if name.startswith(incomplete) and _PLAIN.fullmatch(name)
    ]


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
