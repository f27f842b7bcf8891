"""`craft config` and `craft plugins`: what the commands use."""

from __future__ import annotations

import typer

from craft_client.cli.options import AsJson, Key, Url, examples
from craft_client.cli.root import app
from craft_client.cli.show import document, say, table

_config = typer.Typer(
    no_args_is_help=True,
    help="What the commands are configured with.",
    epilog=examples("craft config show"),
)
app.add_typer(_config, name="config", rich_help_panel="Settings")


@_config.callback()
def config() -> None:
    """Makes `show` a command of its own, although it is the only one."""


@_config.command(epilog=examples("craft config show", "craft config show --json"))
def show(url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Show each setting and where it comes from; the API key is masked.

    An option comes before the environment, that before your own file.
    Nothing is taken from ./craft.toml.
    """
    from craft_client.cli import configuration

    settings = configuration.load(url, key)
    files = {
        "project": str(configuration.PROJECT_FILE.resolve()),
        "user": str(configuration.user_file()),
    }
    if as_json:
        document(
            {
                "settings": {
                    name: {"value": found.shown, "source": found.source}
                    for name, found in settings.items()
                },
                "files": files,
            }
        )
        return
    table(
        ["setting", "value", "from"],
        [[n, settings[n].shown, settings[n].source] for n in configuration.NAMES if n in settings],
    )
    say(f"Your own file, where it exists: '{files['user']}'.")
    for warning in configuration.warnings(settings):
        say(warning)


@app.command(epilog=examples("craft plugins", "craft plugins --json"))
def plugins(as_json: AsJson = False) -> None:
    """List the recipes that other packages add. Each is loaded to try it."""
    from craft_client.plugins import RECIPES
    from craft_shared.plugins import listed

    found = listed(RECIPES)
    if as_json:
        document({"plugins": found})
    elif found:
        table(list(found[0]), [list(row.values()) for row in found])
    else:
        say("No plug-ins are installed (docs/plugins.md).")
