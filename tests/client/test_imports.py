from __future__ import annotations

import ast
import importlib.util
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVER_ONLY = {"torch", "open_clip", "timm", "fastapi", "uvicorn", "sqlalchemy", "craft_server"}


def client_modules() -> list[str]:
    spec = importlib.util.find_spec("craft_client")
    assert spec
    assert spec.submodule_search_locations
    found = pkgutil.walk_packages(spec.submodule_search_locations, "craft_client.")
    return ["craft_client", *(module.name for module in found)]


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after the code."""
    report = "; import json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, check=True, text=True
    )
    return set(json.loads(done.stdout))


def test_the_client_loads_nothing_of_the_servers() -> None:
    modules = client_modules()
    assert {"craft_client.api", "craft_client.cli", "craft_client.tune"} <= set(modules)
    loaded = loaded_by("import " + ", ".join(modules))
    assert "craft_client.api" in loaded
    assert not SERVER_ONLY & loaded


def imports_of(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield path, alias.name.partition(".")[0]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                yield path, node.module.partition(".")[0]


@pytest.mark.parametrize(
    ("folder", "foreign"),
    [
        ("client", {"craft_server"}),
        ("server", {"craft_client"}),
        ("shared", {"craft_client", "craft_server"}),
    ],
)
def test_neither_side_imports_the_other(folder: str, foreign: set[str]) -> None:
    imports = list(imports_of(ROOT / folder))
    assert imports, "the folder has source files"
    assert [(path, name) for path, name in imports if name in foreign] == []


def test_the_package_itself_loads_only_what_is_used() -> None:
    assert not {"httpx", "numpy", "sklearn"} & loaded_by("import craft_client")
    client_alone = loaded_by("from craft_client import Client")
    assert "httpx" in client_alone
    assert "sklearn" not in client_alone
    assert "sklearn" in loaded_by("from craft_client import CraFTClassifier")
