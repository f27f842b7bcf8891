"""Packages with entry points in a folder of their own, as `pip install --target` leaves them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples" / "plugins"


def write_package(
    target: Path,
    name: str,
    entry_points: Mapping[str, Mapping[str, str]],
    *,
    version: str = "0.1.0",
    **modules: str,
) -> None:
    """Installs modules, given as their code, with entry points by group and name."""
    info = target / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        line
        for group, entries in entry_points.items()
        for line in (f"[{group}]", *(f"{key} = {value}" for key, value in entries.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for module, code in modules.items():
        (target / f"{module}.py").write_text(code)


def install_examples(target: Path, building: Path) -> None:
    """Builds and installs every package of `examples/plugins` with pip, in a copy of them."""
    packages = [path for path in EXAMPLES.iterdir() if (path / "pyproject.toml").is_file()]
    copies = [shutil.copytree(package, building / package.name) for package in packages]
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", target]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *copies], check=True)
