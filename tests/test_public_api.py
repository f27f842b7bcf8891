"""docs/public-api.md: what it lists can be imported and is documented, and nothing is missing."""

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TEXT = (Path(__file__).parents[1] / "docs/public-api.md").read_text()
LISTED = {
    module: re.findall(r"^- `(\w+)`", names, re.MULTILINE)
    for module, names in re.findall(r"^## `([\w.]+)`\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S)
}


def public_names(module: ModuleType) -> list[str]:
    """`__all__`, or else the classes and functions that the module itself defines."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]


def undocumented(name: str, value: Any) -> list[str]:
    """The name, and of a class its own public methods, where they say nothing of themselves."""
    own = vars(value) if inspect.isclass(value) else {}
    members = [
        (f"{name}.{member}", what)
        for member, what in own.items()
        if not member.startswith("_") and inspect.isfunction(what)
    ]
    # A dataclass without a docstring is given one: its signature.
    return [
        each
        for each, what in [(name, value), *members]
        # A type alias is said by the comment above it.
        if (inspect.isclass(what) or inspect.isfunction(what))
        and (not what.__doc__ or what.__doc__.startswith(f"{each}("))
    ]


@pytest.mark.parametrize("module", LISTED)
def test_the_list_is_what_the_module_has(module: str) -> None:
    assert sorted(LISTED[module]) == sorted(public_names(importlib.import_module(module)))


@pytest.mark.parametrize("module", LISTED)
def test_each_name_says_what_it_is(module: str) -> None:
    home = importlib.import_module(module)
    assert [
        each
        for name in LISTED[module]
        # A name of a type or a constant has no words of its own.
        if inspect.isroutine(value := getattr(home, name)) or isinstance(value, type)
        for each in undocumented(name, value)
    ] == []


def test_the_list_names_the_packages_themselves() -> None:
    assert "craft_client" in LISTED
    assert len(LISTED) >= 8
