"""docs/reference/public-api.md: what it lists can be imported, and nothing is missing."""

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

TEXT = (Path(__file__).parents[1] / "docs/reference/public-api.md").read_text()
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


@pytest.mark.parametrize("module", LISTED)
def test_the_list_is_what_the_module_has(module: str) -> None:
    assert sorted(LISTED[module]) == sorted(public_names(importlib.import_module(module)))


def test_the_list_names_the_packages_themselves() -> None:
    assert "craft_client" in LISTED
    assert len(LISTED) >= 8
