"""Text that people wrote, whatever their editor made of it: read by one function everywhere.

A byte order mark is skipped, Windows' line ends count as one, and UTF-16 is read where its mark
says so, as Windows' tools write it. Lines end where editors end them: characters such as U+2028,
a vertical tab or a file separator, at which `str.splitlines` cuts, are part of a line.

Rows of CSV are written here too, so that no spreadsheet runs what is in them: a text that it would
take for a formula is quoted as OWASP has it, by an apostrophe before it, and read without. Numbers
stay numbers, negative ones too.

Source: OWASP, "CSV Injection".
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path

from craft_shared.names import FORMULA_SIGNS

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    # Before UTF-16's, which one of them begins with.
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_LINE_END = re.compile(r"\r\n|\r")
_QUOTE = "'"
# With white space before the sign as well, which some programs trim.
_FORMULA = re.compile(rf"[\t\r\n]|\s*[{re.escape(FORMULA_SIGNS)}]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class NotTextError(ValueError):
    """A file is no text in UTF-8; the words say what it is, without the file's name."""


def read_text(path: Path) -> str:
    """A text file with one line feed at each line's end, and no byte order mark.

    Raises:
        OSError: it cannot be read.
        NotTextError: it is not UTF-8, nor marked as UTF-16 or UTF-32.
    """
    return text_of(path.read_bytes())


def text_of(data: bytes) -> str:
    """What `read_text` makes of a file's bytes.

    Raises:
        NotTextError: see there.
    """
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise NotTextError(f"it is not UTF-8 (byte {error.start + 1}): save it as UTF-8") from error
    if "\0" in text:
        raise NotTextError("it holds zero bytes, as UTF-16 without a mark does: save it as UTF-8")
    return _LINE_END.sub("\n", text)


def rows_of(data: bytes) -> list[list[str]]:
    """The rows of a CSV file, cut where csv cuts them; a byte order mark is skipped.

    Names of files need not be UTF-8: what is not, is read as Python's file names have it.

    Raises:
        NotTextError: it is no CSV.
    """
    text = data.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape")
    try:
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise NotTextError(f"it is no CSV: {error}") from error
    return [[cell[1:] if _is_quoted(cell) else cell for cell in row] for row in rows]


def line_of(cells: Iterable[object]) -> str:
    """A row as a CSV file has it, which `rows_of` reads as it was; ends in one line feed."""
    row = io.StringIO(newline="")
    # Both characters of the line's end are then quoted within cells.
    csv.writer(row, lineterminator="\r\n").writerow(map(_cell, cells))
    return row.getvalue().removesuffix("\r\n") + "\n"


def lines_of(text: str) -> list[tuple[int, str]]:
    """A text's lines with their numbers, from 1, stripped, without those that are empty."""
    numbered = ((number, line.strip()) for number, line in enumerate(text.split("\n"), start=1))
    return [(number, line) for number, line in numbered if line]


def _cell(value: object) -> object:
    if value is None or isinstance(value, int | float):
        return value
    text = str(value)
    # What looks quoted already is quoted once more, so that it is read as it was.
    return _QUOTE + text if _is_formula(text.lstrip(_QUOTE)) else text


def _is_quoted(cell: str) -> bool:
    return cell.startswith(_QUOTE) and _is_formula(cell.lstrip(_QUOTE))


def _is_formula(text: str) -> bool:
    return _FORMULA.match(text) is not None and _NUMBER.fullmatch(text) is None
