"""`craft-server config`: the settings a server would run with, and where each comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from craft_server.cli.options import AsJson, examples
from craft_server.cli.output import print_json, print_table
from craft_server.cli.serving_options import with_serving_options

if TYPE_CHECKING:
    from craft_server.settings import Settings

app = typer.Typer(
    help="What the server is configured with.",
    no_args_is_help=True,
    epilog=examples("craft-server config show"),
)


@app.callback()
def _config() -> None:
    """Makes `show` a command of its own, although it is the only one."""


@app.command(
    epilog=examples(
        "craft-server config show",
        "craft-server config show --model RN50 --json",
    )
)
@with_serving_options
def show(settings: Settings, options: dict[str, Any], json_output: AsJson = False) -> None:
    """Show each setting and where it comes from; passwords are masked.

    An option comes before the environment, that before files of secrets, those before the file of
    settings: craft-server.toml in the present folder, or the one that CRAFT_CONFIG names.
    """
    from craft_server.settings import settings_file, shown, sources

    given = {name: value for name, value in options.items() if value is not None}
    places = sources(given)
    values = shown(settings)
    if json_output:
        print_json(
            {
                "settings": {
                    name: {"value": value, "source": places.get(name, "default")}
                    for name, value in values.items()
                },
                "file": str(settings_file()),
            }
        )
        return
    print_table(
        ["setting", "value", "from"],
        [[name, value, places.get(name, "default")] for name, value in values.items()],
    )
