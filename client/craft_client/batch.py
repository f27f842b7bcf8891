"""Classifies any number of picture files into a CSV file, and goes on where it was cut off.

Rows are written after each call; a call whose answer was paid for but not written is made again
under the same idempotency key, so that it is not charged twice. A picture that cannot be used has a
row that says why. This module knows files and rows; it does not know how a call is made.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from craft_client.api import AdapterPrediction
from craft_client.exceptions import DataError, InvalidImage, LimitExceeded, picture_position
from craft_client.folders import LeftOut
from craft_client.remote_adapter import RemoteAdapter
from craft_client.uploads import bodies
from craft_shared.files import write_whole
from craft_shared.printing import printable
from craft_shared.text_files import NotTextError, line_of, rows_of
from craft_shared.units import Units

_FIXED = ("image", "adapter", "error", "abstained")


@dataclass(frozen=True)
class BatchProgress:
    """How far it has come.

    Attributes:
        done: pictures that have a row, from earlier runs too.
        total: pictures.
        failed: pictures of this run that could not be used.
        charged: by this run.
    """

    done: int
    total: int
    failed: int
    charged: Units


class Results:
    """The CSV file: one row a picture, in the order in which they were classified.

    Columns: `image`, `adapter` (`OWNER/NAME@VERSION`), `error`, `abstained` (1 or 0; empty without
    a threshold), then `class_1`, `probability_1` and so on, the most probable class first.

    Args:
        file: where; made when the first rows are written.
        top: how many classes a row names.

    Raises:
        DataError: the file is there and is not such a one.
    """

    def __init__(self, file: Path, top: int) -> None:
        self.file = file
        self.adapter: str | None = None
        self.images: set[str] = set()
        ranks = (
            f"{column}_{rank + 1}" for rank in range(top) for column in ("class", "probability")
        )
        self._columns = [*_FIXED, *ranks]
        if file.exists():
            self._read()

    def append(self, rows: Sequence[Sequence[object]]) -> None:
        """Adds rows; they are on disk when it returns."""
        empty = not self.file.exists() or not self.file.stat().st_size
        text = line_of(self._columns) if empty else ""
        for row in rows:
            text += line_of([*row, *[""] * (len(self._columns) - len(row))])
        with self.file.open("ab") as file:
            file.write(text.encode(errors="surrogateescape"))
            file.flush()
            os.fsync(file.fileno())
        self.images |= {str(row[0]) for row in rows}

    def append_left_out(self, left_out: Sequence[LeftOut], adapter: str) -> None:
        """Adds rows of what is no image to this program; those that have one keep it."""
        new = [one for one in left_out if str(one.path) not in self.images]
        if new:
            self.append([[one.path, adapter, f"left out: {one.reason}"] for one in new])

    def _read(self) -> None:
        data = self.file.read_bytes()
        whole = _whole_rows(data)
        try:
            header, *rows = [row for row in rows_of(whole) if row] or [self._columns]
        except NotTextError:
            header, rows = [], []
        if header != self._columns or any(len(row) < len(_FIXED) for row in rows):
            raise DataError(
                f"'{self.file}' was not written by this command, or names another number of "
                "classes.",
                remedy="Name another file with --out.",
            )
        if len(whole) < len(data):  # the machine stopped in the middle of a line
            write_whole(self.file, whole)
        self.images = {row[0] for row in rows}
        named = {row[1] for row in rows}
        if len(named) > 1:
            raise DataError(
                f"'{self.file}' holds predictions of several adapters.",
                remedy="Name another file with --out.",
            )
        self.adapter = next(iter(named), None)


def _whole_rows(data: bytes) -> bytes:
    """The bytes without what follows the last whole row; a name in quotes may hold line ends."""
    end = data.rfind(b"\n") + 1
    while data.count(b'"', 0, end) % 2:
        end = data.rfind(b"\n", 0, end - 1) + 1
    return data[:end]


def classify_files(
    adapter: RemoteAdapter,
    images: Sequence[Path],
    results: Results,
    *,
    top: int,
    abstain_below: float | None = None,
    on_progress: Callable[[BatchProgress], None] = lambda progress: None,
) -> BatchProgress:
    """Classifies the pictures that have no row yet.

    Args:
        adapter: by which; the results' own, where they have rows.
        images: files; their paths are what rows call them.
        results: gets a row for each.
        top: how many classes a row names, at most C.
        abstain_below: as in `Client.adapter_predict`.
        on_progress: called after each call.

    Raises:
        ProblemError: the server refused a call for another reason than a picture. What was
            classified until then is in the results.
    """
    left = [image for image in images if str(image) not in results.images]
    progress = BatchProgress(len(images) - len(left), len(images), 0, Units())
    on_progress(progress)
    for chunk in _chunks(left, adapter):
        pictures, errors = _read_pictures(chunk, adapter)
        answer = None
        while pictures and answer is None:
            try:
                answer = adapter.client.adapter_predict(
                    adapter.reference,
                    images=list(pictures.values()),
                    top_k=top,
                    abstain_below=abstain_below,
                    idempotency_key=_key(adapter, pictures, top, abstain_below),
                )
            except InvalidImage as error:
                # Refused as a whole, at no charge: the others are sent again without it.
                refused = _refused(error, list(pictures))
                errors |= refused
                pictures = {path: data for path, data in pictures.items() if path not in refused}
        rows = dict(zip(pictures, _rows(adapter, list(pictures), answer), strict=True))
        failed = {path: [path, adapter.reference, error] for path, error in errors.items()}
        results.append([(rows | failed)[path] for path in chunk])
        progress = BatchProgress(
            progress.done + len(chunk),
            progress.total,
            progress.failed + len(failed),
            progress.charged + (Units() if answer is None else answer.cost.charged),
        )
        on_progress(progress)
    return progress


def calls_of(adapter: RemoteAdapter, images: Sequence[Path]) -> int:
    """How many calls these files take."""
    return sum(1 for _ in _chunks(images, adapter))


def _chunks(images: Sequence[Path], adapter: RemoteAdapter) -> Iterator[list[Path]]:
    """Groups files by count and size, so that a call's body keeps within the limits."""
    limits = adapter.limits

    def size_of(image: Path) -> int:
        size = image.stat().st_size if image.is_file() else 0
        # What is not there, or too large, is not sent.
        return 0 if size > limits.image_bytes else size

    return bodies(images, size_of, limits)


