"""Options that several commands take, and what their values mean."""

from __future__ import annotations

import re
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from craft_server.cli.output import misuse, warn
from craft_shared.amounts import MAX_AMOUNT, MEASURES, Measure, Window

if TYPE_CHECKING:
    from pydantic import BaseModel

    from craft_server.settings import Settings

_database = partial(typer.Option, rich_help_panel="Database")
_address = partial(typer.Option, rich_help_panel="Address")
_of_units = partial(typer.Option, rich_help_panel="Units")
_model = partial(typer.Option, rich_help_panel="Model")
_process = partial(typer.Option, rich_help_panel="Process")

# What one of each unit is, for the options that name an amount or a price of it.
UNIT_WORDS = {
    "queries": "One is a prompt scored against one image set.",
    "predictions": "One is a prompt scored against one image.",
    "images": "One is an image through the image encoder.",
    "texts": "One is a text through the text encoder.",
    "requests": "One is a charged HTTP call.",
    "cost_micros": "Cost, in millionths of your currency.",
}


def _amount(unit: str) -> Any:
    return _of_units(min=0, max=MAX_AMOUNT, show_default=False, help=UNIT_WORDS[unit])


def complete_models(incomplete: str) -> list[str]:
    """`pocket` and the architectures of open_clip, whose names are those of its files."""
    names = ["pocket", *_stems("open_clip", "model_configs", ".json")]
    return [name for name in names if name.startswith(incomplete)]


def complete_profiles(incomplete: str) -> list[str]:
    """The provider profiles that are shipped."""
    names = _stems("craft_server", "simulate/profiles", ".toml")
    return [name for name in names if name.startswith(incomplete)]


def _stems(package: str, folder: str, suffix: str) -> list[str]:
    """Names of a package's files without their suffix; the package is not imported."""
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return sorted(
        file.stem for place in places or [] for file in Path(place, folder).glob(f"*{suffix}")
    )


DataDir = Annotated[
    Path | None,
    _database(show_default="craft-data", help="Folder of the SQLite database (CRAFT_DATA_DIR)."),
]
DatabaseUrl = Annotated[
    str | None,
    _database(show_default=False, help="postgresql://... instead of SQLite (CRAFT_DATABASE_URL)."),
]
Host = Annotated[str | None, _address(show_default="127.0.0.1", help="Address to listen on.")]
Port = Annotated[int | None, _address(show_default="8000", help="TCP port; 0 takes a free one.")]
RootPath = Annotated[
    str | None,
    _address(
        show_default=False, help="The path below which a proxy offers the server, such as /craft."
    ),
]
Model = Annotated[
    str | None,
    _model(
        show_default="pocket", help="pocket, or one of open_clip's.", autocompletion=complete_models
    ),
]
Pretrained = Annotated[
    str | None,
    _model(show_default=False, help="open_clip's name of the weights, or a checkpoint's path."),
]
Device = Annotated[
    str | None,
    _model(
        show_default="auto",
        help="auto (a GPU where there is one), cpu, cuda, cuda:1, ...",
        autocompletion=lambda: ["auto", "cpu", "cuda"],
    ),
]
Precision = Annotated[
    Literal["auto", "fastest", "float32", "float16", "bfloat16"] | None,
    _model(
        show_default="auto",
        help="Precision of the model; auto first checks half precision against float32.",
    ),
]
Profile = Annotated[
    str | None,
    typer.Option(
        show_default=False,
        help="Behave like this provider: a shipped profile's name, or a TOML file "
        "(docs/profiles.md).",
        autocompletion=complete_profiles,
    ),
]
Workers = Annotated[
    int | None,
    _process(
        show_default="1",
        help="Processes that speak HTTP; with 2 or more, the model has one of its own.",
    ),
]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"] | None,
    _process(
        show_default="info",
        help="The least important lines of the log on stderr; info has one a call.",
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
    typer.Option(
        help="When the budget starts again: each calendar month, week, day or hour (UTC), or never."
    ),
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
