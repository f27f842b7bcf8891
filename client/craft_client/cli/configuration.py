"""The command line's settings: what each is, and where that comes from.

The first that names a setting wins: an option, the environment, `craft.toml` in the present
folder, the user's `config.toml`, the default. A file of TOML holds nothing but settings:

    url = "https://craft.example.org"
    api_key_file = "~/.config/craft/key"

`craft.toml` may have come with somebody else's folder. So it says nothing of where the API key is
and goes: what it names of that is left out, and the commands say so.

The API key has two spellings, `api_key` and `api_key_file`; where one place has both, the first
counts. It knows places and values; it does not know what is done with a setting. Programs that use
`craft_client.Client` are not concerned: that reads the environment alone.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer

from craft_client.exceptions import CraftError, MissingKey
from craft_shared.text_files import NotTextError, read_text

PROJECT_FILE = Path("craft.toml")
KINDS: Mapping[str, type] = {"url": str, "api_key": str, "api_key_file": str, "compress": bool}
# Who names one of them decides which server is sent the user's key.
OWN = ("url", "api_key", "api_key_file")
DEFAULTS: Mapping[str, Any] = {"url": "http://127.0.0.1:8000", "compress": False}
OPTION, ENVIRONMENT, DEFAULT = "option", "environment", "default"

_KEY = re.compile(r"(craft_[A-Za-z0-9]{8}_).+")


class ConfigurationError(CraftError):
    """A configuration file cannot be used. Nothing was sent to the server."""


@dataclass(frozen=True)
class Setting:
    """A setting's value, and the place that it comes from.

    Attributes:
        name: what files call it.
        value: as the place has it.
        source: `option`, `environment`, `default`, or the file.
    """

    name: str
    value: Any
    source: str

    @property
    def shown(self) -> str:
        """The value for people, the secret of a key masked."""
        if self.name == "api_key":
            form = _KEY.fullmatch(self.value)
            return f"{form[1] if form else ''}********"
        return str(self.value).lower() if isinstance(self.value, bool) else str(self.value)


Settings = dict[str, Setting]


def user_file() -> Path:
    """The user's own file: ~/.config/craft/config.toml, or what the platform has instead."""
    return Path(typer.get_app_dir("craft")) / "config.toml"


def load(url: str | None = None, key: str | None = None) -> Settings:
    """Every setting that some place has.

    Args:
        url: the option's value, or that of its variable.
        key: the option's value, or that of its variable.

    Raises:
        ConfigurationError: a file cannot be read, or holds what is no setting.
    """
    variables = {name: os.environ.get(variable(name), "").strip() for name in KINDS}
    given = {"url": url, "api_key": key}
    places: list[tuple[str, Mapping[str, Any]]] = [
        (OPTION, {n: v for n, v in given.items() if v and v != variables[n]}),
        (ENVIRONMENT, {name: value for name, value in variables.items() if value}),
        (
            str(PROJECT_FILE),
            {name: value for name, value in _values(PROJECT_FILE).items() if name not in OWN},
        ),
        (str(user_file()), _values(user_file())),
        (DEFAULT, DEFAULTS),
    ]
    found: Settings = {}
    for source, values in places:
        for name in KINDS:
            if name in values and name not in found and not _second_key(name, found):
                found[name] = Setting(name, values[name], source)
    return found


def variable(name: str) -> str:
    """The environment's variable of a setting."""
    return f"CRAFT_{name.upper()}"


def api_key(settings: Settings) -> str | None:
    """The API key, read from its file if need be; None leaves it to `Client`.

    Raises:
        MissingKey: its file cannot be read.
    """
    if "api_key" in settings:
        return str(settings["api_key"].value)
    file = settings.get("api_key_file")
    if file is None or file.source == ENVIRONMENT:
        return None
    try:
        return read_text(Path(file.value))
    except (OSError, NotTextError) as error:
        raise MissingKey(
            f"The API key cannot be read from '{file.value}'.",
            remedy=f"api_key_file in '{file.source}' names a file that holds nothing but the key.",
        ) from error


def compress(settings: Settings) -> bool | None:
    """Whether large answers travel compressed; None leaves it to `Client`."""
    found = settings["compress"]
    return None if found.source == ENVIRONMENT else bool(found.value)


def warnings(settings: Settings) -> list[str]:
    """What is unwise about where the settings are, a sentence each."""
    found = []
    left_out = [name for name in OWN if name in _values(PROJECT_FILE)]
    if left_out:
        found.append(
            f"Left out: {', '.join(left_out)} of '{PROJECT_FILE}' in this folder. Addresses and "
            f"keys come from options, the environment or '{user_file()}'."
        )
    if "api_key" in settings and settings["api_key"].source not in (OPTION, ENVIRONMENT):
        file = Path(settings["api_key"].source)
        if os.name == "posix" and file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            found.append(f"Others may read the API key in '{file}'. Remedy: chmod 600 {file}")
    return found


def _second_key(name: str, found: Settings) -> bool:
    keys = {"api_key", "api_key_file"}
    return name in keys and not keys.isdisjoint(found)


def _values(file: Path) -> Mapping[str, Any]:
    """What a file holds; nothing where there is none."""
    try:
        values = tomllib.loads(read_text(file))
    except FileNotFoundError:
        return {}
    except (OSError, NotTextError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"'{file}' cannot be read: {error}.") from error
    for name, value in values.items():
        _check(file, name, value)
    if "api_key_file" in values:
        named = Path(values["api_key_file"]).expanduser()
        values["api_key_file"] = str(file.parent / named)
    return values


def _check(file: Path, name: str, value: object) -> None:
    if name not in KINDS:
        near = get_close_matches(name, KINDS)
        meant = f"Did you mean '{near[0]}'?" if near else f"Settings are {', '.join(KINDS)}."
        raise ConfigurationError(f"'{file}': there is no setting '{name}'.", remedy=meant)
    if not isinstance(value, KINDS[name]):
        wanted = "true or false" if KINDS[name] is bool else 'a text, in "quotes"'
        raise ConfigurationError(f"'{file}': {name} is not {wanted}.")
