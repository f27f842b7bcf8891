"""Labelled images: a data set's classes and splits, the few-shot draw, the check of files, copies.

Every error is a `DataError` that names a file or a class and the remedy, before anything is sent.

A copy gives a fit the label of its twin, so that copies are held out together, and what is in two
classes or two splits is named. Images are the same where their files are, byte for byte, or where
whole answers about them are, number for number (another file of the same pixels).
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from stat import S_ISREG
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from craft_client.exceptions import DataError
from craft_shared.image_formats import CONVERT, FORMATS, IN_WORDS, MAX_ASPECT, other_format
from craft_shared.image_parts import TooManyPartsError, without_extras
from craft_shared.problems import FieldError
from craft_shared.wire import Limits

Split = Literal["train", "validation", "test"]
_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}

_LISTED_AT_MOST = 5

Array = NDArray[np.float32]
Groups = NDArray[np.int64]  # [N], the same number for copies of one image, from 0 without a gap

# Of fewer numbers an image, two images may have the same by chance.
_LEAST_NUMBERS = 16
_NAMED_AT_MOST = 3
_COMPARED_AT_MOST = 100_000
_WITHIN = "in one class, which are held out together"
_ACROSS = "in two classes"


class Sample(NamedTuple):
    """An image's file and its class, an index into the dataset's `classes`."""

    path: Path
    label: int


def split_called(name: str) -> Split | None:
    """The split that is called so, whatever the case of its letters; None if none is."""
    return _SPLIT_NAMES.get(name.lower())


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
    root: Path = Path()  # the folder, below which all images lie
    layout: str = ""  # how it was laid out, in words

    @property
    def splits(self) -> dict[Split, tuple[Sample, ...]]:
        """The images of each split that has some."""
        every: dict[Split, tuple[Sample, ...]] = {
            "train": self.train,
            "validation": self.validation,
            "test": self.test,
        }
        return {name: samples for name, samples in every.items() if samples}

    def split(self, name: Split) -> tuple[Sample, ...]:
        """The images of a split; raises DataError where it has none."""
        if name not in self.splits:
            present = ", ".join(f"'{split}'" for split in self.splits)
            raise DataError(
                f"The data '{self.name}' has no {name} split.",
                remedy=f"Name one that it has with --split: {present}.",
            )
        return self.splits[name]

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

    Raises:
        DataError: a class has no image, or with `strict` fewer than shots.
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
    files: Sequence[Path | bytes],
    limits: Limits,
    *,
    on_checked: Callable[[int], None] | None = None,
) -> list[str]:
    """The digest of each image's file, once all were opened: before anything is sent or charged.

    A JPEG is decoded at an eighth of its size, which finds a truncated file all the same.
    `on_checked` is called now and then with the number of images checked so far.

    Raises:
        DataError: files are missing, no image, truncated, or larger than the limits; all are
            counted and the first ones named.
    """
    found = digests_or_errors(files, limits.image_bytes, limits.image_pixels, on_checked=on_checked)
    bad = [one for one in found if isinstance(one, FieldError)]
    if bad:
        raise DataError(
            f"{len(bad)} of {len(files)} pictures cannot be used.", errors=first_errors(bad)
        )
    return [one for one in found if isinstance(one, str)]


def digests_or_errors(
    files: Sequence[Path | bytes],
    most_bytes: int,
    most_pixels: int,
    *,
    on_checked: Callable[[int], None] | None = None,
) -> list[str | FieldError]:
    """Of each image's file its digest, or what is wrong with it; see `check_images`."""

    def check(number: int, file: Path | bytes) -> FieldError | str:
        name = f"images[{number}]" if isinstance(file, bytes) else f"'{file}'"
        return _image_error(file, name, most_bytes, most_pixels) or digest_of(file)

    results: list[str | FieldError] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        # What Pillow only warns of is taken: odd metadata, and more pixels than its own bound,
        # which gives way to the model's.
        warnings.simplefilter("ignore")
        for number, found in enumerate(pool.map(check, count(), files), 1):
            results.append(found)
            if on_checked and (number % 50 == 0 or number == len(files)):
                on_checked(number)
    return results


def digest_of(file: Path | bytes) -> str:
    """What two files have in common only if they are the same, byte for byte."""
    data = file if isinstance(file, bytes) else file.read_bytes()
    return hashlib.sha256(data).hexdigest()[:32]


