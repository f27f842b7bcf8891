"""The pages of the documentation, README among them, and their fenced blocks."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# A client that a page generates; tests/e2e/test_generated_client.py uses it.
GENERATED = "craftbox_client"


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """The fenced blocks of these languages; all where none is named."""
    found = []
    for page in PAGES:
        language, begun, lines = None, 0, list[str]()
        for number, line in enumerate(page.read_text().splitlines(), start=1):
            if not line.startswith("```"):
                lines.append(line)
            elif language is None:
                language, begun, lines = line[3:].strip() or "sh", number, []
            else:
                found.append(Block(page, begun, language, "\n".join(lines) + "\n"))
                language = None
        assert language is None, f"{page.name}: the block at line {begun} has no end"
    return [block for block in found if not languages or block.language in languages]
