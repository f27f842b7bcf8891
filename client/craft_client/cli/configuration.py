"""The command line's settings: what each is, and where that comes from.

The first that names a setting wins: an option, the environment, the user's `config.toml`, the
default. A file of TOML holds nothing but settings:

    url = "https://craft.example.org"
    api_key_file = "~/.config/craft/key"

A `craft.toml` in the present folder may have come with somebody else's folder. All settings decide
where the API key is or goes, so that none is taken from there, and the commands say so.

The API key has two spellings, `api_key` and `api_key_file`; where one place has both, the first
counts. Programs that use `craft_client.Client` are not concerned: that reads the environment alone.
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

import typer

from craft_client.exceptions import CraftError
from craft_shared.text_files import NotTextError, read_text

PROJECT_FILE = Path("craft.toml")
NAMES = ("url", "api_key", "api_key_file")
DEFAULTS = {"url": "http://127.0.0.1:8000"}
OPTION, ENVIRONMENT, DEFAULT = "option", "environment", "default"

_KEY = re.compile(r"(craft_[A-Za-z0-9]{8}_).+")


class ConfigurationError(CraftError):
    """A configuration file cannot be used. Nothing was sent to the server."""


@dataclass(frozen=True)
class Setting:
    """A setting's value, and the place that it comes from."""

    name: str
    value: str
    source: str  # `option`, `environment`, `default`, or the file

    @property
    def shown(self) -> str:
        """The value for people, the secret of a key masked."""
        if self.name == "api_key":
            form = _KEY.fullmatch(self.value)
            return f"{form[1] if form else ''}********"
        return self.value


def user_file() -> Path:
    """The user's own file: ~/.config/craft/config.toml, or what the platform has instead."""
    return Path(typer.get_app_dir("craft")) / "config.toml"


def load(url: str | None = None, key: str | None = None) -> dict[str, Setting]:
    """Every setting that some place has; `url` and `key` are the options' values.

    Raises:
        ConfigurationError: a file cannot be read, or holds what is no setting.
    """
    _values(PROJECT_FILE)  # of which nothing is taken
    variables = {name: os.environ.get(variable(name), "").strip() for name in NAMES}
    given = {"url": url, "api_key": key}
    places: list[tuple[str, Mapping[str, str]]] = [
        (OPTION, {n: v for n, v in given.items() if v and v != variables[n]}),
        (ENVIRONMENT, {name: value for name, value in variables.items() if value}),
        (str(user_file()), _values(user_file())),
        (DEFAULT, DEFAULTS),
    ]
    found: dict[str, Setting] = {}
    for source, values in places:
        for name in NAMES:
            if name in values and name not in found and not _second_key(name, found):
                found[name] = Setting(name, values[name], source)
    return found


def variable(name: str) -> str:
    """The environment's variable of a setting."""
    return f"CRAFT_{name.upper()}"


def api_key(settings: dict[str, Setting]) -> str | None:
    """The API key, read from its file if need be; None leaves it to `Client`.

    Raises:
        MissingKey: its file cannot be read.
    """
    from craft_client.network import key_in

    if "api_key" in settings:
        return settings["api_key"].value
    file = settings.get("api_key_file")
    if file is None or file.source == ENVIRONMENT:
        return None
    return key_in(file.value, f"api_key_file in '{file.source}'")


def warnings(settings: dict[str, Setting]) -> list[str]:
    """What is unwise about where the settings are, a sentence each."""
    found = []
    if left_out := [name for name in NAMES if name in _values(PROJECT_FILE)]:
        found.append(
            f"Left out: {', '.join(left_out)} of '{PROJECT_FILE}' in this folder. Addresses and "
            f"keys come from options, the environment or '{user_file()}'."
        )
    if "api_key" in settings and settings["api_key"].source not in (OPTION, ENVIRONMENT):
        file = Path(settings["api_key"].source)
        if os.name == "posix" and file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            found.append(f"Others may read the API key in '{file}'. Remedy: chmod 600 {file}")
    return found


def _second_key(name: str, found: dict[str, Setting]) -> bool:
    keys = {"api_key", "api_key_file"}
    return name in keys and not keys.isdisjoint(found)


def _values(file: Path) -> dict[str, str]:
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
    if name not in NAMES:
        near = get_close_matches(name, NAMES)
        meant = f"Did you mean '{near[0]}'?" if near else f"Settings are {', '.join(NAMES)}."
        raise ConfigurationError(f"'{file}': there is no setting '{name}'.", remedy=meant)
    if not isinstance(value, str):
        raise ConfigurationError(f"'{file}': {name} is not a text, in \"quotes\".")
