"""Data sets on disk: which files are images, which classes and splits they are in.

A class folder is read as torchvision's `ImageFolder` does: whatever lies below it, at any depth and
through links, by the suffixes of its files, in the order of paths. Each folder is read once, so
that links which lead in a circle, or twice to one place, double nothing. What operating systems,
archives and tools leave behind is passed over in silence; what somebody may have meant as an image
is left out with a reason. These layouts are understood:

- split folders: `train/CLASS/*`, optionally `validation/CLASS/*` (or `val`, `valid`) and
  `test/CLASS/*`;
- flat: `CLASS/*`, all of it training images;
- a list: a CSV file of `path,label,split`, whose paths lie below its own folder; without the column
  `split` all are training images, and rows without a label are left out;
- CoOp: a file `split_zhou_*.json` with lists `train`, `val` and `test` of [path, label, name], and
  the images in the folder itself or in one below it;
- FGVC Aircraft: `variants.txt`, lists `images_variant_*.txt` and the images in `images`;
- ImageNet and the four data sets of its classes on which robustness is measured: `classnames.txt`
  and the images as CoOp's instructions have them, ImageNet's validation images as the test
  split. The four have a test split alone, and those of the classes that have images there;
- a data set of Hugging Face, as `craft_client.huggingface` unpacks it.

Class names are folder names, or those of the lists, with underscores as spaces. Every error is a
`DataError` that names a file, a folder or a class and the remedy.
"""

from __future__ import annotations

import glob
import json
import os
import unicodedata
from collections import Counter, deque
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

from craft_client import huggingface
from craft_client.data import Dataset, Sample, Split, first_errors, split_called
from craft_client.exceptions import DataError
from craft_shared.image_formats import OTHER_SUFFIXES, SUFFIXES
from craft_shared.names import REMEDY, fault, same_text
from craft_shared.problems import FieldError
from craft_shared.text_files import NotTextError, lines_of, read_text, rows_of
from craft_shared.wire.messages import LONGEST_CLASS_NAME

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
_DEAD_REMEDY = (
    "{} is a link that leads nowhere, to '{}': bring back what is missing there, or copy the data "
    "again with links followed (cp -rL)."
)
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


def images_named(place: Path) -> Found:
    """A file, all images below a folder, or those of a data set of Hugging Face.

    Raises:
        DataError: there are none, or they cannot be listed.
    """
    folder = huggingface.unpacked(place).parent if huggingface.is_one(place) else place
    found = images_below(folder) if folder.is_dir() else Found((place,))
    if not found.images:
        raise no_images(place, found)
    return found


def folders_in(parent: Path) -> list[Path]:
    """The folders in a folder, and links to such, without junk, sorted by name.

    Links to the folder itself or to one around it are circles, and none of them.
    """
    return [parent / entry.name for entry in entries(parent) if is_folder(entry, parent)]


def left_beside(folders: Path) -> list[LeftOut]:
    """What is no folder of these, and may have been meant: images, links in a circle or nowhere."""
    left_out = []
    for entry in entries(folders):
        if not is_folder(entry):
            if (reason := _reason(entry)) in (None, _DEAD):
                left_out.append(LeftOut(folders / entry.name, reason or _IN_NONE))
        elif not is_folder(entry, folders):
            left_out.append(LeftOut(folders / entry.name, _AGAIN))
    return left_out


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder but for junk, sorted by name; asks the disk for the listing alone.

    A data set has a million files: a question about each would take minutes.

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
    remedy = "Put pictures there, or remove it."
    for path, reason in found.left_out:
        if reason == _DEAD:
            remedy = _DEAD_REMEDY.format(f"'{path}'", path.readlink())
            break
    return DataError(f"'{folder}' holds no pictures. {found.note}".strip(), remedy=remedy)


def _reason(entry: os.DirEntry[str]) -> str | None:
    """Why a file is no image: None where it is one, empty where nobody can have meant it so."""
    name = entry.name.lower()
    suffix = Path(name).suffix
    if suffix in _ABOUT or name in _ABOUT_NAMES:
        return ""
    try:
        if not entry.is_file():
            return _DEAD if _is_dead(entry) else _NO_FILE
    except OSError:
        return _DEAD
    if suffix in SUFFIXES:
        return None
    return OTHER_SUFFIXES.get(suffix) or suffix or _NO_SUFFIX