def _read_pictures(
    chunk: Sequence[Path], adapter: RemoteAdapter
) -> tuple[dict[Path, bytes], dict[Path, str]]:
    """The files' bytes, and why some cannot be read."""
    pictures: dict[Path, bytes] = {}
    errors: dict[Path, str] = {}
    for image in chunk:
        try:
            data = image.read_bytes()
        except OSError as error:
            errors[image] = error.strerror or str(error)
            continue
        if len(data) > adapter.limits.image_bytes:
            allowed = adapter.limits.image_bytes
            errors[image] = f"{len(data)} bytes; the server accepts {allowed}"
        else:
            pictures[image] = data
    return pictures, errors


def _refused(error: InvalidImage, sent: Sequence[Path]) -> dict[Path, str]:
    positions = ((picture_position(field.field), field.message) for field in error.errors)
    refused = {sent[index]: message for index, message in positions if index is not None}
    if not refused:
        raise error
    return refused


def _key(
    adapter: RemoteAdapter, pictures: dict[Path, bytes], top: int, abstain_below: float | None
) -> str:
    """The same for the same call, whenever it is made."""
    digest = hashlib.sha256(repr((adapter.reference, top, abstain_below)).encode())
    for data in pictures.values():
        digest.update(hashlib.sha256(data).digest())
    return f"batch/{digest.hexdigest()}"


def _rows(
    adapter: RemoteAdapter, images: Sequence[Path], answer: AdapterPrediction | None
) -> Iterator[list[object]]:
    if answer is None:
        return
    if answer.top_classes is None:
        raise LimitExceeded("The server did not answer the most probable classes.")
    probabilities = answer.probabilities
    for index, image in enumerate(images):
        abstained = "" if answer.abstained is None else int(answer.abstained[index])
        best: list[str] = []
        for rank, number in enumerate(answer.top_classes[index].tolist()):
            shown = "" if probabilities is None else f"{probabilities[index, rank]:.6f}"
            best += (printable(answer.classes[number]), shown)
        yield [image, adapter.reference, "", abstained, *best]
