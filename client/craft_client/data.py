"""Pictures on disk: finds classes and splits, draws the few shots, checks pictures before upload.

Three layouts are understood:

- split folders: `train/CLASS/*`, optionally `validation/CLASS/*` (or `val`) and `test/CLASS/*`;
- flat: `CLASS/*`, all of it training pictures;
- CoOp: a file `split_zhou_*.json` with lists `train`, `val` and `test` of [path, label, name], and
  the pictures in the folder itself or in one below it.

Class names are folder names, or CoOp's names, with underscores as spaces. Every error is a
`DataError` that names a file, a folder or a class and the remedy, before anything is sent.

It knows files and Pillow; it does not know HTTP, nor what a picture costs.
"""

from __future__ import annotations

import json
import os
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image, UnidentifiedImageError

from craft_client.exceptions import DataError
from craft_shared.problems import FieldError
from craft_shared.wire import LONGEST_CLASS_NAME, PICTURE_FORMATS, PICTURE_MAX_ASPECT, Limits

Split = Literal["train", "validation", "test"]

_SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "test": "test",
}
_COOP_LISTS: dict[str, Split] = {"train": "train", "val": "validation", "test": "test"}
_COOP_PATTERN = "split_zhou_*.json"
# What operating systems, archives and people leave beside pictures.
_JUNK = frozenset(
    {
        "thumbs.db",
        "desktop.ini",
        "__macosx",
        "readme",
        "readme.txt",
        "readme.md",
        "license",
        "license.txt",
    }
)
_TOLD_AT_MOST = 5


class Sample(NamedTuple):
    """A picture's file and its class, an index into the dataset's `classes`."""

    path: Path
    label: int


@dataclass(frozen=True)
class Dataset:
    """A folder of pictures as classes and splits.

    Attributes:
        name: the folder's name.
        classes: class names, in label order.
        train: the training pictures, sorted by path.
        validation: likewise; empty when there is no such split.
        test: likewise; empty when there is no such split.
    """

    name: str
    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    test: tuple[Sample, ...]

    def split(self, name: Split) -> tuple[Sample, ...]:
        """The pictures of a split.

        Raises:
            DataError: the split has none.
        """
        samples: dict[Split, tuple[Sample, ...]] = {
            "train": self.train,
            "validation": self.validation,
            "test": self.test,
        }
        if not samples[name]:
            present = ", ".join(f"'{split}'" for split, found in samples.items() if found)
            raise DataError(
                f"The data '{self.name}' has no {name} split.",
                remedy=f"Name one that it has with --split: {present}.",
            )
        return samples[name]


def load_dataset(folder: Path) -> Dataset:
    """Finds the classes and splits below a folder. Opens no picture.

    Raises:
        DataError: it is no folder of pictures in one of the layouts; the message says why.
    """
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(
            f"'{folder}' {state}.", remedy="Name a folder of pictures, a folder a class."
        )
    name = folder.resolve().name
    coop_files = sorted(folder.glob(_COOP_PATTERN))
    if len(coop_files) > 1:
        found = ", ".join(f"'{path.name}'" for path in coop_files)
        raise DataError(
            f"'{folder}' has more than one CoOp split: {found}.", remedy="Leave only one there."
        )
    if coop_files:
        return _load_coop(name, folder, coop_files[0])
    splits = _split_folders(folder)
    return _load_folders(name, splits or {"train": folder})


def few_shot(
    samples: Iterable[Sample], shots: int, seed: int, classes: Sequence[str]
) -> tuple[Sample, ...]:
    """Draws the same number of pictures of every class.

    One `random.Random(seed)` draws `sample(pictures, shots)` for each class in label order, its
    pictures sorted by path: the same files and seed give the same pictures on every machine.

    Args:
        samples: what to draw from.
        shots: pictures a class.
        seed: names the draw.
        classes: class names, in label order.

    Returns:
        len(classes) * shots samples, class by class.

    Raises:
        DataError: a class has fewer pictures than shots; all such classes are named.
    """
    by_class: list[list[Sample]] = [[] for _ in classes]
    for sample in sorted(samples, key=lambda sample: sample.path.as_posix()):
        by_class[sample.label].append(sample)
    counts = [len(of_class) for of_class in by_class]
    if min(counts) < shots:
        raise DataError(
            f"{sum(count < shots for count in counts)} of {len(classes)} classes have fewer "
            f"training pictures than the {shots} shots.",
            errors=_told(
                FieldError(field=f"class '{name}'", message=f"has {count}.")
                for name, count in zip(classes, counts, strict=True)
                if count < shots
            ),
            remedy=f"Add pictures to these classes, or use --shots {min(counts)} at most."
            if min(counts)
            else "Add pictures to these classes, or leave out those that have none.",
        )
    # Reproducible draws, not secrets.
    draw = random.Random(seed)  # noqa: S311
    return tuple(sample for of_class in by_class for sample in draw.sample(of_class, shots))


