"""The root of the commands: the program's own options, and how it ends.

Exit codes: 0, 1 for an error that is told in one message, 2 for wrong usage, 130 for Ctrl-C.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from craft_client.cli.show import say
from craft_client.exceptions import CraftError
from craft_shared.tracing import TracingUnavailable, tracing


class _Commands(TyperGroup):
    """Turns the client's errors into one message and an exit code, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CraftError as error:
            say(f"Error: {error}", style="bold red")
            raise typer.Exit(1) from error
        except BrokenPipeError:
            raise  # The reader of stdout has enough; typer ends the program quietly.
        except OSError as error:
            where = f" '{error.filename}'" if error.filename else ""
            say(f"Error: cannot use{where}: {error.strerror or error}", style="bold red")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            say("Interrupted.")
            raise typer.Exit(130) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="Tunes a vision-language model that it may only call, and counts what it costs.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"craft {version('craftbox')}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Tunes a vision-language model that it may only call, and counts what it costs."""
    try:
        context.with_resource(tracing("craft"))
    except TracingUnavailable as error:
        raise CraftError(str(error)) from error
