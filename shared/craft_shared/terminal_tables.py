"""Tables on stdout, of both command lines: they fit a terminal, and are whole elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from itertools import zip_longest

from rich.cells import cell_len

from craft_shared.printing import print_lines, printable, terminal, text_of

Cell = list[str]  # its lines
Row = Sequence[Cell]

_GAP = 2
# An amount with its spread and its unit: it stays together, and stands right.
_NUMBER = re.compile(r"[+-]?\d[\d,]*(\.\d+)?( ± [\d.]+)?( (%|s|min|h|[kMGT]?B))?")
_DIGIT = re.compile(r"\d")

_wide = False


@contextmanager
def wide_tables(wanted: bool) -> Iterator[None]:
    """Whether tables are whole on a terminal too, within the block."""
    global _wide
    before, _wide = _wide, wanted
    try:
        yield
    finally:
        _wide = before


def rows_are_lines() -> bool:
    """Whether each row is printed as one line: then it says by itself what it is about."""
    return _wide or terminal() is None


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, spare: Sequence[str] = ()
) -> None:
    """Prints a table in which numbers stand right; a list is a cell of several lines.

    In a pipe, in a file and where tables are to be wide each row is a line. A narrower terminal
    does without `spare` columns, of which the first goes first; where it still has no room, a
    cell's words stand below each other. No word and no number is ever cut.
    """
    table = [[_lines_of(cell) for cell in row] for row in (columns, *rows)]
    console = terminal()
    if console is None or rows_are_lines():
        whole = [[[", ".join(cell)] for cell in row] for row in table]
        widths = [max(map(_width, column)) for column in zip(*whole, strict=True)]
        print_lines(line for row in _laid_out(whole, widths) for line in row)
        return
    left_out = _left_out(table, console.width, spare)
    kept = [place for place, name in enumerate(columns) if name not in left_out]
    shown = [[row[place] for place in kept] for row in table]
    head, *body = _laid_out(shown, _narrowed(shown, console.width))
    for style, lines in [("bold", head), *(("", row) for row in body)]:
        for line in lines:
            console.print(text_of(line, style), soft_wrap=True)
    if left_out:
        note = f"Left out: {', '.join(left_out)}. --wide shows all."
        console.print(text_of(note, "dim"), soft_wrap=True)


def _left_out(table: Sequence[Row], width: int, spare: Sequence[str]) -> list[str]:
    """The spare columns for which there is no room."""
    widths = {name: most for [name], most in zip(table[0], _comfortable(table), strict=True)}
    left_out: list[str] = []
    for name in spare:
        if sum(widths.values()) + _GAP * (len(widths) - 1) <= width:
            break
        if widths.pop(name, None) is not None:
            left_out.append(name)
    return left_out


def _comfortable(table: Sequence[Row]) -> list[int]:
    """Widths in which no row has words below each other; the head may."""
    return [
        max([_longest_word(head), *map(_width, cells)]) for head, *cells in zip(*table, strict=True)
    ]


def _narrowed(table: Sequence[Row], width: int) -> list[int]:
    """Whole widths; or else the widest narrowed, heads before rows, down to their longest words.

    A word of more than half the terminal sticks out, so that the others keep to it.
    """
    columns = list(zip(*table, strict=True))
    widths = [max(map(_width, column)) for column in columns]
    words = [max(map(_longest_word, column)) for column in columns]
    excess = sum(widths) + _GAP * (len(widths) - 1) - width
    for least in (_comfortable(table), [min(word, width // 2) for word in words]):
        while excess > 0:
            wider = [place for place, most in enumerate(widths) if most > least[place]]
            if not wider:
                break
            widths[max(wider, key=widths.__getitem__)] -= 1
            excess -= 1
    return widths


def _laid_out(table: Sequence[Row], widths: Sequence[int]) -> Iterator[list[str]]:
    """The lines of each row."""
    right = [_is_of_numbers(cells) for _, *cells in zip(*table, strict=True)]
    for row in table:
        cells = [_wrapped(cell, most) for cell, most in zip(row, widths, strict=True)]
        yield [
            (" " * _GAP).join(map(_aligned, parts, widths, right)).rstrip()
            for parts in zip_longest(*cells, fillvalue="")
        ]


def _wrapped(cell: Cell, width: int) -> Cell:
    wrapped = []
    for line in cell:
        first, *more = _words(line)
        wrapped.append(first)
        for word in more:
            longer = f"{wrapped[-1]} {word}"
            if cell_len(longer) <= width:
                wrapped[-1] = longer
            else:
                wrapped.append(word)
    return wrapped


def _words(line: str) -> list[str]:
    return [line] if _NUMBER.fullmatch(line) else line.split(" ")


def _longest_word(cell: Cell) -> int:
    return max(cell_len(word) for line in cell for word in _words(line))


def _width(cell: Cell) -> int:
    return max(map(cell_len, cell))


def _aligned(text: str, width: int, right: bool) -> str:
    padding = " " * (width - cell_len(text))
    return padding + text if right else text + padding


def _is_of_numbers(cells: Sequence[Cell]) -> bool:
    """Whether there are numbers, and nothing else that has digits."""
    lines = [line for cell in cells for line in cell if _DIGIT.search(line)]
    return bool(lines) and all(map(_NUMBER.fullmatch, lines))


def _lines_of(value: object) -> Cell:
    if isinstance(value, list | tuple):
        return [printable(str(line)) for line in value] or [""]
    if value is None:
        return [""]
    return [f"{value:,}" if isinstance(value, int | Decimal) else printable(str(value))]