def check_pictures(
    samples: Sequence[Sample],
    limits: Limits,
    *,
    on_checked: Callable[[int], None] | None = None,
) -> None:
    """Opens every picture, so that a bad one is told before anything is sent or charged.

    A JPEG is decoded at an eighth of its size, which finds a truncated file all the same.

    Args:
        samples: the pictures.
        limits: the model's.
        on_checked: called now and then with the number of pictures checked so far.

    Raises:
        DataError: files that are no picture, truncated, or larger than the limits; all are counted
            and the first ones named.
    """

    def check(sample: Sample) -> FieldError | None:
        return _picture_error(sample.path, limits)

    bad: list[FieldError] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        # Pillow's own bound on pixels gives way to the model's, which is checked before decoding.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for number, error in enumerate(pool.map(check, samples), 1):
            if error:
                bad.append(error)
            if on_checked and (number % 50 == 0 or number == len(samples)):
                on_checked(number)
    if bad:
        raise DataError(f"{len(bad)} of {len(samples)} pictures cannot be used.", errors=_told(bad))


def _picture_error(path: Path, limits: Limits) -> FieldError | None:
    """What is wrong with a picture, or None."""
    where = f"'{path}'"
    try:
        size = path.stat().st_size
        if size > limits.image_bytes:
            return FieldError(
                field=where,
                message=f"has {size} bytes; the server accepts {limits.image_bytes}.",
                remedy="Save it smaller.",
            )
        with Image.open(path, formats=PICTURE_FORMATS) as picture:
            pixels = picture.width * picture.height
            if pixels > limits.image_pixels:
                return FieldError(
                    field=where,
                    message=f"has {picture.width} x {picture.height} pixels; the server accepts "
                    f"{limits.image_pixels} in all.",
                    remedy="Save it smaller.",
                )
            if max(picture.size) > PICTURE_MAX_ASPECT * max(1, min(picture.size)):
                return FieldError(
                    field=where,
                    message=f"is {picture.width} x {picture.height} pixels; a side may be "
                    f"{PICTURE_MAX_ASPECT} times the other at most.",
                    remedy="Crop it; the model sees a square from its middle.",
                )
            picture.draft("L", (1, 1))
            picture.load()
    except Image.DecompressionBombError:
        return FieldError(
            field=where, message="is absurdly large.", remedy="Replace it by a real picture."
        )
    except UnidentifiedImageError:
        return FieldError(
            field=where,
            message="is not a picture that a server reads.",
            remedy=f"Remove it, or convert it to one of {', '.join(PICTURE_FORMATS)}.",
        )
    # Pillow's decoders raise a different exception for each format's kind of damage.
    except Exception as error:
        return FieldError(
            field=where,
            message=f"cannot be read as a picture: {error}.",
            remedy="It is truncated or damaged: replace or remove it.",
        )
    return None


# --- folders ----------------------------------------------------------------------------------


def _load_folders(name: str, splits: dict[Split, Path]) -> Dataset:
    """Reads `CLASS/*` below each split's folder; the training split's classes count."""
    class_folders = {split: _class_folders(path) for split, path in splits.items()}
    first: Split = "train" if "train" in splits else "test"
    classes = tuple(class_folders[first])
    labels = {class_name: label for label, class_name in enumerate(classes)}
    samples: dict[Split, tuple[Sample, ...]] = {}
    for split, folders in class_folders.items():
        for class_name, folder in folders.items():
            if class_name not in labels:
                raise DataError(
                    f"'{folder}' is a class that '{splits[first]}' does not have.",
                    remedy="Give it training pictures, or remove it.",
                )
        samples[split] = tuple(
            Sample(path, labels[class_name])
            for class_name, folder in folders.items()
            for path in _pictures(folder)
        )
    return Dataset(
        name,
        classes,
        samples.get("train", ()),
        samples.get("validation", ()),
        samples.get("test", ()),
    )


def _split_folders(folder: Path) -> dict[Split, Path]:
    """The folders of the splits; none when the layout is flat (a class may be called "train")."""
    splits: dict[Split, Path] = {}
    for path in _folders(folder):
        split = _SPLIT_FOLDERS.get(path.name.lower())
        if split in splits:
            raise DataError(
                f"'{splits[split]}' and '{path}' are both the {split} split.",
                remedy="Put their pictures together.",
            )
        if split and (_folders(path) or not any(path.iterdir())):
            splits[split] = path
    return splits if splits.keys() & {"train", "test"} else {}


