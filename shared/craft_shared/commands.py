"""What both command lines are made of: a group of commands, and options that all of them take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from craft_shared.command_help import of_command, of_group
from craft_shared.printing import print_lines

F = TypeVar("F", bound=Callable[..., Any])

_COMMAND = "craft_shared.command"  # in a context's `meta`

# Options of the program that may stand behind the command too.
_ANYWHERE = ("--quiet", "-q", "--verbose", "-v", "--wide")

Wide = Annotated[
    bool,
    typer.Option("--wide", help="Print tables whole, also where the terminal is too narrow."),
]


class Command(TyperCommand):
    """A command whose help is short first, and which failures may ask for its options.

    `first` are the parameters of the short help.
    """

    def __init__(self, *args: Any, first: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*args, **options)
        self.first = first

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: D102 - as it is of its base
        return [*super().get_params(ctx), _help_all(hidden=False)]

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: D102 - as it is of its base
        formatter.write(of_command(self, ctx, first=self.first, whole=False))

    def whole_help(self, ctx: Any) -> str:
        """All options, by their panels."""
        return of_command(self, ctx, first=(), whole=True)

    def invoke(self, ctx: Any) -> Any:  # noqa: D102 - as it is of its base
        ctx.meta[_COMMAND] = self
        return super().invoke(ctx)


def _help_all(*, hidden: bool) -> TyperOption:
    return TyperOption(
        param_decls=["--help-all"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_print_help_all,
        help="Show all options and exit.",
        hidden=hidden,
    )


def _print_help_all(ctx: Any, _option: Any, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        print_lines(ctx.command.whole_help(ctx).split("\n"))
        ctx.exit()


def running(ctx: Any) -> Any:
    """The command that was run last, below any group's context; None before one was."""
    return ctx.meta.get(_COMMAND)


class Commands(TyperGroup):
    """The program's own options may stand anywhere before `--`."""

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: D102 - as it is of its base
        # A group's help is whole, whichever is asked for.
        return [*super().get_params(ctx), _help_all(hidden=True)]

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: D102 - as it is of its base
        formatter.write(of_group(self, ctx))

    def whole_help(self, ctx: Any) -> str:
        """As `format_help` writes it."""
        return of_group(self, ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: D102 - as it is of its base
        end = args.index("--") if "--" in args else len(args)
        moved = [word for word in args[:end] if word in _ANYWHERE]
        left = [word for word in args[:end] if word not in _ANYWHERE]
        return super().parse_args(ctx, [*moved, *left, *args[end:]])


class Typer(typer.Typer):
    """A group of commands of these kinds."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"cls": Commands, **options})

    def command(
        self, name: str | None = None, *, first: Sequence[str] = (), **options: Any
    ) -> Callable[[F], F]:
        """Makes a function a command; `first` are the parameters of its short help."""
        kind: Any = partial(Command, first=first)
        return super().command(name, cls=kind, **options)


def examples(*commands: str) -> str:
    """What stands at the end of a command's help: commands, one a line, that work as written."""
    return "\n".join(("Examples:", *(f"  {command}" for command in commands)))
