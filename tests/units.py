"""The units of deploy/systemd, and what systemd would make of them here, without systemd."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deploy/systemd"
BIN = "/opt/craftbox/bin"


@dataclass(frozen=True)
class Unit:
    """A unit's settings: the values of each, in order, by `Section.Name`."""

    name: str
    values: dict[str, list[str]]

    @classmethod
    def read(cls, name: str) -> Unit:
        section, values = "", dict[str, list[str]]()
        for line in (FOLDER / name).read_text().splitlines():
            if heading := re.fullmatch(r"\[(\w+)\]", line):
                section = heading[1]
            elif line and not line.startswith("#"):
                key, _, value = line.partition("=")
                values.setdefault(f"{section}.{key}", []).append(value)
        return cls(name, values)

    def one(self, key: str) -> str:
        (value,) = self.values[key]
        return value


@dataclass(frozen=True)
class Machine:
    """A folder that is a machine's root: what the units find below /etc and /var is below it."""

    root: Path
    bin: Path

    @property
    def settings(self) -> Path:
        return self.root / "etc/craftbox"

    def state(self, unit: Unit) -> Path:
        return self.root / "var/lib" / unit.one("Service.StateDirectory")

    def prepare(self, unit: Unit) -> None:
        """Makes the folders that systemd makes, and hands over credentials as it does."""
        self.state(unit).mkdir(mode=int(unit.one("Service.StateDirectoryMode"), 8), parents=True)
        name, _, source = unit.one("Service.LoadCredential").partition(":")
        there = self._credentials(unit)
        there.mkdir(mode=0o700, parents=True)
        for file in (self.root / source.removeprefix("/")).iterdir():
            (there / f"{name}_{file.name}").write_bytes(file.read_bytes())

    def environment(self, unit: Unit) -> dict[str, str]:
        """What the unit's programs find in their environment; of ours what is not craftbox's."""
        own = {k: v for k, v in os.environ.items() if not k.startswith("CRAFT_")}
        set_here = (
            self._here(unit, line).partition("=") for line in unit.values["Service.Environment"]
        )
        return {**own, "STATE_DIRECTORY": str(self.state(unit))} | {k: v for k, _, v in set_here}

    def command(self, unit: Unit, key: str = "ExecStart") -> list[str]:
        """A program and its arguments, as systemd reads them."""
        words = shlex.split(unit.one(f"Service.{key}"))
        state = str(self.state(unit))
        return [self._here(unit, word).replace("${STATE_DIRECTORY}", state) for word in words]

    def _credentials(self, unit: Unit) -> Path:
        return self.root / "run/credentials" / unit.name

    def _here(self, unit: Unit, text: str) -> str:
        """A text with its specifiers replaced (systemd.unit(5))."""
        specifiers = {
            "%S": self.root / "var/lib",
            "%C": self.root / "var/cache",
            "%d": self._credentials(unit),
            "%%": "%",
        }
        text = re.sub("%.", lambda found: str(specifiers[found[0]]), text)
        return text.replace(BIN, str(self.bin))
