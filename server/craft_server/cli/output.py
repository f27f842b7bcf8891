"""What commands print: documents for scripts, tables for people, failures in one line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from craft_shared.wire import Budget


def fail(message: str) -> NoReturn:
    """Ends the command with one line on stderr and exit code 1."""
    typer.echo(f"Error: {' '.join(message.split())}", err=True)
    raise typer.Exit(1)


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
        typer.echo("No budget: nothing is bounded.")
