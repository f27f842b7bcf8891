"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="CRAFT_API_KEY",
        show_default=False,
        help="The API key. Better set in the environment: arguments show in process lists.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document; progress goes to stderr.")
]
Data = Annotated[
    Path,
    typer.Option(
        "--data",
        show_default=False,
        help="Pictures: train/CLASS/*, test/CLASS/*; or CLASS/*; or a CoOp set.",
    ),
]
Split = Annotated[str, typer.Option("--split", help="train, validation or test.")]
Model = Annotated[
    str | None,
    typer.Option("--model", show_default="the server's first", help="The model's name."),
]
Template = Annotated[
    str,
    typer.Option(
        "--template", callback=_with_one_gap, help="The plain prompt; {} is the class name."
    ),
]
PLAIN_TEMPLATE = "a photo of a {}."