def digest_of_images(digests: Iterable[str], classes: Iterable[str]) -> str:
    """SHA-256 over images, by their files' digests, with their classes' names, in any order."""
    lines = sorted(f"{digest} {name}\n" for digest, name in zip(digests, classes, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def labels_of(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """The samples' classes [N]."""
    return np.array([sample.label for sample in samples], np.int64)


def _image_error(
    file: Path | bytes, name: str, most_bytes: int, most_pixels: int
) -> FieldError | None:
    """What is wrong with an image, or None."""

    def wrong(message: str, remedy: str) -> FieldError:
        return FieldError(field=name, message=message, remedy=remedy)

    try:
        if not isinstance(file, bytes) and not S_ISREG(file.stat().st_mode):
            return wrong("is not a file.", "Name a picture's file.")  # a pipe may never end
        size = len(file) if isinstance(file, bytes) else file.stat().st_size
        if size > most_bytes:
            message = f"has {size} bytes; the server accepts {most_bytes}."
            return wrong(message, "Save it smaller.")
        # As the server reads it: no text or profile beside the pixels, however long.
        data = file if isinstance(file, bytes) else file.read_bytes()
        with Image.open(io.BytesIO(without_extras(data)), formats=FORMATS) as picture:
            sides = f"{picture.width} x {picture.height} pixels"
            if picture.width * picture.height > most_pixels:
                message = f"has {sides}; the server accepts {most_pixels} in all."
                return wrong(message, "Save it smaller.")
            if max(picture.size) > MAX_ASPECT * max(1, min(picture.size)):
                return wrong(
                    f"is {sides}; a side may be {MAX_ASPECT} times the other at most.",
                    "Crop it; the model sees a square from its middle.",
                )
            picture.draft("L", (1, 1))
            picture.load()
    except TooManyPartsError as error:
        message = f"cannot be used: {error}, far more than a picture needs."
        return wrong(message, "Save it again as a plain JPEG.")
    except Image.DecompressionBombError:
        return wrong("is absurdly large.", "Replace it by a real picture.")
    except UnidentifiedImageError:
        if other := other_format(data):
            return wrong(f"is {other}, which no server reads.", CONVERT)
        remedy = f"Remove it, or convert it to one of {IN_WORDS}."
        return wrong("is not a picture that a server reads.", remedy)
    # Pillow's decoders raise a different exception for each format's kind of damage, OSError among
    # them; what the system raises has a number.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            remedy = "Name a file that is there and that you may read."
            return wrong(f"cannot be opened: {error.strerror}.", remedy)
        remedy = "It is truncated or damaged: replace or remove it."
        return wrong(f"cannot be read as a picture: {error}.", remedy)
    return None


def first_errors(errors: Iterable[FieldError]) -> list[FieldError]:
    """The first few errors, and how many more there are."""
    every = list(errors)
    more = len(every) - _LISTED_AT_MOST
    rest = [FieldError(field="...", message=f"and {more} more.")] if more > 0 else []
    return every[:_LISTED_AT_MOST] + rest


def groups_of(digests: Sequence[str] | None, count: int) -> Groups:
    """Which of so many images are copies of one, by their files' digests, where they are known."""
    if digests is None:
        return np.arange(count)
    return _dense(np.unique(np.asarray(digests, dtype=str), return_inverse=True)[1])


def with_equal_answers(groups: Groups, log_probs: Array) -> Groups:
    """The groups, joined where all the log-probabilities [P, N, C + M] of images are equal."""
    answers = log_probs.transpose(1, 0, 2).reshape(len(groups), -1)
    if answers.shape[1] < _LEAST_NUMBERS:
        return groups
    _, same = np.unique(answers, axis=0, return_inverse=True)
    # Images are joined with their groups, and these with all that answer alike.
    alike = groups.max(initial=-1) + 1 + same.reshape(-1)
    nodes = int(alike.max(initial=-1)) + 1
    joined = coo_array((np.ones(len(groups)), (groups, alike)), shape=(nodes, nodes))
    return _dense(connected_components(joined, directed=False)[1][groups])


def notes(
    samples: Sequence[Sample],
    digests: Sequence[str],
    others: Iterable[tuple[Split | None, Sample, str]] = (),
) -> tuple[str, ...]:
    """What is said of copies, a line each: in one class, in two classes, and in other splits.

    `others` are further images of the data, each with the name of its split, or None where that is
    the samples' own.
    """
    known: dict[str, dict[int, Sample]] = {}  # the first of each class, by digest
    pairs: dict[str, list[tuple[str, str]]] = {}

    def add(where: str, twin: Sample, sample: Sample) -> None:
        pairs.setdefault(where, []).append((str(twin.path), str(sample.path)))

    for sample, digest in zip(samples, digests, strict=True):
        twins = known.setdefault(digest, {})
        if sample.label in twins:
            add(_WITHIN, twins[sample.label], sample)
        elif twins:
            add(_ACROSS, next(iter(twins.values())), sample)
        twins.setdefault(sample.label, sample)
    for split, other, digest in others:
        twins = known.get(digest, {})
        if twins and split is not None:
            add(f"in the {split} split too", next(iter(twins.values())), other)
        elif twins and other.label not in twins:
            add(_ACROSS, next(iter(twins.values())), other)
    return tuple(_line(found, where) for where, found in pairs.items())


def in_common(
    tuned: Mapping[str, str], samples: Sequence[Sample], digests: Sequence[str]
) -> tuple[str, ...]:
    """A line on images that were tuned on (names by digest), if any is among the samples."""
    pairs = [
        (tuned[digest], str(sample.path))
        for sample, digest in zip(samples, digests, strict=True)
        if digest in tuned
    ]
    return (_line(pairs, "that were tuned on too"),) if pairs else ()


def twins_of(
    samples: Sequence[Sample], others: Sequence[tuple[Split | None, Sample]]
) -> Iterator[tuple[Split | None, Sample, str]]:
    """Others, with digests, that may be copies of the samples: of their sizes, if not too many."""
    sizes = {sample.path.stat().st_size for sample in samples}
    for split, other in others if len(others) <= _COMPARED_AT_MOST else ():
        with suppress(OSError):
            if other.path.stat().st_size in sizes:
                yield split, other, digest_of(other.path)


def _line(pairs: Sequence[tuple[str, str]], where: str) -> str:
    named = [f"'{one}' and '{other}'" for one, other in pairs[:_NAMED_AT_MOST]]
    more = ["..."] if len(pairs) > _NAMED_AT_MOST else []
    return f"Copies of one picture {where} ({len(pairs):,}): {', '.join([*named, *more])}."


def _dense(groups: NDArray[np.integer[Any]]) -> Groups:
    """The same groups, numbered from 0 in the order in which they come."""
    _, first, numbers = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    dense: Groups = rank[numbers.reshape(-1)]
    return dense
