"""Options that several commands share, what a shell completes for them, and examples below help.

Completion asks no server and imports nothing slow: it runs at every press of a key. Shells evaluate
what they complete, so that only plain names are given to them: others, from a server or in a folder
that somebody gave, are to be typed. Adapters' names are those that commands have seen. They are in
a file beside the user's configuration, a list for each server. No command fails where that cannot
be read or written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from craft_client.recipes import OWN, Option
from craft_client.run_folder import RUN_FILE
from craft_shared.amounts import MAX_AMOUNT, UNITS, Measure
from craft_shared.files import make_private

_MOST = 1000  # names of a server
_PLAIN = re.compile(r"[\w./@+=,~-][\w ./@+=,~-]*")


def run_folders(incomplete: str) -> list[str]:
    """Run directories at what is written so far, and up to two folders below it."""
    written = Path(incomplete)
    base = written if incomplete.endswith("/") else written.parent
    depths = (f"*/{RUN_FILE}", f"*/*/{RUN_FILE}")
    found = {str(file.parent) for depth in depths for file in base.glob(depth)}
    return sorted(one for one in found if one.startswith(incomplete) and _PLAIN.fullmatch(one))


def recipes(incomplete: str) -> list[str]:
    """Craftbox's own recipes; those of plug-ins are not looked for."""
    return [name for name in OWN if name.startswith(incomplete)]


def adapter_names(incomplete: str) -> list[str]:
    """Adapters that `craft adapters` or `craft publish` has shown."""
    known = {name for names in _read().values() for name in names}
    return sorted(one for one in known if one.startswith(incomplete) and _PLAIN.fullmatch(one))


def remember(url: str, names: Iterable[str], *, all_of_them: bool = False) -> None:
    """Adds names of adapters on a server, or puts them in the place of those known before."""
    known = _read()
    before = [] if all_of_them else known.get(url, [])
    known[url] = sorted({*before, *names})[:_MOST]
    with suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        make_private(_file())
        _file().write_text(json.dumps(known, indent=1))


def _read() -> dict[str, list[str]]:
    try:
        known = json.loads(_file().read_bytes())
        return {str(url): [str(name) for name in names] for url, names in known.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _file() -> Path:
    return Path(typer.get_app_dir("craft")) / "known-adapters.json"


def argument(
    metavar: str,
    help_text: str,
    autocompletion: Callable[[str], list[str]] | None = None,
    **more: Any,
) -> Any:
    """A command's argument, without its default in the help."""
    return typer.Argument(
        metavar=metavar, show_default=False, help=help_text, autocompletion=autocompletion, **more
    )


def option(
    help_text: str, default: str | bool = False, *, panel: str | None = None, **more: Any
) -> Any:
    """An option that is called as its parameter is.

    `default` is what help says of its default: words, nothing, or its value.
    """
    return typer.Option(help=help_text, show_default=default, rich_help_panel=panel, **more)


def flag(name: str, help_text: str, *, panel: str | None = None) -> Any:
    """An option without a value and without an opposite."""
    return typer.Option(name, help=help_text, rich_help_panel=panel)


def budget_of(text: str | None) -> tuple[int | None, Measure | None]:
    """The amount and its unit that `N`, of queries, or `UNIT=N` says; `cost` is in currency.

    Both are None where nothing is said.

    Raises:
        typer.BadParameter: it says no such thing.
    """
    if text is None:
        return None, None
    unit, _, number = text.rpartition("=")
    units: dict[str, Measure] = {"": UNITS[0], "cost": "cost_micros"}
    units.update({name: name for name in UNITS})
    measure = units.get(unit)
    if measure is None:
        known = ", ".join((*UNITS, "cost"))
        raise typer.BadParameter(f"'{unit}' is no unit; there are {known}.")
    try:
        amount = Decimal(number) * (10**6 if measure == "cost_micros" else 1)
        usable = 1 <= amount <= MAX_AMOUNT and amount == int(amount)
    except ArithmeticError as error:
        raise typer.BadParameter(f"'{number}' is no number.") from error
    if not usable:
        allowed = "from 0.000001, of six decimals" if measure == "cost_micros" else "whole, from 1"
        raise typer.BadParameter(f"'{number}' is no such amount: give a number {allowed}.")
    return int(amount), measure


def _readable_budget(text: str | None) -> str | None:
    budget_of(text)
    return text


def options_of(texts: Sequence[str]) -> dict[str, Option]:
    """Settings of a recipe's own, of `NAME=VALUE` each; what they may be, the recipe says.

    Raises:
        typer.BadParameter: one has no name.
    """
    pairs = [text.partition("=") for text in texts]
    if wrong := [
        text for text, pair in zip(texts, pairs, strict=True) if not (pair[0] and pair[1])
    ]:
        raise typer.BadParameter(f"'{wrong[0]}' is not NAME=VALUE.", param_hint="--set")
    return {name: value for name, _, value in pairs}


def _with_one_gap(template: str) -> str:
    if template.count("{}") != 1:
        raise typer.BadParameter(f"'{template}' needs exactly one {{}} for the class name.")
    return template


Url = Annotated[
    str | None,
    option("The server's address.", "http://127.0.0.1:8000", panel="Server", envvar="CRAFT_URL"),
]
Key = Annotated[
    str | None,
    option(
        "The API key. Better set in the environment: arguments show in process lists.",
        panel="Server",
        envvar="CRAFT_API_KEY",
    ),
]
AsJson = Annotated[
    bool,
    flag("--json", "Print one JSON document on stdout; all else goes to stderr.", panel="Output"),
]
DATA = option(
    "Pictures: a folder with train/CLASS/* and test/CLASS/*, or with CLASS/*; a CoOp data set; a "
    "list FILE.csv with path,label,split; or a Hugging Face data set, hf:NAME or its folder."
)
Data = Annotated[Path, DATA]
Split = Annotated[Literal["train", "validation", "test"], option("The split to measure on.", True)]
ShotsStrict = Annotated[
    bool,
    flag(
        "--shots-strict",
        "Refuse the data if a class has fewer pictures than --shots. Otherwise such a class "
        "trains on all that it has. For benchmarks whose classes must have equally many.",
    ),
]
Strict = Annotated[
    bool,
    flag(
        "--strict",
        "Score only the class names, as the paper does; the craftbox recipe then asks random codes "
        "instead of a vocabulary. Choose it if texts are expensive or not allowed.",
    ),
]
Budget = Annotated[
    str | None,
    option(
        "The most a run may spend after the upload: N queries, or UNIT=N of another unit, such as "
        "predictions=1e6 or cost=1.50.",
        "the recipe's own: craftbox 128, or 256 if answers are labels or top_k; paper: by shots",
        metavar="[UNIT=]N",
        callback=_readable_budget,
    ),
]
Over = Annotated[
    Literal["predictions", "queries", "images", "texts", "requests", "cost"],
    option("The unit over which accuracies are drawn.", True),
]
RunFolder = Annotated[Path, argument("RUN", "A run directory.", run_folders)]
Model = Annotated[
    str | None, option("The model's name, as craft models lists it.", "the server's first")
]
Template = Annotated[
    str, option("The plain prompt; {} is the class name.", True, callback=_with_one_gap)
]
PLAIN_TEMPLATE = "a photo of a {}."
