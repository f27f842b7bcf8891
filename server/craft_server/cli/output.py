"""What commands print: documents for scripts, tables for people, failures in one line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from craft_server.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from rich.table import Table

    from craft_shared.wire import Budget


_quiet = False


def speak(*, quiet: bool) -> None:
    """Sets whether notes are printed."""
    global _quiet
    _quiet = quiet


def note(message: str) -> None:
    """Prints what is no result, unless the program is to be quiet."""
    if not _quiet:
        typer.echo(message)


def warn(message: str) -> None:
    """Prints a warning on stderr, unless the program is to be quiet."""
    if not _quiet:
        typer.echo(f"Warning: {message}", err=True)


def fail(message: str, code: ExitCode = ExitCode.FAILED) -> NoReturn:
    """Ends the command with one line on stderr."""
    typer.echo(f"Error: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)


def misuse(message: str) -> NoReturn:
    """Ends the command with one line on stderr that tells what is wrong with how it was called."""
    fail(message, ExitCode.USAGE)


def print_json(document: Any) -> None:
    """Prints one JSON document."""
    typer.echo(json.dumps(document))


def print_table(table: Table) -> None:
    """Prints a table as wide as the terminal."""
    from rich.console import Console

    Console().print(table)


def print_budgets(budgets: list[Budget], json_output: bool) -> None:
    """Prints budgets as they stand."""
    from rich.table import Table

    if json_output:
        print_json([budget.model_dump() for budget in budgets])
        return
    table = Table("of", "unit", "window", "limit", "spent", "reserved", "remaining", "resets at")
    for budget in budgets:
        table.add_row(
            budget.of,
            budget.unit,
            budget.window,
            *(str(n) for n in (budget.limit, budget.spent, budget.reserved, budget.remaining)),
            budget.resets_at or "never",
        )
    print_table(table)
    if not budgets:
        note("No budget: nothing is bounded.")
