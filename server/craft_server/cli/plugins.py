"""`craft-server plugins`: what other packages add to the server."""

from __future__ import annotations

import typer

from craft_server.cli.options import AsJson, examples
from craft_server.cli.output import print_json, print_lines, print_table
from craft_shared.plugins import listed


def plugins(as_json: AsJson = False) -> None:
    """List the output policies that other packages bring. Each is loaded to try it."""
    from craft_server.output_policies import GROUPS

    found = listed(GROUPS)
    if as_json:
        print_json({"plugins": found})
    elif found:
        print_table(list(found[0]), [list(row.values()) for row in found])
    else:
        print_lines(["No plug-ins are installed (docs/plugins.md)."], err=True)


def register(app: typer.Typer, panel: str) -> None:
    """Adds the commands of this module."""
    app.command(
        epilog=examples("craft-server plugins", "craft-server plugins --json"),
        rich_help_panel=panel,
    )(plugins)
