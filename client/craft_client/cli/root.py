"""The root of the commands: the program's own options, failures and exit codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import Annotated, Any, TypeVar

import typer

from craft_client.cli.show import Verbosity, complain, print_lines, speaking, verbosity
from craft_shared.commands import Commands, Typer, Wide, examples, running
from craft_shared.printing import printable
from craft_shared.terminal_tables import wide_tables

F = TypeVar("F", bound=Callable[..., None])


class ExitCode(IntEnum):
    """What a script may rely on (docs/command-line.md)."""

    OK = 0
    FAILED = 1
    USAGE = 2
    BUDGET = 3
    INTERRUPTED = 130


def exit_code_of(error: Exception) -> ExitCode:
    """The exit code for a failure that is shown in one message."""
    from craft_client.cli.configuration import ConfigurationError
    from craft_client.exceptions import BudgetExhausted, BudgetTooSmall

    if isinstance(error, BudgetExhausted | BudgetTooSmall):
        return ExitCode.BUDGET
    return ExitCode.USAGE if isinstance(error, ConfigurationError) else ExitCode.FAILED


# Typer keeps the base of its own errors to itself.
_UsageError: Any = typer.BadParameter.__base__


class _Commands(Commands):
    """Turns the client's errors into one message and an exit code, never a traceback."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _readable_usage():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _readable_usage():
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
        except (_UsageError, typer.Exit, typer.Abort):
            raise
        except Exception as error:
            from craft_client.exceptions import CraftError

            if not isinstance(error, CraftError):
                _complain_of_unforeseen(error)
                raise typer.Exit(ExitCode.FAILED) from error
            from craft_client.cli.wording import lines

            head, *more = lines(error, running(ctx))
            complain(f"Error: {head}", *more)
            raise typer.Exit(exit_code_of(error)) from error


@contextmanager
def _readable_usage() -> Iterator[None]:
    """Typer prints what is wrong with an argument, which may be a file's name, as it is."""
    try:
        yield
    except _UsageError as error:
        error.message = printable(error.message)
        raise


def _complain_of_unforeseen(error: Exception) -> None:
    from traceback import format_exception

    complain(
        f"Error: craft failed in a way that nobody foresaw: {type(error).__name__}: {error}",
        "Run the command with --verbose and report what it prints.",
    )
    if verbosity() is Verbosity.VERBOSE:
        print_lines("".join(format_exception(error)).rstrip().split("\n"), err=True)


app = Typer(
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


def command(
    panel: str, *commands: str, name: str | None = None, first: Sequence[str] = ()
) -> Callable[[F], F]:
    """Adds a command to a panel of the help, with examples; `first` is of `Typer.command`."""
    return app.command(name, first=first, epilog=examples(*commands), rich_help_panel=panel)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print_lines([f"craft {version('craftbox')}"])
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Print only results and errors: no progress, no notes."),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Report each HTTP call, its request id, and each retry."
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
    """Tunes a vision-language model that it may only call, and counts what it costs."""
    from craft_shared.tracing import TracingUnavailable, tracing

    if quiet and verbose:
        raise typer.BadParameter("--quiet and --verbose exclude each other.")
    loud = Verbosity.QUIET if quiet else Verbosity.VERBOSE if verbose else Verbosity.NORMAL
    context.with_resource(speaking(loud))
    context.with_resource(wide_tables(wide))
    try:
        context.with_resource(tracing("craft"))
    except TracingUnavailable as error:
        from craft_client.exceptions import CraftError

        raise CraftError(str(error)) from error
    if context.invoked_subcommand is None:
        _welcome()


_WELCOME = """\
craft tunes a vision-language model that it may only call, and counts what it costs.

From pictures to an adapter in three commands, with DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg:

  craft zero-shot --data DIR                              how good the model is as it is
  craft tune --data DIR --shots 16 --run runs/first       tunes it: one query
  craft evaluate runs/first --data DIR                    how good it is then

{server}
All commands: craft --help. What is set where: craft config show.
"""
_NO_KEY = """\
The server is {url} ({source}). There is no API key yet; its operator makes one:
  craft-server keys create --owner me --queries 8000, and then here: export CRAFT_API_KEY=craft_...
No server? craft-server, without arguments, says how to start one.
"""
_KEY = "The server is {url} ({source}), and an API key is set. Is it there? craft models\n"


def _welcome() -> None:
    """Prints the three commands to a first result."""
    from craft_client.cli import configuration

    settings = configuration.load()
    url = settings["url"]
    has_key = not settings.keys().isdisjoint({"api_key", "api_key_file"})
    server = (_KEY if has_key else _NO_KEY).format(url=url.value, source=url.source)
    print_lines(_WELCOME.format(server=server).rstrip().split("\n"))
