"""Classifies any number of image files with a published adapter: the one way to ask it.

Calls are as large as the limits allow. An image that the server refuses is left out of its call,
which costs nothing then, and the others are sent again. What is kept of answers, on the screen or
in a file, is for `craft_client.results`; how a call is made, for `craft_client.api`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from craft_client.exceptions import InvalidImage, picture_position
from craft_client.remote_adapter import RemoteAdapter
from craft_client.results import Call, Results, Row, Rows
from craft_shared.units import Units


@dataclass(frozen=True)
class BatchProgress:
    """How far it has come."""

    done: int  # images that have a row, from earlier runs too
    total: int
    failed: int = 0  # images of this run that could not be used
    charged: Units = field(default_factory=Units)  # by this run
    # Images of calls that may have been charged, and that cannot be made again, because some of
    # their images have changed or are gone.
    changed: int = 0


def restore(
    adapter: RemoteAdapter, images: Sequence[Path], results: Results, abstain_below: float | None
) -> int:
    """Writes the rows that were paid for and that the file has lost. Free.

    Returns:
        How many.
    """
    return sum(
        results.restore(str(image), digest, adapter.reference, abstain_below)
        for image in images
        if str(image) not in results.images
        and results.may_restore(str(image))
        and (digest := _digest(image)) is not None
    )


def to_ask(adapter: RemoteAdapter, images: Sequence[Path], results: Results) -> list[Path]:
    """The images that have no row and are in no call that may have been charged."""
    asked = {path for call in results.unanswered(adapter.reference) for path, _ in call.images}
    return [image for image in images if str(image) not in results.images | asked]


def classify_files(
    adapter: RemoteAdapter,
    images: Sequence[Path],
    rows: Rows,
    *,
    top: int,
    abstain_below: float | None = None,
    on_progress: Callable[[BatchProgress], None] = lambda progress: None,
) -> BatchProgress:
    """Classifies the images that have no row yet.

    Calls that may have been charged, and whose answers were not stored, are made again first.

    Args:
        adapter: by which; a file's own, where it has rows.
        images: files; their paths are what rows call them.
        rows: gets a row for each.
        top: how many classes a row names, at most C.
        abstain_below: as in `Client.adapter_predict`.
        on_progress: called after each call.

    Raises:
        ProblemError: the server refused a call for another reason than an image. What was
            classified until then is in the rows.
        DataError: an image cannot be used, and `rows` takes none of these.
    """
    wanted = {str(image) for image in images}
    progress = BatchProgress(len(wanted & rows.images), len(images))
    on_progress(progress)

    def ask(contents: dict[str, bytes], failed: Sequence[Row], below: float | None) -> None:
        nonlocal progress
        found, charged = _classified(adapter, contents, rows, top, below)
        by_image = {row.image: row for row in (*found, *failed)}
        rows.add(sorted(by_image.values(), key=lambda row: order.get(row.image, len(order))))
        progress = replace(
            progress,
            done=len(wanted & rows.images),
            failed=progress.failed + sum(bool(row.error) for row in by_image.values()),
            charged=progress.charged + charged,
        )
        on_progress(progress)

    order = {str(image): number for number, image in enumerate(images)}
    for call in rows.unanswered(adapter.reference) if isinstance(rows, Results) else ():
        missing = {path for path, _ in call.images} & wanted - rows.images
        same = _unchanged(call)
        if missing and same is None:
            progress = replace(progress, changed=progress.changed + len(missing))
        elif missing and same is not None:
            ask(same, [], call.abstain_below)
    left = [image for image in images if str(image) not in rows.images]
    for chunk in _chunks(left, adapter, top):
        contents, failed = _read_files(chunk, adapter)
        ask(contents, failed, abstain_below)
    return progress


def calls_of(adapter: RemoteAdapter, images: Sequence[Path], top: int) -> int:
    """How many calls these files take."""
    return sum(1 for _ in _chunks(images, adapter, top))


def _classified(
    adapter: RemoteAdapter,
    contents: dict[str, bytes],
    rows: Rows,
    top: int,
    abstain_below: float | None,
) -> tuple[list[Row], Units]:
    """The rows of some images, and what they were charged."""
    failed: list[Row] = []
    while contents:
        digests = {path: hashlib.sha256(data).hexdigest() for path, data in contents.items()}
        key = _key(adapter.reference, top, abstain_below, list(digests.values()))
        call = Call(key, adapter.reference, top, abstain_below, tuple(digests.items()))
        rows.begin(call)
        try:
            answer = adapter.client.adapter_predict(
                adapter.reference,
                images=list(contents.values()),
                top_k=top,
                abstain_below=abstain_below,
                classes=adapter.card.classes,
                idempotency_key=key if rows.goes_on else None,
            )
        except InvalidImage as error:
            refused = _refused(error, list(contents), adapter.reference)
            rows.refuse(call, refused)
            failed += refused
            contents = {
                path: data
                for path, data in contents.items()
                if path not in {row.image for row in refused}
            }
            continue
        flags = [None] * len(contents) if answer.abstained is None else answer.abstained.tolist()
        found = [
            Row(path, adapter.reference, "", abstained, best)
            for path, abstained, best in zip(contents, flags, answer.best(top), strict=True)
        ]
        rows.end(call, found)
        return found + failed, answer.cost.charged
    return failed, Units()


def _unchanged(call: Call) -> dict[str, bytes] | None:
    """A call's images, if all are what they were."""
    contents: dict[str, bytes] = {}
    for path, digest in call.images:
        try:
            contents[path] = Path(path).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(contents[path]).hexdigest() != digest:
            return None
    return contents


def _chunks(images: Sequence[Path], adapter: RemoteAdapter, top: int) -> Iterator[list[Path]]:
    """Groups files by count and size, so that a call and its answer keep within the limits."""
    allowed = adapter.limits.image_bytes

    def size_of(image: Path) -> int:
        size = image.stat().st_size if image.is_file() else 0
        # What is not there, or too large, is not sent.
        return 0 if size > allowed else size

    return adapter.picture_calls(images, size_of, top)


def _read_files(
    chunk: Sequence[Path], adapter: RemoteAdapter
) -> tuple[dict[str, bytes], list[Row]]:
    """The files' bytes, and rows of those that cannot be used."""
    contents: dict[str, bytes] = {}
    failed: list[Row] = []
    for image in chunk:
        try:
            data = image.read_bytes()
        except OSError as error:
            failed.append(Row(str(image), adapter.reference, error.strerror or str(error)))
            continue
        if len(data) > adapter.limits.image_bytes:
            reason = f"{len(data)} bytes; the server accepts {adapter.limits.image_bytes}"
            failed.append(Row(str(image), adapter.reference, reason))
        else:
            contents[str(image)] = data
    return contents, failed


def _refused(error: InvalidImage, sent: Sequence[str], adapter: str) -> list[Row]:
    positions = ((picture_position(one.field), one.message) for one in error.errors)
    refused = {sent[index]: message for index, message in positions if index is not None}
    if not refused:
        raise error
    return [Row(path, adapter, message) for path, message in refused.items()]


def _digest(image: Path) -> str | None:
    try:
        return hashlib.sha256(image.read_bytes()).hexdigest()
    except OSError:
        return None


def _key(adapter: str, top: int, abstain_below: float | None, digests: Sequence[str]) -> str:
    """The same for the same call, whenever it is made."""
    digest = hashlib.sha256(repr((adapter, top, abstain_below)).encode())
    for one in digests:
        digest.update(bytes.fromhex(one))
    return f"batch/{digest.hexdigest()}"