def _is_dead(entry: os.DirEntry[str]) -> bool:
    """Whether it is a link that leads nowhere."""
    return entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110 # a path as text


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


_LIST_COLUMNS = ("path", "label", "split")
_COOP_LISTS: dict[str, Split] = {"train": "train", "val": "validation", "test": "test"}
_COOP_PATTERN = "split_zhou_*.json"
_AIRCRAFT_LISTS: dict[Split, str] = {
    "train": "images_variant_train.txt",
    "validation": "images_variant_val.txt",
    "test": "images_variant_test.txt",
}
# Where ImageNet, -V2, -Sketch, -A and -R have a split's class folders.
_IMAGENET_FOLDERS: dict[str, Split] = {
    "images/train/n[0-9]*": "train",
    "images/val/n[0-9]*": "test",
    "imagenetv2-matched-frequency-format-val/[0-9]*": "test",
    "images/n[0-9]*": "test",
    "imagenet-a/n[0-9]*": "test",
    "imagenet-r/n[0-9]*": "test",
}
_IMAGENET_NAMES = "classnames.txt"
# CoOp's list is that of CLIP's authors, in which each of these has the name of another class (a
# missile, sunglasses). A model that is asked by name cannot tell two such classes apart, and the
# protocol has no two alike: these two go by WordNet's first name for them.
_IMAGENET_TWINS = {"n04008634": "projectile", "n04355933": "sunglass"}
_DEPTH = 4  # folders below a data set's in which its images are looked for
_WITHOUT_CLASSES = "a split without class folders"


def load_dataset(folder: Path) -> Dataset:
    """Finds the classes and splits below a folder, or in a list. Opens no image.

    Raises:
        DataError: it is no folder of images in one of the layouts; the message says why.
        MissingPackage: it is a data set of Hugging Face, and `datasets` is not installed.
    """
    if huggingface.is_one(folder):
        listed = huggingface.unpacked(folder)
        return replace(_load_list(listed), layout=f"Hugging Face, unpacked in {listed.parent}")
    if folder.suffix.lower() == ".csv" and folder.is_file():
        return _load_list(folder)
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(
            f"'{folder}' {state}.", remedy="Name a folder of pictures, a folder a class."
        )
    # As it is called here, though it may be a link to data that are called otherwise.
    name = Path(os.path.abspath(folder)).name  # noqa: PTH100
    coop_files = sorted(folder.glob(_COOP_PATTERN))
    if len(coop_files) > 1:
        found = ", ".join(f"'{path.name}'" for path in coop_files)
        raise DataError(
            f"'{folder}' has more than one CoOp split: {found}.", remedy="Leave only one there."
        )
    if coop_files:
        return _load_coop(name, folder, coop_files[0])
    if any((folder / listed).exists() for listed in _AIRCRAFT_LISTS.values()):
        return _load_aircraft(name, folder)
    splits = _imagenet_splits(folder)
    if splits:
        return _load_imagenet(name, folder, splits)
    splits = _split_folders(folder)
    beside = [
        LeftOut(path, _WITHOUT_CLASSES if split_called(path.name) else "beside the splits")
        for path in (folders_in(folder) if splits else ())
        if path not in splits.values()
    ]
    splits = splits or {"train": folder}
    class_folders = {split: _class_folders(path) for split, path in splits.items()}
    for path in splits.values():
        beside += left_beside(path)
    layout = "split folders" if splits.get("train") != folder else "class folders"
    return _load_folders(folder, name, layout, class_folders, Found(left_out=tuple(beside)))


# --- folders ----------------------------------------------------------------------------------


