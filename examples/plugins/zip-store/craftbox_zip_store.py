"""A store in a page: each run in a ZIP file, whose path is where. The module is the entry point."""

import shutil
import tempfile
import zipfile
from pathlib import Path


def put(folder: Path, where: str) -> None:
    """Copies a run directory into the file, which appears whole or not at all."""
    target = Path(where)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        made = shutil.make_archive(str(Path(temporary) / "run"), "zip", folder)
        Path(made).replace(target)


def get(where: str, folder: Path) -> None:
    """Copies it back. zipfile keeps what it unpacks inside the folder."""
    with zipfile.ZipFile(where) as archive:
        archive.extractall(folder)
