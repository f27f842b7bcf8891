"""Data sets of Hugging Face as files: images byte for byte as they are, and a list of them.

They are read by the library `datasets` (the extra `datasets`), once: the images and the list lie in
`$XDG_CACHE_HOME/craftbox/data` (`~/.cache`) from then on, under what the library calls the data's
fingerprint. Named are one of the Hub's, `hf:NAME`, at a revision `hf:NAME@REVISION`, and where
several columns hold labels `hf:NAME#COLUMN`; or a folder that `save_to_disk` wrote or that holds
Parquet files, by its path alone or after `hf:`.

The image column and the label column are told by their features (`Image`, `ClassLabel`; of text a
column called `label`), the splits by their names.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from craft_client.data import split_called
from craft_client.exceptions import DataError, MissingPackage
from craft_client.pictures import file
from craft_shared.image_formats import FORMATS, SUFFIXES_OF
from craft_shared.text_files import line_of

PREFIX = "hf:"
LIST = "list.csv"
_SAVED = ("dataset_dict.json", "state.json")
_PARQUET = ("*.parquet", "data/*.parquet")
_LABEL = "label"


def is_one(data: Path) -> bool:
    """Whether it names a data set of Hugging Face, or is a folder that holds one."""
    return (
        str(data).startswith(PREFIX)
        or any((data / name).is_file() for name in _SAVED)
        or (_holds_parquet(data) and not _holds_more(data))
    )


def _holds_parquet(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in _PARQUET)


def _holds_more(folder: Path) -> bool:
    """Whether it has folders beside `data`, as all other layouts have, among which tables lie."""
    return any(
        entry.is_dir() and entry.name != "data" and not entry.name.startswith(".")
        for entry in folder.iterdir()
    )


def unpacked(data: Path) -> Path:
    """The list of a data set's images, `path,label,split`, which lie beside it.

    Raises:
        MissingPackage: `datasets` is not installed.
        DataError: there is no such data set, or its columns or splits cannot be told.
    """
    name, revision, column = _parts(data)
    try:
        import datasets
    except ImportError as error:
        raise MissingPackage(
            f"'{data}' is a data set of Hugging Face, and datasets is not installed.",
            remedy="pip install 'craftbox[datasets]'",
        ) from error
    found = _loaded(datasets, name, revision)
    splits: dict[str, Any] = {
        split: rows for called, rows in found.items() if (split := split_called(called))
    }
    if not splits:
        raise DataError(
            f"'{data}' has no split of a known name: {_listed(found)}.",
            remedy="Rename its splits to train, validation and test, and save_to_disk.",
        )
    of_each = {_columns(datasets, data, rows.features, column) for rows in splits.values()}
    if len(of_each) > 1:
        raise DataError(
            f"The splits of '{data}' hold images or labels in columns of different names.",
            remedy="Rename them alike, and save_to_disk.",
        )
    (columns,) = of_each
    about = repr([*columns, *((split, rows._fingerprint) for split, rows in splits.items())])
    place = _cache() / hashlib.sha256(about.encode()).hexdigest()[:16]
    listed: Path = place / (Path(name).name or Path(name).resolve().name) / LIST
    if not listed.is_file():
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as unfinished:
            whole = Path(unfinished, "whole")
            _write(datasets, splits, columns, whole)
            with suppress(OSError):  # another process was faster
                whole.rename(listed.parent)
    return listed


def _parts(data: Path) -> tuple[str, str | None, str | None]:
    """The name or path, the revision, and the label column."""
    if not str(data).startswith(PREFIX):
        return str(data), None, None
    text = str(data).removeprefix(PREFIX)
    name, _, column = (text, "", "") if Path(text).is_dir() else text.partition("#")
    name, _, revision = (name, "", "") if Path(name).is_dir() else name.partition("@")
    return name, revision or None, column or None


def _loaded(datasets: Any, name: str, revision: str | None) -> Mapping[str, Any]:
    """The splits by name."""
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        if any(Path(name, saved).is_file() for saved in _SAVED):
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, revision=revision)
    except Exception as error:  # of many kinds: the library's, the network's, of damaged files
        said = str(error).strip().partition("\n")[0]
        raise DataError(
            f"'{name}' cannot be read as a data set of Hugging Face: {said}",
            remedy="Check its name, download it again, or name a folder that holds it.",
        ) from error
    finally:
        if not bars:
            datasets.enable_progress_bars()
    if isinstance(found, datasets.Dataset):
        return {str(found.split or "train"): found}
    splits: Mapping[str, Any] = found
    return splits


def _columns(
    datasets: Any, data: Path, features: Mapping[str, Any], wanted: str | None
) -> tuple[str, str]:
    """Which columns hold the images and the labels."""
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    texts = [name for name, kind in features.items() if getattr(kind, "dtype", "") == "string"]
    if len(images) != 1:
        raise DataError(
            f"'{data}' has {len(images)} image columns: {_listed(features)}.",
            remedy="Keep one, of the feature Image, and save_to_disk.",
        )
    if wanted in (*labels, *texts):
        return images[0], str(wanted)
    if wanted is None:
        if _LABEL in (*labels, *texts):
            return images[0], _LABEL
        if len(labels) == 1:
            return images[0], labels[0]
    which = f"'{wanted}' holds none" if wanted else f"{len(labels)} columns hold some"
    raise DataError(
        f"Which column of '{data}' holds the labels cannot be told: {which}. Its columns: "
        f"{_listed(features)}.",
        remedy="Name a column of class labels or of text: --data 'hf:NAME#COLUMN'.",
    )


def _write(
    datasets: Any, splits: Mapping[str, Any], columns: tuple[str, str], folder: Path
) -> None:
    image, label = columns
    lines = [line_of(("path", "label", "split"))]
    for split, rows in splits.items():
        (folder / split).mkdir(parents=True)
        kind = rows.features[label]
        encoded = rows.select_columns([image, label]).with_format(None)
        encoded = encoded.cast_column(image, datasets.Image(decode=False))
        for number, row in enumerate(encoded):
            data = file(row[image], f"{split}[{number}]")
            path = f"{split}/{number:07}{_suffix(data)}"
            (folder / path).write_bytes(data)
            named = row[label] if isinstance(row[label], str) else _name(kind, row[label])
            lines.append(line_of((path, named, split)))
    (folder / LIST).write_text("".join(lines), errors="surrogateescape")


def _name(kind: Any, number: int | None) -> str:
    """A class's name; nothing where a row has no label."""
    return "" if number is None or number < 0 else str(kind.int2str(number))


def _suffix(data: bytes) -> str:
    """What files of an image's format are called; nothing for what is no image."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return SUFFIXES_OF[str(picture.format)][0]
    except (UnidentifiedImageError, OSError, ValueError, KeyError, Image.DecompressionBombError):
        return ""


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "craftbox" / "data"


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}'" for name in names)