def _load_folders(
    root: Path,
    name: str,
    layout: str,
    class_folders: Mapping[Split, Mapping[str, Path]],
    beside: Found,
) -> Dataset:
    """Lists each split's class folders, given by class name; the training split's classes count."""
    first: Split = "train" if "train" in class_folders else "test"
    classes = tuple(class_folders[first])
    everything = beside
    # Splits were packed by different systems, which write one name in different forms.
    labels = {same_text(class_name): label for label, class_name in enumerate(classes)}
    samples: dict[Split, tuple[Sample, ...]] = {}
    for split, folders in class_folders.items():
        for class_name, folder in folders.items():
            if same_text(class_name) not in labels:
                raise DataError(
                    f"'{folder}' is a class that the {first} split does not have.",
                    remedy="Give it training pictures, or remove it.",
                )
        found = {class_name: images_below(folder) for class_name, folder in folders.items()}
        for class_name, of_class in found.items():
            if not of_class.images:
                raise no_images(folders[class_name], of_class)
        samples[split] = tuple(
            Sample(path, labels[same_text(class_name)])
            for class_name, of_class in found.items()
            for path in of_class.images
        )
        everything = sum(found.values(), everything)
    return Dataset(name, classes, _notes(everything), **samples, root=root, layout=layout)


def _notes(found: Found) -> tuple[str, ...]:
    deeper = (
        f"{found.deeper:,} pictures lie in folders below their class's, and are taken as the "
        "class's own."
    )
    notes = deeper if found.deeper else "", found.note
    return tuple(note for note in notes if note)


def _split_folders(folder: Path) -> dict[Split, Path]:
    """The folders of the splits; none when the layout is flat (a class may be called "train").

    Raises:
        DataError: two are one split, or all folders are called as splits are and are none.
    """
    splits: dict[Split, Path] = {}
    classless: list[Path] = []
    for entry in entries(folder):
        if split_called(entry.name) and _is_dead(entry):
            dead = folder / entry.name
            raise DataError(
                f"A split of '{folder}' is not there.",
                remedy=_DEAD_REMEDY.format(f"'{dead}'", dead.readlink()),
            )
    for path in folders_in(folder):
        split = split_called(path.name)
        if split in splits:
            raise DataError(
                f"'{splits[split]}' and '{path}' are both the {split} split.",
                remedy="Put their pictures together.",
            )
        if split and (folders_in(path) or not entries(path)):
            splits[split] = path
        elif split:
            classless.append(path)
    if len(classless) > 1 and classless == folders_in(folder):
        named = " and ".join(f"'{path}'" for path in classless)
        raise DataError(
            f"{named} are called as splits are, and have no class folders.",
            remedy="Put each class's pictures into a folder of its own in each of them.",
        )
    return splits if splits.keys() & {"train", "test"} else {}


def _class_folders(parent: Path) -> dict[str, Path]:
    """The class folders below a folder by class name, sorted by folder name."""
    folders = folders_in(parent)
    if not folders:
        raise DataError(
            f"'{parent}' has no class folders.",
            remedy="Put each class's pictures into a folder of its own there.",
        )
    _check_class_names([(_class_name(path.name), f"'{path}'") for path in folders])
    if len(folders) == 1 and len(folders_in(folders[0])) > 1 and not _has_images(folders[0]):
        raise DataError(
            f"'{parent}' holds one folder, '{folders[0].name}', and that holds folders.",
            remedy=f"If these are the classes, name '{folders[0]}'. If it is a data set of CoOp's, "
            "put its list of splits (split_zhou_*.json) beside that folder.",
        )
    return {_class_name(path.name): path for path in folders}


def _has_images(folder: Path) -> bool:
    return any(not is_folder(entry) and _reason(entry) is None for entry in entries(folder))


# --- CoOp -------------------------------------------------------------------------------------


def _load_coop(name: str, folder: Path, split_file: Path) -> Dataset:
    """Reads a CoOp split file (Zhou et al., 2022, https://github.com/KaiyangZhou/CoOp)."""
    entries = _coop_entries(split_file)
    names: dict[int, str] = {}
    for _, label, class_name in (entry for of_split in entries.values() for entry in of_split):
        if same_text(names.setdefault(label, class_name)) != same_text(class_name):
            raise DataError(
                f"'{split_file}' gives label {label} two names: '{names[label]}' and "
                f"'{class_name}'.",
                remedy="Correct the file.",
            )
    if sorted(names) != list(range(len(names))) or not names:
        raise DataError(
            f"The labels in '{split_file}' are not 0, 1, 2, ... without a gap.",
            remedy="Correct the file.",
        )
    classes = [(_class_name(names[label]), f"label {label}") for label in range(len(names))]
    _check_class_names(classes)
    root = _coop_root(folder, [path for of_split in entries.values() for path, _, _ in of_split])
    samples = {
        split: tuple(
            sorted(
                (Sample(root / path, label) for path, label, _ in of_split),
                key=lambda sample: sample.path.as_posix(),
            )
        )
        for split, of_split in entries.items()
    }
    return Dataset(
        name,
        tuple(class_name for class_name, _ in classes),
        (),
        **samples,
        root=folder,
        layout=f"CoOp, {split_file.name}",
    )


