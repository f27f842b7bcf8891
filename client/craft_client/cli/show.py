"""What commands print: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from craft_client.cli.verbosity import Verbosity, verbosity
from craft_shared.amounts import UNITS

if TYPE_CHECKING:
    from craft_shared.units import Units

_UNBOUNDED = 10_000


@cache
def stderr() -> Console:
    """The console for progress and messages; one, so that a live view and messages get along."""
    return Console(stderr=True)


def animated() -> bool:
    """Whether stderr is a terminal on which something may be redrawn, not a file or a pipe."""
    console = stderr()
    return console.file.isatty() and not console.is_dumb_terminal


def say(message: str) -> None:
    """A message on stderr, unless the program is to be quiet; nothing in it is markup."""
    if verbosity() is not Verbosity.QUIET:
        stderr().print(Text(message), soft_wrap=True)


def complain(message: str) -> None:
    """An error on stderr, however quiet the program is; its first word stands out."""
    head, space, rest = message.partition(" ")
    stderr().print(Text.assemble((head, "bold red"), space, rest), soft_wrap=True)


def document(content: Mapping[str, Any]) -> None:
    """The one JSON document on stdout."""
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """A table on stdout; numbers stand right, nothing in it is markup."""
    body = [list(row) for row in rows]
    shown = Table(title=title or None, title_justify="left")
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float | Decimal) for row in body)
        shown.add_column(column, justify="right" if numeric and body else "left", overflow="fold")
    for row in body:
        shown.add_row(*(Text(_cell(value)) for value in row))
    # A table in a pipe or a file is as wide as it needs to be.
    console = Console() if Console().is_terminal else Console(width=_UNBOUNDED)
    console.print(shown)


def units_line(units: Units) -> str:
    """All five units in words."""
    return ", ".join(f"{units[unit]:,} {unit}" for unit in UNITS)


def size(count: int) -> str:
    """Bytes in the unit that fits, of 1,000 of the next smaller one."""
    return decimal(count)


def percent(share: float) -> str:
    """An accuracy in percent."""
    return f"{share:.1f} %"


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | Decimal) else str(value)
