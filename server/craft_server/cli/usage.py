"""`craft-server usage`: the ledger's lines, to bill from."""

from __future__ import annotations

import sys
from typing import Annotated, get_args

import typer

from craft_server.cli.ledger import reading
from craft_server.cli.options import DatabaseUrl, DataDir, moment_ms
from craft_server.cli.output import fail

app = typer.Typer(help="What was charged.", no_args_is_help=True)


@app.callback()
def _usage() -> None:
    """Makes `export` a command of its own, although it is the only one."""


@app.command()
def export(
    form: Annotated[str, typer.Option("--format", help="csv or jsonl.")] = "csv",
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

    checked_form = next((known for known in get_args(exports.Format) if known == form), None)
    if checked_form is None:
        fail("--format: write csv or jsonl")
    selection = exports.Selection(key, moment_ms(since, "--since"), moment_ms(until, "--until"))
    with reading(data_dir, database_url) as connection:
        lines = exports.lines(connection, selection)
        sys.stdout.write(exports.header(checked_form))
        for line in lines:
            sys.stdout.write(exports.text(line, checked_form))
