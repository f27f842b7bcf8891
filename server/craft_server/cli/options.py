"""Options that several commands take, and what their values mean."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import AwareDatetime, BaseModel, TypeAdapter, ValidationError

from craft_server.cli.output import fail
from craft_server.clock import epoch_ms
from craft_server.settings import Settings
from craft_shared.units import MEASURES, Measure
from craft_shared.wire import MAX_AMOUNT

DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the SQLite database (CRAFT_DATA_DIR; default ./craft-data)."),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(help="postgresql://... instead of SQLite (CRAFT_DATABASE_URL)."),
]
Host = Annotated[str | None, typer.Option(help="Address to listen on (default 127.0.0.1).")]
Port = Annotated[int | None, typer.Option(help="TCP port (default 8000; 0: a free one).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Prefix = Annotated[str, typer.Argument(help="The eight characters after craft_ in the key.")]
AnyPrefix = Annotated[
    str | None, typer.Argument(help="The eight characters after craft_ in the key.")
]
Team = Annotated[str | None, typer.Option(help="The team's budgets instead of a key's.")]
Window = Annotated[
    str, typer.Option(help="lifetime, or each calendar month, week, day or hour (UTC).")
]
Amount = Annotated[
    int | None,
    typer.Option(min=0, max=MAX_AMOUNT, show_default=False, help="Amount of this unit."),
]

_DURATION = re.compile(r"(\d{1,9})([smhdw])", re.ASCII)
_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_LONGEST_MS = 36_500 * _MS["d"]
_MOMENT: TypeAdapter[AwareDatetime] = TypeAdapter(AwareDatetime)

M = TypeVar("M", bound=BaseModel)


def settings_of(**options: Any) -> Settings:
    """The settings, in which options that were given win over the environment."""
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        fail(f"setting {where}: {first['msg']}")


def amounts_of(*amounts: int | None) -> dict[Measure, int]:
    """Amounts that were given, in the order of `MEASURES`."""
    return {
        measure: amount
        for measure, amount in zip(MEASURES, amounts, strict=True)
        if amount is not None
    }


def checked(model: type[M], /, **options: Any) -> M:
    """A wire message made of options."""
    try:
        return model.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        option = next((str(part) for part in first["loc"] if isinstance(part, str)), "")
        fail(f"--{option.replace('_', '-')}: {first['msg']}")


def duration_ms(text: str, option: str) -> int:
    """A duration such as 90m, 24h or 30d, in milliseconds."""
    form = _DURATION.fullmatch(text)
    duration = int(form[1]) * _MS[form[2]] if form else _LONGEST_MS + 1
    if duration > _LONGEST_MS:
        fail(f"{option}: write a number and s, m, h, d or w, such as 24h or 30d")
    return duration


def moment_ms(text: str | None, option: str) -> int | None:
    """An RFC 3339 time in milliseconds since the Unix epoch."""
    if text is None:
        return None
    try:
        return epoch_ms(_MOMENT.validate_python(text))
    except ValidationError:
        fail(f"{option}: write a time with its zone (RFC 3339), such as 2026-11-01T00:00:00Z")
