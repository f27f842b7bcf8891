"""The server's packages import each other without a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

SERVER = Path(__file__).parents[2] / "server/craft_server"
PACKAGES = {folder.name for folder in SERVER.iterdir() if (folder / "__init__.py").exists()}


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def found(package: str) -> set[str]:
    """The other packages that a package's modules import."""
    names = (name for file in (SERVER / package).rglob("*.py") for name in imported(file))
    parts = (name.split(".") for name in names)
    seconds = {part[1] for part in parts if part[0] == "craft_server" and len(part) > 1}
    return seconds & PACKAGES - {package}


def test_no_package_imports_another_that_imports_it() -> None:
    graph = {package: found(package) for package in PACKAGES}
    assert len(tuple(TopologicalSorter(graph).static_order())) == len(PACKAGES)
