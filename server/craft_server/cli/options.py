"""Options that several commands take, and what their values mean."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from craft_server.cli.output import misuse, warn
from craft_shared.amounts import MAX_AMOUNT, MEASURES, Measure, Window

if TYPE_CHECKING:
    from pydantic import BaseModel

    from craft_server.settings import Settings

_DATABASE = "Database"
_ADDRESS = "Address"
_AMOUNTS = "Units"

# What one of each unit is, for the options that name an amount or a price of it.
UNIT_WORDS = {
    "queries": "One is a prompt scored against one image set.",
    "predictions": "One is a prompt scored against one image.",
    "images": "One is an image through the image encoder.",
    "texts": "One is a text through the text encoder.",
    "requests": "One is a charged HTTP call.",
    "cost_micros": "Cost, in millionths of your currency.",
}


def examples(*commands: str) -> str:
    """What stands at the end of a command's help: commands, one a line, that work as written."""
    return "\n".join(("Examples:", *(f"  {command}" for command in commands)))


def _amount(unit: str) -> Any:
    return typer.Option(
        min=0,
        max=MAX_AMOUNT,
        show_default=False,
        help=UNIT_WORDS[unit],
        rich_help_panel=_AMOUNTS,
    )


DataDir = Annotated[
    Path | None,
    typer.Option(
        show_default="craft-data",
        help="Folder of the SQLite database (CRAFT_DATA_DIR).",
        rich_help_panel=_DATABASE,
    ),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        show_default=False,
        help="postgresql://... instead of SQLite (CRAFT_DATABASE_URL).",
        rich_help_panel=_DATABASE,
    ),
]
Host = Annotated[
    str | None,
    typer.Option(show_default="127.0.0.1", help="Address to listen on.", rich_help_panel=_ADDRESS),
]
Port = Annotated[
    int | None,
    typer.Option(
        show_default="8000", help="TCP port; 0 takes a free one.", rich_help_panel=_ADDRESS
    ),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on stdout.", rich_help_panel="Output"),
]
Prefix = Annotated[str, typer.Argument(help="The eight characters after craft_ in the key.")]
AnyPrefix = Annotated[
    str | None, typer.Argument(help="The eight characters after craft_ in the key.")
]
Team = Annotated[str | None, typer.Option(help="The team's budgets instead of a key's.")]
BudgetWindow = Annotated[
    Window,
    typer.Option(help="For good, or anew in each calendar month, week, day or hour (UTC)."),
]
Queries = Annotated[int | None, _amount("queries")]
Predictions = Annotated[int | None, _amount("predictions")]
Images = Annotated[int | None, _amount("images")]
Texts = Annotated[int | None, _amount("texts")]
Requests = Annotated[int | None, _amount("requests")]
CostMicros = Annotated[int | None, _amount("cost_micros")]

_DURATION = re.compile(r"(\d{1,9})([smhdw])", re.ASCII)
_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_LONGEST_MS = 36_500 * _MS["d"]

M = TypeVar("M", bound="BaseModel")


def settings_of(**options: Any) -> Settings:
    """The settings, in which options that were given win over all else."""
    from pydantic import ValidationError

    from craft_server.settings import Settings, SettingsFileError, readable_by_others
    from craft_shared.problems import first_error

    try:
        settings = Settings(**{name: value for name, value in options.items() if value is not None})
    except SettingsFileError as error:
        misuse(str(error))
    except ValidationError as error:
        misuse(f"setting {first_error(error)}")
    if file := readable_by_others():
        warn(f"others may read the password in '{file}'; remedy: chmod 600 {file}")
    return settings


def amounts_of(*amounts: int | None) -> dict[Measure, int]:
    """Amounts that were given, in the order of `MEASURES`."""
    return {
        measure: amount
        for measure, amount in zip(MEASURES, amounts, strict=True)
        if amount is not None
    }


def checked(model: type[M], /, **options: Any) -> M:
    """A wire message made of options."""
    from pydantic import ValidationError

    try:
        return model.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        option = next((str(part) for part in first["loc"] if isinstance(part, str)), "")
        misuse(f"--{option.replace('_', '-')}: {first['msg']}")


def duration_ms(text: str, option: str) -> int:
    """A duration such as 90m, 24h or 30d, in milliseconds."""
    form = _DURATION.fullmatch(text)
    duration = int(form[1]) * _MS[form[2]] if form else _LONGEST_MS + 1
    if duration > _LONGEST_MS:
        misuse(f"{option}: write a number and s, m, h, d or w, such as 24h or 30d")
    return duration


def moment_ms(text: str | None, option: str) -> int | None:
    """An RFC 3339 time in milliseconds since the Unix epoch."""
    if text is None:
        return None
    from pydantic import TypeAdapter, ValidationError

    from craft_server.clock import epoch_ms
    from craft_shared.wire.messages import Time

    moment: TypeAdapter[Time] = TypeAdapter(Time)
    try:
        return epoch_ms(moment.validate_python(text))
    except ValidationError:
        misuse(f"{option}: write a time with its zone (RFC 3339), such as 2026-11-01T00:00:00Z")
