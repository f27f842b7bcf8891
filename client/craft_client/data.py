"""Labelled images: a data set as classes and splits, the draw of few shots, the check of files.

Every error is a `DataError` that names a file or a class and the remedy, before anything is sent.

How a data set lies in its folder is for `craft_client.layouts`.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image, UnidentifiedImageError

from craft_client.exceptions import DataError
from craft_shared.image_formats import CONVERT, FORMATS, IN_WORDS, MAX_ASPECT, other_format
from craft_shared.image_parts import TooManyPartsError, without_extras
from craft_shared.problems import FieldError
from craft_shared.wire import Limits

Split = Literal["train", "validation", "test"]

_LISTED_AT_MOST = 5


class Sample(NamedTuple):
    """An image's file and its class, an index into the dataset's `classes`."""

    path: Path
    label: int


@dataclass(frozen=True)
class Dataset:
    """A folder of images as classes and splits."""

    name: str  # the folder's
    classes: tuple[str, ...]  # class names, in label order
    # What is to be said of how the folder was read, such as what was left out, a line each.
    notes: tuple[str, ...] = ()
    train: tuple[Sample, ...] = ()  # the training images, sorted by path
    validation: tuple[Sample, ...] = ()  # likewise; empty when there is no such split
    test: tuple[Sample, ...] = ()  # likewise; empty when there is no such split

    def split(self, name: Split) -> tuple[Sample, ...]:
        """The images of a split.

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

    def beside(self, drawn: Iterable[Sample]) -> list[tuple[Split | None, Sample]]:
        """All images but those drawn from the training split, which is called None here."""
        known = set(drawn)
        others: list[tuple[Split | None, Sample]] = []
        others += [(None, sample) for sample in self.train if sample not in known]
        others += [("validation", sample) for sample in self.validation]
        others += [("test", sample) for sample in self.test]
        return others


def few_shot(
    samples: Iterable[Sample],
    shots: int,
    seed: int,
    classes: Sequence[str],
    *,
    strict: bool = False,
) -> tuple[Sample, ...]:
    """Draws the same number of images of every class; of one with fewer, all that there are.

    One `random.Random(seed)` draws `sample(pictures, shots)` for each class in label order, its
    images sorted by path: the same files and seed give the same images on every machine.

    Args:
        samples: what to draw from.
        shots: images a class.
        seed: names the draw.
        classes: class names, in label order.
        strict: refuses classes with fewer images than shots.

    Returns:
        At most len(classes) * shots samples, class by class.

    Raises:
        DataError: a class has no image, or with `strict` fewer than shots; all such classes are
            named.
    """
    by_class: list[list[Sample]] = [[] for _ in classes]
    for sample in sorted(samples, key=lambda sample: sample.path.as_posix()):
        by_class[sample.label].append(sample)
    counts = [len(of_class) for of_class in by_class]
    least = shots if strict else 1
    if min(counts) < least:
        few = [(name, n) for name, n in zip(classes, counts, strict=True) if n < least]
        raise DataError(
            f"{len(few)} of {len(classes)} classes have fewer training pictures than the {shots} "
            "shots."
            if strict
            else f"{len(few)} of {len(classes)} classes have no training picture.",
            errors=first_errors(
                FieldError(field=f"class '{name}'", message=f"has {count}.") for name, count in few
            ),
            remedy=f"Add pictures to these classes, or use --shots {min(counts)} at most."
            if min(counts)
            else "Add pictures to these classes, or leave out those that have none.",
        )
    # Reproducible draws, not secrets.
    draw = random.Random(seed)  # noqa: S311
    return tuple(
        sample
        for of_class in by_class
        for sample in draw.sample(of_class, min(shots, len(of_class)))
    )


def fewer_note(samples: Sequence[Sample], shots: int, classes: Sequence[str]) -> str:
    """One line on the classes of which fewer images were drawn than shots; empty without any."""
    counts = Counter(sample.label for sample in samples)
    few = [
        f"'{name}' {counts[label]}" for label, name in enumerate(classes) if counts[label] < shots
    ]
    if not few:
        return ""
    named = ", ".join([*few[:_LISTED_AT_MOST], *(["..."] if len(few) > _LISTED_AT_MOST else [])])
    return (
        f"{len(few):,} of {len(classes):,} classes have fewer pictures than the {shots:,} shots; "
        f"all that there are, are taken: {named}."
    )


