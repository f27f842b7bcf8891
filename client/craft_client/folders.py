"""Which files below a folder are images: one reader for every command, with one list of junk.

Read as torchvision's `ImageFolder` reads a class folder: whatever lies below it, at any depth and
through links, by the suffixes of its files, in the order of paths. Each folder is read once, so
that links which lead in a circle, or twice to one place, double nothing. What operating systems,
archives and tools leave behind is passed over in silence; what somebody may have meant as an image
is left out with a reason.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from craft_client.exceptions import DataError
from craft_shared.image_formats import OTHER_SUFFIXES, SUFFIXES

# Left by operating systems, network drives and archives, beside all names with a dot before them.
_JUNK = frozenset(
    {
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
        "__macosx",
        "@eadir",
        "@__thumb",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "network trash folder",
        "temporary items",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "__pycache__",
    }
)
# What Windows knows of a file's origin, as its Linux writes it beside the file.
_STREAM = ":zone.identifier"
# Written by people and programs about images: files with one of these endings, and those names.
_ABOUT_ENDINGS = (
    "aae bat cfg csv db doc docx h5 htm html ini ipynb json jsonl lnk log mat md md5 npy npz "
    "parquet pdf pkl pt pth py rst sh sha1 sha256 sqlite srt tar gz tgz thm toml tsv txt url "
    "webloc xls xlsx xml xmp yaml yml zip avi m4v mkv mov mp3 mp4 wav webm"
)
_ABOUT = frozenset(f".{ending}" for ending in _ABOUT_ENDINGS.split())
_ABOUT_NAMES = frozenset(
    {"changelog", "copying", "labels", "licence", "license", "makefile", "notice", "readme"}
)

_NO_SUFFIX = "no suffix"
_DEAD = "link that leads nowhere"
_AGAIN = "link to a folder around it, or read already"
_IN_NONE = "in no class folder"
_NO_FILE = "neither a file nor a folder"
_ABOUT_IN_WORDS = "lists and other files"
_CONVERTED = " Convert pictures to JPEG or PNG, and name them so: .jpg, .png."


class LeftOut(NamedTuple):
    """What may have been meant as an image, and what it is instead, such as "HEIC"."""

    path: Path
    reason: str

    @property
    def convertible(self) -> bool:
        """Whether it may be an image in another format, or under another name."""
        reason = self.reason
        return reason == _NO_SUFFIX or reason in OTHER_SUFFIXES.values() or reason.startswith(".")


@dataclass(frozen=True)
class Found:
    """What lies below a folder."""

    images: tuple[Path, ...] = ()  # files that are called as images are, sorted by path
    left_out: tuple[LeftOut, ...] = ()  # what is not taken, sorted by path
    about: int = 0  # how many files there are about images, such as lists and side-cars
    deeper: int = 0  # how many of the images lie in folders below

    def __add__(self, other: Found) -> Found:
        return Found(
            self.images + other.images,
            self.left_out + other.left_out,
            self.about + other.about,
            self.deeper + other.deeper,
        )

    @property
    def note(self) -> str:
        """One line on what is left out, and why; empty where nothing is."""
        reasons = Counter(one.reason for one in self.left_out)
        parts = [f"{reason} ({count:,})" for reason, count in sorted(reasons.items())]
        parts += [f"{_ABOUT_IN_WORDS} ({self.about:,})"] if self.about else []
        remedy = _CONVERTED if any(one.convertible for one in self.left_out) else ""
        return f"Left out: {', '.join(parts)}.{remedy}" if parts else ""


def images_below(folder: Path) -> Found:
    """All images below a folder.

    Raises:
        DataError: a folder cannot be listed.
    """
    images: list[Path] = []
    left_out: list[LeftOut] = []
    about = 0
    read = _around(folder)
    # Folders before links to folders, so that files have the paths of their own places.
    folders, links = deque([folder]), deque[Path]()
    while folders or links:
        present = folders.popleft() if folders else links.popleft()
        place = _identity(present)
        if place in read:
            left_out.append(LeftOut(present, _AGAIN))
            continue
        read.add(place)
        for entry in entries(present):
            path = present / entry.name
            if is_folder(entry):
                (links if entry.is_symlink() else folders).append(path)
                continue
            reason = _reason(entry)
            if reason is None:
                images.append(path)
            elif reason:
                left_out.append(LeftOut(path, reason))
            else:
                about += 1
    return Found(
        tuple(sorted(images, key=Path.as_posix)),
        tuple(sorted(left_out, key=lambda one: one.path.as_posix())),
        about,
        sum(image.parent != folder for image in images),
    )


def folders_in(parent: Path) -> list[Path]:
    """The folders in a folder, and links to such, without junk, sorted by name.

    Links to the folder itself or to one around it are circles, and none of them.
    """
    return [parent / entry.name for entry in entries(parent) if is_folder(entry, parent)]


def left_beside(folders: Path) -> list[LeftOut]:
    """What is no folder of these, and may have been meant: images, and links in a circle."""
    left_out = []
    for entry in entries(folders):
        if not is_folder(entry):
            if _reason(entry) is None:
                left_out.append(LeftOut(folders / entry.name, _IN_NONE))
        elif not is_folder(entry, folders):
            left_out.append(LeftOut(folders / entry.name, _AGAIN))
    return left_out


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder but for junk, sorted by name; asks the disk for the listing alone.

    A data set has a million files, and most listings tell which entries are folders: a question
    about each would take minutes.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(
                (entry for entry in found if not is_junk(entry.name)),
                key=lambda entry: entry.name,
            )
    except OSError as error:
        raise _unreadable(folder, error) from error


def is_junk(name: str) -> bool:
    """Whether a file or folder of that name was left by a program, not meant by a person."""
    return name.startswith(".") or name.lower() in _JUNK or name.lower().endswith(_STREAM)


def is_folder(entry: os.DirEntry[str], parent: Path | None = None) -> bool:
    """Whether it is a folder, or a link to one: with `parent`, to none around that."""
    try:
        if not entry.is_dir() or parent is None or not entry.is_symlink():
            return entry.is_dir()
    except OSError:  # a link to itself
        return False
    return _identity(parent / entry.name) not in {*_around(parent), _identity(parent)}


def no_images(folder: Path, found: Found) -> DataError:
    """What every command says of a folder without an image."""
    return DataError(
        f"'{folder}' holds no pictures. {found.note}".strip(),
        remedy="Put pictures there, or remove it.",
    )


def _reason(entry: os.DirEntry[str]) -> str | None:
    """Why a file is no image: None where it is one, empty where nobody can have meant it so."""
    name = entry.name.lower()
    suffix = Path(name).suffix
    if suffix in _ABOUT or name in _ABOUT_NAMES:
        return ""
    try:
        if not entry.is_file():
            return _DEAD if entry.is_symlink() and not _exists(entry) else _NO_FILE
    except OSError:
        return _DEAD
    if suffix in SUFFIXES:
        return None
    return OTHER_SUFFIXES.get(suffix) or suffix or _NO_SUFFIX


def _exists(entry: os.DirEntry[str]) -> bool:
    return os.path.exists(entry.path)  # noqa: PTH110 # an entry has its path as text


def _identity(folder: Path) -> tuple[int, int]:
    try:
        about = folder.stat()
    except OSError as error:
        raise _unreadable(folder, error) from error
    return about.st_dev, about.st_ino


def _around(folder: Path) -> set[tuple[int, int]]:
    """The folders that a folder lies in, by the path that it is called by and by its real one."""
    named = Path(os.path.abspath(folder))  # noqa: PTH100 # links are not followed
    return {_identity(parent) for parent in (*named.parents, *folder.resolve().parents)}


def _unreadable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"'{folder}' cannot be listed: {error.strerror or error}.",
        remedy="Make it readable, or remove it.",
    )
