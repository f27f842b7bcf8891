"""The root of the commands: the program's own options, and what it says without a command."""

from __future__ import annotations

from typing import Annotated

import typer

from craft_server.cli.output import print_lines, speak
from craft_server.cli.welcome import TEXT

app = typer.Typer(
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
            "--quiet", "-q", help="Print results and errors alone: of a new key, the key."
        ),
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """The craftbox server: a metered prediction API before a vision-language model."""
    speak(quiet=quiet)
    if context.invoked_subcommand is None:
        print_lines(TEXT.rstrip().split("\n"))
