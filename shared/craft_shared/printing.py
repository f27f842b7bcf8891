"""What command lines print: the one way for text that others wrote to reach a terminal.

Names, problems, cards and files may hold what a terminal obeys: colours, titles, the clipboard,
lines that were never said, words that run backwards. Here each such character becomes a code that
is read, and nothing is markup.

Sources: Unicode Standard, section 4.5; Unicode Standard Annex 44, Default_Ignorable_Code_Point.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_UNBOUNDED = 10_000  # columns of a terminal
# Letters and marks of which nothing is seen.
INVISIBLE = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
    + "".join(map(chr, [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]))
)
_NOT_ASCII = re.compile(r"[^\x20-\x7e\n]+")


def printable(text: str) -> str:
    """One line in which each character is seen; a code stands for any other."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(sign) for sign in text)


def json_text(content: Any, *, indent: int | None = None) -> str:
    """A JSON document in which any character that is not seen is escaped: the same document."""
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    return _NOT_ASCII.sub(lambda found: "".join(map(_escaped, found[0])), text)


def text_of(words: object, style: str = "") -> Text:
    """Words for rich to lay out."""
    from rich.text import Text

    return Text(printable(str(words)), style)


def percent(share: float | None) -> str:
    """An accuracy in percent; None is one that could not be measured."""
    return "not measurable" if share is None else f"{share:.1f} %"


def print_lines(lines: Iterable[str], *, err: bool = False) -> None:
    """Prints each as one line."""
    stream = sys.stderr if err else sys.stdout
    stream.write("".join(f"{printable(line)}\n" for line in lines))
    stream.flush()


def print_json(content: Any, *, indent: int | None = None) -> None:
    """Prints one JSON document on stdout."""
    sys.stdout.write(json_text(content, indent=indent) + "\n")


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = ""
) -> None:
    """Prints a table on stdout, in which numbers stand right."""
    from rich.console import Console

    # A table in a pipe or a file is as wide as it needs to be.
    console = Console() if Console().is_terminal else Console(width=_UNBOUNDED)
    console.print(_table(columns, [list(row) for row in rows], title))


@cache
def stderr() -> Console:
    """The console of messages and progress; one, so that a live view and messages get along."""
    from rich.console import Console

    return Console(stderr=True)


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str) -> Table:
    from rich.table import Table

    shown = Table(title=text_of(title) if title else None, title_justify="left")
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float | Decimal) for row in rows)
        shown.add_column(
            text_of(column), justify="right" if numeric and rows else "left", overflow="fold"
        )
    for row in rows:
        shown.add_row(*(text_of(_cell(value)) for value in row))
    return shown


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int | Decimal) else str(value)


def _shown(sign: str) -> str:
    if sign.isprintable() and sign not in INVISIBLE:
        return sign
    # NO-BREAK SPACE and its like.
    return (
        " " if sign.isspace() and ord(sign) > 0x9F and sign not in "\u2028\u2029" else _code(sign)
    )


def _code(sign: str) -> str:
    return sign.encode("unicode_escape", "surrogatepass").decode()


def _escaped(sign: str) -> str:
    return sign if _shown(sign) == sign else json.dumps(sign)[1:-1]
