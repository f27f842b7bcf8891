"""`craft-server usage`: the ledger's lines, to bill from."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from craft_server.cli.ledger import reading
from craft_server.cli.options import DatabaseUrl, DataDir, examples, moment_ms

app = typer.Typer(
    help="What was charged.",
    no_args_is_help=True,
    epilog=examples("craft-server usage export"),
)


@app.callback()
def _usage() -> None:
    """Makes `export` a command of its own, although it is the only one."""


@app.command(
    epilog=examples(
        "craft-server usage export --since 2026-11-01T00:00:00Z --until 2026-12-01T00:00:00Z",
        "craft-server usage export --key abcd1234 --format jsonl",
    )
)
def export(
    form: Annotated[
        Literal["csv", "jsonl"],
        typer.Option("--format", help="Of the lines.", rich_help_panel="Output"),
    ] = "csv",
    key: Annotated[str | None, typer.Option(help="Only of the key with this prefix.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Calls made at this time (RFC 3339) or later.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="Calls made before this time (RFC 3339).")
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Write all lines of the ledger to stdout, row by row; refunded ones charge nothing."""
    from craft_server.ledger import exports

    selection = exports.Selection(key, moment_ms(since, "--since"), moment_ms(until, "--until"))
    with reading(data_dir, database_url) as connection:
        lines = exports.lines(connection, selection)
        sys.stdout.write(exports.header(form))
        for line in lines:
            sys.stdout.write(exports.text(line, form))
