"""What a shell completes: run directories, recipes and adapters' names, from this machine alone.

Nothing here asks a server, and nothing slow is imported: it runs at every press of a key. Shells
evaluate what they complete, so that only names of plain words are told to them: others, from a
server or in a folder that somebody gave, are to be typed.
"""

from __future__ import annotations

import re
from pathlib import Path

from craft_client.cli.known_adapters import known_names
from craft_client.recipes import OWN
from craft_client.run_files import RUN_FILE

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
    """Adapters that `craft adapters` or `craft publish` has told of."""
    return [
        name for name in known_names() if name.startswith(incomplete) and _PLAIN.fullmatch(name)
    ]