def check_images(
    files: Sequence[Path],
    limits: Limits,
    *,
    on_checked: Callable[[int], None] | None = None,
) -> list[str]:
    """Opens every image, so that a bad one is reported before anything is sent or charged.

    A JPEG is decoded at an eighth of its size, which finds a truncated file all the same.

    `on_checked` is called now and then with the number of images checked so far.

    Returns:
        The digest of each file, as `digest_of`.

    Raises:
        DataError: files that are missing, no image, truncated, or larger than the limits; all
            are counted and the first ones named.
    """

    def check(file: Path) -> FieldError | str:
        return _image_error(file, limits) or digest_of(file)

    bad: list[FieldError] = []
    digests: list[str] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        # What Pillow only warns of is taken: odd metadata, and more pixels than its own bound,
        # which gives way to the model's.
        warnings.simplefilter("ignore")
        for number, found in enumerate(pool.map(check, files), 1):
            if isinstance(found, FieldError):
                bad.append(found)
            else:
                digests.append(found)
            if on_checked and (number % 50 == 0 or number == len(files)):
                on_checked(number)
    if bad:
        raise DataError(
            f"{len(bad)} of {len(files)} pictures cannot be used.", errors=first_errors(bad)
        )
    return digests


def digest_of(file: Path | bytes) -> str:
    """What two files have in common only if they are the same, byte for byte."""
    data = file if isinstance(file, bytes) else file.read_bytes()
    return hashlib.sha256(data).hexdigest()[:32]


def image_bytes_of(samples: Sequence[Sample]) -> int:
    """How many bytes the images' files have together."""
    return sum(sample.path.stat().st_size for sample in samples)


def _image_error(path: Path, limits: Limits) -> FieldError | None:
    """What is wrong with an image, or None."""
    where = f"'{path}'"
    try:
        size = path.stat().st_size
        if size > limits.image_bytes:
            return FieldError(
                field=where,
                message=f"has {size} bytes; the server accepts {limits.image_bytes}.",
                remedy="Save it smaller.",
            )
        # As the server reads it: no text or profile beside the pixels, however long.
        data = path.read_bytes()
        with Image.open(io.BytesIO(without_extras(data)), formats=FORMATS) as picture:
            pixels = picture.width * picture.height
            if pixels > limits.image_pixels:
                return FieldError(
                    field=where,
                    message=f"has {picture.width} x {picture.height} pixels; the server accepts "
                    f"{limits.image_pixels} in all.",
                    remedy="Save it smaller.",
                )
            if max(picture.size) > MAX_ASPECT * max(1, min(picture.size)):
                return FieldError(
                    field=where,
                    message=f"is {picture.width} x {picture.height} pixels; a side may be "
                    f"{MAX_ASPECT} times the other at most.",
                    remedy="Crop it; the model sees a square from its middle.",
                )
            picture.draft("L", (1, 1))
            picture.load()
    except TooManyPartsError as error:
        return FieldError(
            field=where,
            message=f"cannot be used: {error}, far more than a picture needs.",
            remedy="Save it again as a plain JPEG.",
        )
    except Image.DecompressionBombError:
        return FieldError(
            field=where, message="is absurdly large.", remedy="Replace it by a real picture."
        )
    except UnidentifiedImageError:
        other = other_format(data)
        if other:
            return FieldError(
                field=where, message=f"is {other}, which no server reads.", remedy=CONVERT
            )
        return FieldError(
            field=where,
            message="is not a picture that a server reads.",
            remedy=f"Remove it, or convert it to one of {IN_WORDS}.",
        )
    # Pillow's decoders raise a different exception for each format's kind of damage, OSError among
    # them; what the system raises has a number.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            return FieldError(
                field=where,
                message=f"cannot be opened: {error.strerror}.",
                remedy="Name a file that is there and that you may read.",
            )
        return FieldError(
            field=where,
            message=f"cannot be read as a picture: {error}.",
            remedy="It is truncated or damaged: replace or remove it.",
        )
    return None


def first_errors(errors: Iterable[FieldError]) -> list[FieldError]:
    """The first few errors, and how many more there are."""
    every = list(errors)
    more = len(every) - _LISTED_AT_MOST
    rest = [FieldError(field="...", message=f"and {more} more.")] if more > 0 else []
    return every[:_LISTED_AT_MOST] + rest
