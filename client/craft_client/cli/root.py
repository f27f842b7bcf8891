"""The root of the commands: the program's own options, and how failures are told."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from craft_client.cli.exit_codes import ExitCode, exit_code_of
from craft_client.cli.show import complain, say
from craft_client.cli.verbosity import Verbosity, speaking

# Options of the program that may stand behind the command too.
_ANYWHERE = ("--quiet", "-q", "--verbose", "-v")


class _Commands(TyperGroup):
    """Turns the client's errors into one message and an exit code, never a traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        moved = [word for word in args[:end] if word in _ANYWHERE]
        left = [word for word in args[:end] if word not in _ANYWHERE]
        return super().parse_args(ctx, [*moved, *left, *args[end:]])

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # The reader of stdout has enough; typer ends the program quietly.
        except OSError as error:
            where = f" '{error.filename}'" if error.filename else ""
            complain(f"Error: cannot use{where}: {error.strerror or error}")
            raise typer.Exit(ExitCode.FAILED) from error
        except KeyboardInterrupt as error:
            complain("Interrupted.")
            raise typer.Exit(ExitCode.INTERRUPTED) from error
        except Exception as error:
            from craft_client.exceptions import CraftError

            if not isinstance(error, CraftError):
                raise
            complain(f"Error: {error}")
            raise typer.Exit(exit_code_of(error)) from error


app = typer.Typer(
    cls=_Commands,
    invoke_without_command=True,
    pretty_exceptions_show_locals=False,
    help="Tunes a vision-language model that it may only call, and counts what it costs.",
    epilog="\n".join(
        (
            "Examples:",
            "  craft zero-shot --data DIR",
            "  craft tune --data DIR --shots 16 --seed 1",
            "  craft --verbose models",
            "",
            "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a budget is exhausted, "
            "130 interrupted. See docs/command-line.md.",
        )
    ),
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"craft {version('craftbox')}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Print results and errors alone: nothing else, no bar."),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Tell each HTTP call, its request id, and each retry."
        ),
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Tunes a vision-language model that it may only call, and counts what it costs."""
    from craft_shared.tracing import TracingUnavailable, tracing

    if quiet and verbose:
        raise typer.BadParameter("--quiet and --verbose exclude each other.")
    loud = Verbosity.QUIET if quiet else Verbosity.VERBOSE if verbose else Verbosity.NORMAL
    context.with_resource(speaking(loud, say))
    try:
        context.with_resource(tracing("craft"))
    except TracingUnavailable as error:
        from craft_client.exceptions import CraftError

        raise CraftError(str(error)) from error
    if context.invoked_subcommand is None:
        from craft_client.cli.welcome import welcome

        welcome()