def _coop_entries(split_file: Path) -> dict[Split, list[tuple[str, int, str]]]:
    """The split file's entries, each checked."""
    try:
        document = json.loads(read_text(split_file))
    except (OSError, ValueError) as error:
        raise DataError(
            f"'{split_file}' cannot be read as JSON: {error}.", remedy="Download it again."
        ) from error
    entries: dict[Split, list[tuple[str, int, str]]] = {}
    for key, split in _COOP_LISTS.items():
        listed = document.get(key, []) if isinstance(document, dict) else None
        if not isinstance(listed, list):
            raise DataError(
                f"'{split_file}' has no list '{key}'.",
                remedy="It is an object with lists 'train', 'val' and 'test'.",
            )
        entries[split] = [
            _coop_entry(split_file, f"{key}[{index}]", entry) for index, entry in enumerate(listed)
        ]
    return entries


def _coop_entry(split_file: Path, where: str, entry: Any) -> tuple[str, int, str]:
    match entry:
        case [str(path), int(label), str(class_name)] if path and class_name.strip():
            _check_inside(path, f"'{split_file}', {where}")
            return path, label, class_name
    raise DataError(
        f"'{split_file}', {where} is not [path, label, class name].", remedy="Correct the file."
    )


def _coop_root(folder: Path, paths: Sequence[str]) -> Path:
    """The folder under which the split's paths lie: the data folder or one directly below it.

    Raises:
        DataError: files are missing; they are counted and the first ones named.
    """
    candidates = [folder, *folders_in(folder)]
    root = next(
        (parent for path in paths for parent in candidates if (parent / path).is_file()), None
    )
    if root is None:
        # A link that leads nowhere lies where it should.
        root = next(
            (parent for path in paths for parent in candidates if (parent / path).is_symlink()),
            None,
        )
    if root is None:
        raise DataError(
            f"None of the {len(paths)} pictures that the split file lists is in '{folder}'.",
            errors=first_errors(
                FieldError(field=f"'{path}'", message="is missing.") for path in paths
            ),
            remedy=_remedy_of_missing(folder, paths),
        )
    _check_present(root, paths, "the split file lists")
    return root


def _remedy_of_missing(folder: Path, paths: Sequence[str]) -> str:
    """Where the first listed image is, if its folder is elsewhere, or called otherwise."""
    for entry in entries(folder):
        if _is_dead(entry):
            dead = folder / entry.name
            return _DEAD_REMEDY.format(f"'{dead}'", dead.readlink())
    parts = [glob.escape(part) for part in Path(paths[0]).parts] if paths else []
    for start, depth in product(range(len(parts)), range(_DEPTH)):
        pattern = "/".join([*["*"] * depth, *parts[start:]])
        found = list(islice(folder.glob(pattern), 2))
        if len(found) == 1:
            return (
                f"'{found[0]}' seems to be the first of them: move or rename folders so that it "
                f"is '{folder / paths[0]}'."
            )
    return "Put the folder of pictures beside the split file."


def _check_present(root: Path, paths: Sequence[str], which: str) -> None:
    """Raises DataError where files are missing: it counts them and names the first ones."""
    missing = [path for path in paths if not (root / path).is_file()]
    if not missing:
        return
    dead = [path for path in missing if (root / path).is_symlink()]
    remedy = "Unpack the pictures again, or correct the list."
    if dead:
        remedy = _DEAD_REMEDY.format(f"'{root / dead[0]}'", (root / dead[0]).readlink())
    raise DataError(
        f"{len(missing)} of the {len(paths)} pictures that {which} are not in '{root}'.",
        errors=first_errors(
            FieldError(field=f"'{path}'", message="is missing.") for path in missing
        ),
        remedy=remedy,
    )


