"""`craft config`: which settings the commands use, and where each comes from."""

from __future__ import annotations

import typer

from craft_client.cli.options import AsJson, Key, Url, examples
from craft_client.cli.show import document, say, table


def show(url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Show each setting and where it comes from; the API key is masked.

    An option comes before the environment, that before ./craft.toml, that before your own file.
    Neither an address nor a key is taken from ./craft.toml.
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
                    name: {
                        "value": found.value if isinstance(found.value, bool) else found.shown,
                        "source": found.source,
                    }
                    for name, found in settings.items()
                },
                "files": files,
            }
        )
        return
    table(
        ["setting", "value", "from"],
        [
            [name, settings[name].shown, settings[name].source]
            for name in configuration.KINDS
            if name in settings
        ],
    )
    say(f"Files, where they exist: '{files['project']}', '{files['user']}'.")
    for warning in configuration.warnings(settings):
        say(warning)


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    config = typer.Typer(
        no_args_is_help=True,
        help="What the commands are configured with.",
        epilog=examples("craft config show"),
    )

    @config.callback()
    def _config() -> None:
        """Makes `show` a command of its own, although it is the only one."""

    config.command(epilog=examples("craft config show", "craft config show --json"))(show)
    app.add_typer(config, name="config", rich_help_panel="Settings")