def _class_folders(parent: Path) -> dict[str, Path]:
    """The class folders below a folder by class name, sorted by folder name."""
    folders = _folders(parent)
    if not folders:
        raise DataError(
            f"'{parent}' has no class folders.",
            remedy="Put each class's pictures into a folder of its own there.",
        )
    _check_class_names([(_class_name(path.name), f"'{path}'") for path in folders])
    return {_class_name(path.name): path for path in folders}


def _pictures(folder: Path) -> list[Path]:
    """The files of a class folder that claim to be pictures, sorted by name."""
    pictures: list[Path] = []
    suffixes = _picture_suffixes()
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if _is_junk(path):
            continue
        suffix = path.suffix.lower()
        if path.is_dir() or (suffix and suffix not in suffixes):
            what = "a folder" if path.is_dir() else "not a picture"
            raise DataError(
                f"'{path}' is {what}.", remedy="A class folder holds only pictures: remove it."
            )
        pictures.append(path)
    if not pictures:
        raise DataError(
            f"The class folder '{folder}' holds no pictures.",
            remedy="Put pictures there, or remove the folder.",
        )
    return pictures


def _folders(parent: Path) -> list[Path]:
    return sorted(
        (path for path in parent.iterdir() if path.is_dir() and not _is_junk(path)),
        key=lambda path: path.name,
    )


def _is_junk(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in _JUNK


def _picture_suffixes() -> set[str]:
    return {
        suffix for suffix, kind in Image.registered_extensions().items() if kind in PICTURE_FORMATS
    }


# --- CoOp -------------------------------------------------------------------------------------


def _load_coop(name: str, folder: Path, split_file: Path) -> Dataset:
    """Reads a CoOp split file (Zhou et al., 2022, https://github.com/KaiyangZhou/CoOp)."""
    entries = _coop_entries(split_file)
    names: dict[int, str] = {}
    for _, label, class_name in (entry for of_split in entries.values() for entry in of_split):
        if names.setdefault(label, class_name) != class_name:
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
        samples["train"],
        samples["validation"],
        samples["test"],
    )


def _coop_entries(split_file: Path) -> dict[Split, list[tuple[str, int, str]]]:
    """The split file's entries, each checked."""
    try:
        document = json.loads(split_file.read_text(encoding="utf-8"))
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
            if Path(path).is_absolute() or ".." in Path(path).parts:
                raise DataError(
                    f"'{split_file}', {where}: '{path}' leads out of the folder.",
                    remedy="Use paths relative to the folder of pictures.",
                )
            return path, label, class_name
    raise DataError(
        f"'{split_file}', {where} is not [path, label, class name].", remedy="Correct the file."
    )


def _coop_root(folder: Path, paths: Sequence[str]) -> Path:
    """The folder under which the split's paths lie: the data folder or one directly below it.

    Raises:
        DataError: files are missing; they are counted and the first ones named.
    """
    candidates = [folder, *_folders(folder)]
    root = next(
        (parent for path in paths for parent in candidates if (parent / path).is_file()), None
    )
    if root is None:
        raise DataError(
            f"None of the {len(paths)} pictures that the split file lists is in '{folder}'.",
            errors=_told(FieldError(field=f"'{path}'", message="is missing.") for path in paths),
            remedy="Put the folder of pictures beside the split file.",
        )
    missing = [path for path in paths if not (root / path).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(paths)} pictures that the split file lists are not in "
            f"'{root}'.",
            errors=_told(FieldError(field=f"'{path}'", message="is missing.") for path in missing),
            remedy="Unpack the pictures again, or correct the split file.",
        )
    return root


# --- names and errors ---------------------------------------------------------------------------


def _class_name(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


def _check_class_names(names: Sequence[tuple[str, str]]) -> None:
    """Checks (class name, where it stands): not empty, not too long, no two alike."""
    for name, where in names:
        if not name or len(name) > LONGEST_CLASS_NAME:
            raise DataError(
                f"{where}: the class name '{name[:40]}' has {len(name)} characters.",
                remedy=f"Use 1 to {LONGEST_CLASS_NAME} characters.",
            )
    counts = Counter(name.casefold() for name, _ in names)
    twins = [(name, where) for name, where in names if counts[name.casefold()] > 1]
    if twins:
        raise DataError(
            "Two classes have the same name (underscores count as spaces, case does not count).",
            errors=_told(
                FieldError(field=where, message=f"is class '{name}'.")
                for name, where in sorted(twins, key=lambda twin: twin[0].casefold())
            ),
            remedy="Rename one, or put their pictures together.",
        )


def _told(errors: Iterable[FieldError]) -> list[FieldError]:
    """The first few errors, and how many more there are."""
    every = list(errors)
    more = len(every) - _TOLD_AT_MOST
    rest = [FieldError(field="...", message=f"and {more} more.")] if more > 0 else []
    return every[:_TOLD_AT_MOST] + rest
