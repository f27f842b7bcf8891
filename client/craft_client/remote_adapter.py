"""A published adapter over HTTP: classifies image sets and files, in as few calls as limits allow.

An image file that the server refuses is left out of its call, which costs nothing then, and the
others are sent again. What becomes of the answers, on the screen or in a file, is for
`craft_client.results`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from craft_client.api import Client
from craft_client.exceptions import InvalidImage, picture_position
from craft_client.limits import bodies, rows_per_call
from craft_client.predictions import AdapterPrediction
from craft_client.results import Call, Results, Row, Rows
from craft_shared.counting import blocks, prediction_units
from craft_shared.output import scores_of, shown_bytes
from craft_shared.units import Units
from craft_shared.wire import AdapterCard, ImageSet, Limits, ModelCard, Output

T = TypeVar("T")


@dataclass(frozen=True)
class Classified:
    """Refined predictions of a published adapter."""

    log_probs: NDArray[np.float32]  # [N, C], by `craft_shared.output.scores_of`
    charged: Units  # what they cost
    output: Output  # what the answers show


@dataclass(frozen=True)
class RemoteAdapter:
    """A published adapter that classifies images, in as few calls as the limits allow."""

    client: Client
    card: AdapterCard  # the adapter's, its version included: a later version is not used

    @cached_property
    def _model(self) -> ModelCard:
        return self.client.model(self.card.model)

    @property
    def limits(self) -> Limits:
        """The model's."""
        return self._model.limits

    def row_calls(self, rows: int) -> list[range]:
        """Which rows of an image set each call classifies. Each call is `prompts` queries."""
        row_bytes = shown_bytes(self._model.output, len(self.card.classes))
        return blocks(rows, rows_per_call(self.limits, row_bytes, rows))

    def image_calls(
        self, images: Iterable[T], size_of: Callable[[T], int], top: int
    ) -> Iterator[list[T]]:
        """Which images each call sends and classifies, `top` classes of each.

        Each call is `prompts` queries. `size_of` gives the bytes of what stands for an image.
        """
        seen, count = self._model.output, self.limits.images_per_call
        shown = seen.model_copy(update={"k": min(top, seen.k or top)})
        most = rows_per_call(self.limits, shown_bytes(shown, len(self.card.classes)), count)
        return bodies(images, size_of, self.limits, most)

    def units(self, calls: int, rows: int, *, sent: int = 0) -> Units:
        """What so many calls that classify so many rows are charged, images sent among them."""
        return prediction_units(self.card.prompts, rows, sent=sent, calls=calls)

    def classify_image_set(self, image_set: ImageSet) -> Classified:
        """Classifies all N images of an image set."""
        return _joined(
            self.client.adapter_predict(
                self.reference,
                image_set=image_set.id,
                rows=None if len(rows) == image_set.count else rows,
                classes=self.card.classes,
                count=image_set.count,
            )
            for rows in self.row_calls(image_set.count)
        )

    @property
    def reference(self) -> str:
        """What calls name the version by, whoever makes them."""
        owner = f"{self.card.owner}/" if self.card.owner else ""
        return f"{owner}{self.card.name}@{self.card.version}"


def _joined(answers: Iterable[AdapterPrediction]) -> Classified:
    every = list(answers)
    return Classified(
        np.concatenate(
            [scores_of(answer.tensors, answer.output, len(answer.classes)) for answer in every]
        ),
        sum((answer.cost.charged for answer in every), Units()),
        every[0].output,
    )


# --- files ----------------------------------------------------------------------------------------


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
    calls: Sequence[Sequence[Path]] = (),
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
        calls: what `file_calls` made of images, where it was asked before.
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
    planned = {str(image) for call in calls for image in call} | rows.images
    further = [image for image in images if str(image) not in planned]
    for chunk in [*calls, *file_calls(adapter, further, top)]:
        contents, failed = _read_files(chunk, adapter)
        ask(contents, failed, abstain_below)
    return progress


def file_calls(adapter: RemoteAdapter, images: Sequence[Path], top: int) -> list[list[Path]]:
    """Which files each call sends, so that it and its answer keep within the limits."""
    allowed = adapter.limits.image_bytes

    def size_of(image: Path) -> int:
        size = image.stat().st_size if image.is_file() else 0
        # What is not there, or too large, is not sent.
        return 0 if size > allowed else size

    return list(adapter.image_calls(images, size_of, top))


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
