"""Files that appear whole or not at all, grow by whole pieces, or are for their owner alone.

Errors name the file, also where the system does not: a full disk, for example.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is on disk, whole, under its name, or leaves what was there.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    partial = path.with_name(path.name + ".partial")
    with _named(path):
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        # So that the name is on disk too.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def append(path: Path, data: bytes) -> None:
    """Adds to the end of a file, which is made where there is none; it is on disk at the return.

    Raises:
        OSError: it cannot be written; the file is as it was before, if that much can be done.
    """
    with _named(path), path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):
                file.truncate(before)
            raise


def make_private(path: Path) -> None:
    """Makes an empty file that nobody but its owner can read, from its first byte on.

    A file that is there stays as it is.

    Raises:
        OSError: it cannot be made.
    """
    with _named(path):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def make_private_folder(path: Path) -> None:
    """Makes a folder that nobody but its owner can enter; one that is there stays as it is.

    Raises:
        OSError: it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)


def keep_private(paths: Iterable[Path]) -> list[Path]:
    """Takes from all but their owner what they may do with files or folders; those changed.

    What is not there, or is another user's, is passed over.
    """
    changed = []
    for path in paths:
        with suppress(OSError):
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & 0o077:
                path.chmod(mode & 0o700)
                changed.append(path)
    return changed


def check_room(folder: Path, needed: int) -> None:
    """Raises OSError (ENOSPC) where a folder's disk has less than so many bytes left."""
    left = shutil.disk_usage(folder).free
    if left < needed:
        reason = f"{needed:,} bytes are needed, the disk has {left:,} left"
        raise OSError(errno.ENOSPC, reason, str(folder))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
