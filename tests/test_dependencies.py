"""docs/dependencies.md says of each dependency what it is for."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {"core", *PROJECT["optional-dependencies"]}


def _declared() -> set[tuple[str, str]]:
    extras = {"core": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    return {
        (Requirement(line).name, extra)
        for extra, lines in extras.items()
        for line in lines
        if Requirement(line).name != "craftbox"
    }


def _documented() -> set[tuple[str, str]]:
    rows = re.findall(
        r"^\| ([^|]+) \| ([^|]+) \| [^|]+ \|$",
        (ROOT / "docs/dependencies.md").read_text(),
        re.MULTILINE,
    )
    return {
        (name, extra)
        for names, extras in rows
        if set(extras.split(", ")) <= EXTRAS
        for name in names.split(", ")
        for extra in extras.split(", ")
    }


def test_each_dependency_is_documented_under_its_extra() -> None:
    assert _documented() == _declared()
