"""Options that several commands share, and how examples are written below their help."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from craft_client.cli.completion import run_folders

_SERVER = "Server"
_OUTPUT = "Output"


def examples(*commands: str) -> str:
    """What stands at the end of a command's help: commands, one a line, that work as written."""
    return "\n".join(("Examples:", *(f"  {command}" for command in commands)))


def argument(
    metavar: str, help_text: str, autocompletion: Callable[[str], list[str]] | None = None
) -> Any:
    """A command's argument, without its default in the help."""
    return typer.Argument(
        metavar=metavar, show_default=False, help=help_text, autocompletion=autocompletion
    )


def _with_one_gap(template: str) -> str:
    if template.count("{}") != 1:
        raise typer.BadParameter(f"'{template}' needs exactly one {{}} for the class name.")
    return template


Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="CRAFT_URL",
        show_default="http://127.0.0.1:8000",
        help="The server's address.",
        rich_help_panel=_SERVER,
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="CRAFT_API_KEY",
        show_default=False,
        help="The API key. Better set in the environment: arguments show in process lists.",
        rich_help_panel=_SERVER,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON document on stdout; all else goes to stderr.",
        rich_help_panel=_OUTPUT,
    ),
]
DATA = typer.Option(
    "--data",
    show_default=False,
    help="Pictures: train/CLASS/*, test/CLASS/*; or CLASS/*; or a CoOp set.",
)
Data = Annotated[Path, DATA]
Split = Annotated[
    Literal["train", "validation", "test"], typer.Option("--split", help="Which pictures.")
]
ShotsStrict = Annotated[
    bool,
    typer.Option(
        "--shots-strict",
        help="Refuse classes with fewer pictures than shots, of which all are taken otherwise.",
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="craftbox: ask about the class names alone, as the paper does, with random codes in "
        "the place of a vocabulary.",
    ),
]
RunFolder = Annotated[Path, argument("RUN", "A run directory.", run_folders)]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        show_default="the server's first",
        help="The model's name, as craft models lists it.",
    ),
]
Template = Annotated[
    str,
    typer.Option(
        "--template", callback=_with_one_gap, help="The plain prompt; {} is the class name."
    ),
]
PLAIN_TEMPLATE = "a photo of a {}."
