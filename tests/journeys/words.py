"""What the documentation tells people to type, taken from its fenced blocks word by word.

It knows Markdown's fences and the documents' placeholders; it does not know what a command does.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def block(document: str, beginning: str) -> str:
    """The one fenced block of a document that has a line with this beginning.

    Raises:
        LookupError: no block has, or several have.
    """
    text = (ROOT / document).read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    found = [each for each in blocks if re.search(f"^{re.escape(beginning)}", each, re.MULTILINE)]
    if len(found) != 1:
        raise LookupError(f"{len(found)} blocks of {document} have the line {beginning!r}")
    return found[0]


def line(document: str, beginning: str, **placeholders: str | Path) -> str:
    """The line of such a block, as it stands there but for placeholders such as DIR."""
    lines = [each for each in block(document, beginning).splitlines() if each.startswith(beginning)]
    if len(lines) != 1:
        raise LookupError(f"{len(lines)} lines of {document} begin with {beginning!r}")
    words = lines[0]
    for placeholder, value in placeholders.items():
        if placeholder not in words:
            raise LookupError(f"{words!r} has no placeholder {placeholder}")
        words = re.sub(rf"(?<![A-Za-z]){placeholder}(?![A-Za-z])", str(value), words)
    return words