def _check_inside(path: str, where: str) -> None:
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise DataError(
            f"{where}: '{path}' leads out of the folder.",
            remedy="Use paths relative to the folder of pictures.",
        )


# --- lists --------------------------------------------------------------------------------------


def _load_list(listed: Path) -> Dataset:
    """Reads a CSV file of paths, labels and splits, its classes sorted by name."""
    try:
        head, *rows = rows_of(listed.read_bytes()) or [[]]
    except (OSError, NotTextError) as error:
        raise DataError(f"'{listed}' cannot be read: {error}.", remedy="Write it anew.") from error
    columns = [cell.strip().lower() for cell in head]
    if not {"path", "label"} <= set(columns) or len(set(columns)) < len(columns):
        raise DataError(
            f"The first line of '{listed}' does not name the columns path and label, once each.",
            remedy=f"Begin it with the line {','.join(_LIST_COLUMNS)} (split may be left out).",
        )
    entries: list[tuple[str, str, Split]] = []
    unlabelled = 0
    for number, row in enumerate(rows, start=2):
        if not any(row):
            continue
        cells = dict(zip(columns, row, strict=False))
        path, label = cells.get("path", ""), _class_name(cells.get("label", ""))
        split = split_called(cells.get("split", "train").strip())
        if not path or split is None or len(row) != len(columns):
            raise DataError(
                f"'{listed}', row {number} is no path, label and split, but: {', '.join(row)}.",
                remedy="Correct the row; splits are train, validation and test.",
            )
        _check_inside(path, f"'{listed}', row {number}")
        if label:
            entries.append((path, label, split))
        else:
            unlabelled += 1
    names = sorted({label for _, label, _ in entries})
    if not names:
        raise DataError(f"'{listed}' lists no picture with a label.", remedy="Add some.")
    _check_class_names([(name, f"'{listed}'") for name in names])
    labels = {name: label for label, name in enumerate(names)}
    root = listed.parent
    _check_present(root, [path for path, _, _ in entries], f"'{listed}' lists")
    samples: dict[Split, list[Sample]] = {"train": [], "validation": [], "test": []}
    for path, label, split in entries:
        samples[split].append(Sample(root / path, labels[label]))
    by_path = {
        split: tuple(sorted(some, key=lambda sample: sample.path.as_posix()))
        for split, some in samples.items()
    }
    note = f"{unlabelled:,} pictures without a label are left out."
    return Dataset(
        Path(os.path.abspath(root)).name,  # noqa: PTH100
        tuple(names),
        (note,) if unlabelled else (),
        **by_path,
        root=root,
        layout=f"a list, {listed.name}",
    )


# --- FGVC Aircraft ------------------------------------------------------------------------------


def _load_aircraft(name: str, folder: Path) -> Dataset:
    """Reads FGVC Aircraft (Maji et al., 2013) by variant, its classes in the order of the file."""
    variants_file = folder / "variants.txt"
    variants = _lines(variants_file)
    classes = [
        (_class_name(variant), f"'{variants_file}', line {number}") for number, variant in variants
    ]
    _check_class_names(classes)
    labels = {variant: label for label, (_, variant) in enumerate(variants)}
    images = folder / "images"
    present = {path.name for path in images.iterdir()} if images.is_dir() else set()
    samples = {
        split: _aircraft_samples(folder / listed, images, present, labels)
        for split, listed in _AIRCRAFT_LISTS.items()
    }
    return Dataset(
        name,
        tuple(class_name for class_name, _ in classes),
        (),
        **samples,
        root=folder,
        layout="FGVC Aircraft",
    )


def _aircraft_samples(
    list_file: Path, images: Path, present: Container[str], labels: Mapping[str, int]
) -> tuple[Sample, ...]:
    """The images that a split's list names, sorted by path; `present` are the files there."""
    samples = []
    missing = []
    for number, line in _lines(list_file):
        image, _, variant = line.partition(" ")
        if variant not in labels:
            raise DataError(
                f"'{list_file}', line {number}: '{variant}' is no line of 'variants.txt'.",
                remedy="Unpack the data set's lists again.",
            )
        if f"{image}.jpg" not in present:
            missing.append(FieldError(field=f"'{image}.jpg'", message="is missing."))
        samples.append(Sample(images / f"{image}.jpg", labels[variant]))
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(samples)} pictures that '{list_file}' lists are not in "
            f"'{images}'.",
            errors=first_errors(missing),
            remedy="Unpack the pictures again.",
        )
    return tuple(sorted(samples, key=lambda sample: sample.path.as_posix()))


