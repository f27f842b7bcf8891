"""What both command lines are made of: a group of commands, and options that all of them take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

F = TypeVar("F", bound=Callable[..., Any])

_COMMAND = "craft_shared.command"  # in a context's `meta`

# Options of the program that may stand behind the command too.
_ANYWHERE = ("--quiet", "-q", "--verbose", "-v", "--wide")

Wide = Annotated[
    bool,
    typer.Option("--wide", help="Print tables whole, also where the terminal is too narrow."),
]


class Command(TyperCommand):
    """A command that failures may ask for its options."""

    def invoke(self, ctx: Any) -> Any:  # noqa: D102 - as it is of its base
        ctx.meta[_COMMAND] = self
        return super().invoke(ctx)


def running(ctx: Any) -> Any:
    """The command that was run last, below any group's context; None before one was."""
    return ctx.meta.get(_COMMAND)


class Commands(TyperGroup):
    """The program's own options may stand anywhere before `--`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: D102 - as it is of its base
        end = args.index("--") if "--" in args else len(args)
        moved = [word for word in args[:end] if word in _ANYWHERE]
        left = [word for word in args[:end] if word not in _ANYWHERE]
        return super().parse_args(ctx, [*moved, *left, *args[end:]])


class Typer(typer.Typer):
    """A group of commands of these kinds."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"cls": Commands, **options})

    def command(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        """Makes a function a command."""
        return super().command(name, **{"cls": Command, **options})


def examples(*commands: str) -> str:
    """What stands at the end of a command's help: commands, one a line, that work as written."""
    return "\n".join(("Examples:", *(f"  {command}" for command in commands)))
