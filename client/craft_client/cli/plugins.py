"""`craft plugins`, and `craft store`, which keeps copies of runs by means of some of them."""

from __future__ import annotations

from typing import Annotated

import typer

from craft_client.cli.options import AsJson, RunFolder, examples
from craft_client.cli.show import document, say, table

Place = Annotated[
    str,
    typer.Argument(metavar="SCHEME:WHERE", show_default=False, help="The store, and where in it."),
]


def plugins(as_json: AsJson = False) -> None:
    """List what other packages add: recipes and stores. Each is loaded to try it."""
    from craft_client.plugins import GROUPS
    from craft_shared.plugins import listed

    found = listed(GROUPS)
    if as_json:
        document({"plugins": found})
    elif found:
        table(list(found[0]), [list(row.values()) for row in found])
    else:
        say("No plug-ins are installed (docs/plugins.md).")


def put(run: RunFolder, place: Place, as_json: AsJson = False) -> None:
    """Copy a run, finished or not, into a store."""
    from craft_client import stores

    found = stores.put(run, place)
    if as_json:
        document({"run": str(run), "place": place, "state": found.state})
    else:
        say(f"Copied the {found.state} run '{run}' to {place}.")


def get(place: Place, run: RunFolder, as_json: AsJson = False) -> None:
    """Copy a run out of a store, into a new directory; an unfinished one may go on there."""
    from craft_client import stores

    found = stores.get(place, run)
    if as_json:
        document({"run": str(run), "place": place, "state": found.state})
        return
    say(f"Copied the {found.state} run from {place} to '{run}'.")
    if found.summary is None:
        say(f"Go on with it: craft tune --resume {run}")


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command(epilog=examples("craft plugins", "craft plugins --json"))(plugins)
    store = typer.Typer(
        no_args_is_help=True,
        help="Keep copies of runs in a plug-in's store.",
        epilog=examples("craft store put runs/flowers zip:/backup/flowers.zip"),
    )
    store.command(epilog=examples("craft store put runs/flowers zip:/backup/flowers.zip"))(put)
    store.command(epilog=examples("craft store get zip:/backup/flowers.zip runs/flowers"))(get)
    app.add_typer(store, name="store")