# --- ImageNet -----------------------------------------------------------------------------------


def _imagenet_splits(folder: Path) -> dict[Split, Path]:
    """The folders of the splits of ImageNet or one of the four; none when it is something else."""
    return {
        split: (folder / pattern).parent
        for pattern, split in _IMAGENET_FOLDERS.items()
        if any(path.is_dir() for path in folder.glob(pattern))
    }


def _load_imagenet(name: str, folder: Path, splits: Mapping[Split, Path]) -> Dataset:
    """Reads class folders called by WordNet's numbers, or counted in their order (ImageNetV2)."""
    names = _imagenet_names(folder / _IMAGENET_NAMES)
    counted = {str(count): class_name for count, class_name in enumerate(names.values())}
    return _load_folders(
        folder,
        name,
        "ImageNet",
        {split: _numbered_folders(path, names | counted) for split, path in splits.items()},
        Found(),
    )


def _numbered_folders(parent: Path, names: Mapping[str, str]) -> dict[str, Path]:
    """The class folders below a folder by class name, in the order of `names`, by folder name."""
    folders = {path.name: path for path in folders_in(parent)}
    for number, folder in folders.items():
        if number not in names:
            raise DataError(
                f"'{folder}' is no class that '{_IMAGENET_NAMES}' names.",
                remedy=f"Add it to '{_IMAGENET_NAMES}', or remove the folder.",
            )
    return {names[number]: folders[number] for number in names if number in folders}


def _imagenet_names(names_file: Path) -> dict[str, str]:
    """The class names by WordNet number, in the order of the numbers."""
    names: dict[str, str] = {}
    places: dict[str, str] = {}
    for count, line in _lines(names_file):
        number, _, class_name = line.partition(" ")
        places[number] = f"'{names_file}', line {count}"
        if number in names:
            raise DataError(
                f"{places[number]}: '{number}' is named a second time.", remedy="Correct the file."
            )
        names[number] = _class_name(class_name)
    for number, own_name in _IMAGENET_TWINS.items():
        if number in names and list(names.values()).count(names[number]) > 1:
            names[number] = own_name
    _check_class_names([(class_name, places[number]) for number, class_name in names.items()])
    return dict(sorted(names.items()))


# --- names and lists ----------------------------------------------------------------------------


def _lines(path: Path) -> list[tuple[int, str]]:
    """A text file's lines with their numbers, without those that are empty."""
    try:
        return lines_of(read_text(path))
    except (OSError, NotTextError) as error:
        raise DataError(
            f"'{path}' cannot be read: {error}.", remedy="Download or unpack it again."
        ) from error


def _class_name(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).replace("_", " ").split())


def _check_class_names(names: Sequence[tuple[str, str]]) -> None:
    """Checks (class name, where it stands): not empty, not too long, sound, no two alike."""
    for name, where in names:
        if not name or len(name) > LONGEST_CLASS_NAME:
            raise DataError(
                f"{where}: the class name '{name[:40]}' has {len(name)} characters.",
                remedy=f"Use 1 to {LONGEST_CLASS_NAME} characters.",
            )
        if found := fault(name):
            raise DataError(f"{where}: the class name '{name}' {found}.", remedy=REMEDY)
    counts = Counter(same_text(name) for name, _ in names)
    twins = [(name, where) for name, where in names if counts[same_text(name)] > 1]
    if twins:
        raise DataError(
            "Two classes have the same name to a model (case, forms of letters and signs and "
            "white space do not count, underscores are spaces).",
            errors=first_errors(
                FieldError(field=where, message=f"is class '{name}'.")
                for name, where in sorted(twins, key=lambda twin: same_text(twin[0]))
            ),
            remedy="Rename one, or put their pictures together.",
        )
