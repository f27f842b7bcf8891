"""`craft-server plugins`: what other packages add to the server."""

from __future__ import annotations

import typer
from rich.markup import escape
from rich.table import Table

from craft_server.cli.options import AsJson, examples
from craft_server.cli.output import print_json, print_table
from craft_shared.plugins import listed


def plugins(as_json: AsJson = False) -> None:
    """List the output policies that other packages bring. Each is loaded to try it."""
    from craft_server.output_policies import GROUPS

    found = listed(GROUPS)
    if as_json:
        print_json({"plugins": found})
    elif found:
        table = Table()
        for name in found[0]:
            table.add_column(name, overflow="fold")
        for row in found:
            table.add_row(*map(escape, row.values()))
        print_table(table)
    else:
        typer.echo("No plug-ins are installed (docs/plugins.md).", err=True)


def register(app: typer.Typer, panel: str) -> None:
    """Adds the commands of this module."""
    app.command(
        epilog=examples("craft-server plugins", "craft-server plugins --json"),
        rich_help_panel=panel,
    )(plugins)
