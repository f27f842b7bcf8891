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
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

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


def terminal() -> Console | None:
    """What stdout is, where that is a terminal."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else None


@cache
def stderr() -> Console:
    """The console of messages and progress; one, so that a live view and messages get along."""
    from rich.console import Console

    return Console(stderr=True)


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
