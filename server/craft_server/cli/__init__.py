"""`craft-server`: serve, record, replay, plan, and manage the ledger on the server's own database.

Commands on the ledger, and replay, import neither the model nor torch; whatever is slow to import
is imported by the command that needs it. Every expected failure is one line on stderr and an exit
code of `craft_server.cli.output`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from craft_server.cli import apply, budgets, keys, ledger, plan, serve, setup
from craft_server.cli.output import print_lines, speak
from craft_shared.commands import Typer, Wide
from craft_shared.terminal_tables import wide_tables

WELCOME = """\
craft-server hosts a vision-language model behind a prediction API that counts every query.

From nothing to a first result in three commands:

  craft-server keys create --owner me --queries 8000    makes a key, and shows it once
  craft-server serve --model pocket                     http://127.0.0.1:8000
  CRAFT_API_KEY=craft_... craft zero-shot --data DIR    in another terminal, with your pictures

All commands: craft-server --help. What is set where: craft-server config show.
"""
app = Typer(
    help="The craftbox server: a metered prediction API before a vision-language model.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    epilog="\n".join(
        (
            "Examples:",
            "  craft-server keys create --owner me --queries 8000",
            "  craft-server serve --model pocket",
            "",
            "Exit codes: 0 done or told to stop, 1 failed, 2 wrong usage, 130 interrupted. "
            "See docs/command-line.md.",
        )
    ),
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print_lines([f"craft-server {version('craftbox')}"])
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", help="Print only results and errors; of a new key, only the key."
        ),
    ] = False,
    wide: Wide = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """The craftbox server: a metered prediction API before a vision-language model."""
    speak(quiet=quiet)
    context.with_resource(wide_tables(wide))
    if context.invoked_subcommand is None:
        print_lines(WELCOME.rstrip().split("\n"))


_LEDGER = "Keys and the ledger"
_SETUP = "Settings and deployment"

app.add_typer(serve.app)
app.add_typer(plan.app)
app.add_typer(apply.app)
app.add_typer(setup.deploy, name="deploy", rich_help_panel=_SETUP)
app.add_typer(setup.config, name="config", rich_help_panel=_SETUP)
app.add_typer(keys.app, name="keys", rich_help_panel=_LEDGER)
app.add_typer(budgets.app, name="budgets", rich_help_panel=_LEDGER)
app.add_typer(budgets.teams, name="teams", rich_help_panel=_LEDGER)
app.add_typer(ledger.prices, name="prices", rich_help_panel=_LEDGER)
app.add_typer(ledger.usage, name="usage", rich_help_panel=_LEDGER)
app.add_typer(ledger.backups, name="ledger", rich_help_panel=_LEDGER)
