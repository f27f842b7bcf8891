"""Files that a published adapter classifies: the calls, and what becomes of their answers.

Rows are for the screen, or for a file that a later call continues:

    FILE         CSV, a row a picture; people may cut, sort and edit it
    FILE.calls   each call before it is sent (its key and its pictures), and the rows that its
                 answer brought, before FILE gets them; only ever appended to
    FILE.lock    while a process writes (`craft_client.run_folder`)

So an answer that was paid for is asked for again under its own key, and a row that FILE has lost
is written anew, whatever was done to FILE or to the folder in between. An image that the server
refuses is left out of its call, which costs nothing then, and the others are sent again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from craft_client.exceptions import DataError, InvalidImage, picture_position
from craft_client.layouts import LeftOut
from craft_client.remote import RemoteAdapter
from craft_client.run_folder import alone
from craft_shared.files import append, check_room, write_whole
from craft_shared.printing import printable
from craft_shared.problems import FieldError
from craft_shared.text_files import NotTextError, line_of, rows_of
from craft_shared.units import Units

_FIXED = ("image", "adapter", "error", "abstained")
_NUMBER = re.compile(r"(\d+(\.\d*)?([eE][-+]?\d+)?)?")  # spreadsheets write their own way
# Of a row and its picture's entry in the record, beside names.
_ROW_BYTES = 300

_RANKED = ("class", "probability")


@dataclass(frozen=True)
class Row:
    """What there is to say of one picture."""

    image: str  # its path
    adapter: str  # `OWNER/NAME@VERSION`
    error: str = ""  # why it cannot be used
    abstained: bool | None = None  # whether its best class is below the threshold, if there is one
    best: tuple[tuple[str, float | None], ...] = ()  # classes, likeliest first; None: not shown

    @property
    def cells(self) -> list[str]:
        """As the file has it."""
        cells = [self.image, self.adapter, self.error]
        cells.append("" if self.abstained is None else str(int(self.abstained)))
        for name, probability in self.best:
            cells += [printable(name), "" if probability is None else f"{probability:.6f}"]
        return cells


@dataclass(frozen=True)
class Batch:
    """The images of a call that is charged; the same call has the same key."""

    key: str
    adapter: str
    top: int  # how many classes it names
    abstain_below: float | None
    images: tuple[tuple[str, str], ...]  # paths and SHA-256, in order


class Rows:
    """Rows for the screen: one picture that cannot be used ends it, before it is charged."""

    # Whether the same call another time is the same call, or is charged anew.
    is_resumable: ClassVar[bool] = False

    def __init__(self) -> None:
        self.images: set[str] = set()
        self.rows: list[Row] = []

    def begin(self, call: Batch) -> None:
        """Before a call is sent."""

    def refuse(self, call: Batch, errors: Sequence[Row]) -> None:
        """After a call was refused, uncharged, for some of its pictures."""
        self.add(errors)

    def end(self, call: Batch, rows: Sequence[Row]) -> None:
        """After a call was answered. The rows are yet to be added."""

    def add(self, rows: Sequence[Row]) -> None:
        """Adds rows, each of a picture that had none.

        Raises:
            DataError: one says that its picture cannot be used.
        """
        errors = [row for row in rows if row.error]
        if errors:
            raise DataError(
                "A picture cannot be used.",
                errors=[FieldError(field=f"'{row.image}'", message=row.error) for row in errors],
                remedy="Replace it, or leave it out.",
            )
        self.rows += rows
        self.images |= {row.image for row in rows}


class Results(Rows):
    """Rows in a file, `top` classes each. Use `opened`.

    Columns: `image`, `adapter`, `error`, `abstained` (1 or 0; empty without a threshold), then
    `class_1`, `probability_1` and so on, the most probable class first. `adapter` is the one that
    the rows are by, or, before the first one, the calls; None where the file is new.
    """

    is_resumable = True

    def __init__(self, file: Path, top: int) -> None:
        super().__init__()
        self.file, self.top = file, top
        self.adapter: str | None = None
        self._record = _beside(file, ".calls")
        self._unanswered: dict[str, Batch] = {}
        self._paid: dict[tuple[str, str, str, int, float | None], list[str]] = {}
        self._paid_images: set[str] = set()
        ranks = (f"{column}_{rank}" for rank in range(1, top + 1) for column in _RANKED)
        self._columns = [*_FIXED, *ranks]

    @classmethod
    @contextmanager
    def opened(cls, file: Path, top: int) -> Iterator[Self]:
        """A new file or one that an earlier call wrote, which no other process writes to meanwhile.

        Raises:
            InUse: another process is at it.
            DataError: it cannot be written, or is another file.
        """
        results = cls(file, top)
        with ExitStack() as stack:
            try:
                if file.exists() and not file.is_file():
                    raise DataError(f"'{file}' is no file.", remedy="Name a file with --out.")
                stack.enter_context(alone(_beside(file, ".lock"), f"'{file}'"))
                results._read_calls(begun=file.exists())
                results._read()
            except OSError as error:
                raise DataError(
                    f"Cannot write '{file}': {error.strerror or error}. Nothing was charged.",
                    remedy="Name a file that can be written, in a folder that exists, with --out.",
                ) from error
            yield results

    def check_room(self, images: Collection[Path], classes: Sequence[str]) -> None:
        """Raises OSError where the disk has no room for these pictures' rows."""
        longest = self.top * (20 + max((len(os.fsencode(name)) for name in classes), default=0))
        row = _ROW_BYTES + len(self.adapter or "") + longest
        names = sum(len(os.fsencode(image)) for image in images)
        check_room(_beside(self.file, "").parent, 2 * (names + len(images) * row))

    def unanswered(self, adapter: str) -> list[Batch]:
        """Calls to an adapter that may have been charged and whose answer is not here."""
        calls = self._unanswered.values()
        return [call for call in calls if (call.adapter, call.top) == (adapter, self.top)]

    def restore(self, image: str, digest: str, adapter: str, abstain_below: float | None) -> bool:
        """Writes a row that was paid for and that the file has lost; whether there was one."""
        cells = self._paid.get((image, digest, adapter, self.top, abstain_below))
        if cells is None:
            return False
        self._append([cells])
        return True

    def may_restore(self, image: str) -> bool:
        """Whether any row was paid for of a picture of that path."""
        return image in self._paid_images

    def begin(self, call: Batch) -> None:
        """Notes what is about to be sent."""
        if call.key not in self._unanswered:
            line = {
                "call": call.key,
                "adapter": call.adapter,
                "top": call.top,
                "abstain_below": call.abstain_below,
                "images": call.images,
            }
            self._note(line)
            self._unanswered[call.key] = call

    def refuse(self, call: Batch, errors: Sequence[Row]) -> None:
        """Notes that the call cost nothing."""
        self._note({"refused": call.key})
        self._unanswered.pop(call.key, None)

    def end(self, call: Batch, rows: Sequence[Row]) -> None:
        """Notes the rows, so that they are kept before the file gets them."""
        self._note({"answered": call.key, "rows": [row.cells for row in rows]})
        self._answer(call.key, [row.cells for row in rows])

    def add(self, rows: Sequence[Row]) -> None:
        """Writes rows of pictures that have none; they are on disk when it returns."""
        self._append([row.cells for row in rows if row.image not in self.images])

    def add_left_out(self, left_out: Sequence[LeftOut], adapter: str) -> None:
        """Adds rows of what is no image to this program; those that have one keep it."""
        self.add([Row(str(one.path), adapter, f"left out: {one.reason}") for one in left_out])

    def _append(self, rows: Sequence[Sequence[str]]) -> None:
        if rows:
            append(self.file, b"".join(self._line(row) for row in rows))
            self.images |= {row[0] for row in rows}

    def _line(self, cells: Sequence[str]) -> bytes:
        filled = [*cells, *[""] * (len(self._columns) - len(cells))]
        return line_of(filled).encode(errors="surrogateescape")

    def _note(self, line: dict[str, Any]) -> None:
        append(self._record, json.dumps(line).encode() + b"\n")

    def _answer(self, key: str, rows: Sequence[list[str]]) -> None:
        call = self._unanswered.pop(key, None)
        if call is None:
            return
        digests = dict(call.images)
        for row in rows:
            paid = (row[0], digests[row[0]], call.adapter, call.top, call.abstain_below)
            self._paid[paid] = row
            self._paid_images.add(row[0])

    def _read(self) -> None:
        """Reads the rows; what is no whole row of a picture's own goes from the file."""
        data = self.file.read_bytes() if self.file.exists() else b""
        header = self._line(self._columns)
        whole = _whole_rows(data)
        if not whole and header.startswith(data.removeprefix(BOM_UTF8).removesuffix(b"\r")):
            write_whole(_beside(self.file, ""), header)
            return
        try:
            columns, *rows = [row for row in rows_of(whole) if row] or [[]]
        except NotTextError:
            columns, rows = [], []
        if columns != self._columns:
            raise DataError(
                f"'{self.file}' was not written by this command, or names another number of "
                "classes.",
                remedy="Name another file with --out.",
            )
        good = {row[0]: row for row in reversed(rows) if self._is_whole(row)}
        named = {row[1] for row in good.values()}
        if len(named) > 1:
            raise DataError(
                f"'{self.file}' holds predictions of several adapters.",
                remedy="Name another file with --out.",
            )
        if len(good) < len(rows):
            kept = [self._line(row) for row in reversed(good.values())]
            write_whole(_beside(self.file, ""), b"".join([header, *kept]))
        elif len(whole) < len(data):
            write_whole(_beside(self.file, ""), whole)
        else:
            append(self.file, b"")
        self.images = set(good)
        self.adapter = next(iter(named), self.adapter)

    def _is_whole(self, row: Sequence[str]) -> bool:
        return (
            len(row) == len(self._columns)
            and row[3] in ("", "0", "1")
            and all(_NUMBER.fullmatch(number) for number in row[5::2])
        )

    def _read_calls(self, *, begun: bool) -> None:
        data = self._record.read_bytes() if self._record.exists() else b""
        if data and not data.endswith(b"\n"):
            append(self._record, b"\n")
        for line in data.split(b"\n"):
            try:
                self._read_call(json.loads(line), begun=begun)
            except (ValueError, TypeError, LookupError):
                continue  # Cut off while it was written, or damaged: as if it had not been.

    def _read_call(self, line: dict[str, Any], *, begun: bool) -> None:
        if "call" in line:
            images = tuple((str(path), str(digest)) for path, digest in line["images"])
            call = Batch(line["call"], line["adapter"], line["top"], line["abstain_below"], images)
            self._unanswered[call.key] = call
            self.adapter = call.adapter if begun else None
        elif "refused" in line:
            self._unanswered.pop(line["refused"], None)
        else:
            self._answer(line["answered"], line["rows"])


def _beside(file: Path, suffix: str) -> Path:
    """A file of the same name with a suffix; where the file is a link, beside what it leads to."""
    real = Path(os.path.realpath(file))
    return real.with_name(real.name + suffix)


def _whole_rows(data: bytes) -> bytes:
    """The bytes without what follows the last whole row; a name in quotes may hold line ends."""
    end = data.rfind(b"\n") + 1
    while data.count(b'"', 0, end) % 2:
        end = data.rfind(b"\n", 0, end - 1) + 1
    return data[:end]


# --- asking -----------------------------------------------------------------------------------


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
    """Writes the rows that were paid for and that the file has lost. Free; gives their number."""
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
    """Classifies the images that have no row yet, naming `top` classes of each, at most C.

    Calls that may have been charged, and whose answers were not stored, are made again first.

    Args:
        adapter: by which; a file's own, where it has rows.
        images: files; their paths are what rows call them.
        rows: gets a row for each.
        top: how many classes a row names.
        abstain_below: as in `Client.adapter_predict`.
        calls: what `adapter.file_calls` made of images, where it was asked before.
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
    for chunk in [*calls, *adapter.file_calls(further, top)]:
        contents, failed = _read_files(chunk, adapter)
        ask(contents, failed, abstain_below)
    return progress


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
        call = Batch(key, adapter.reference, top, abstain_below, tuple(digests.items()))
        rows.begin(call)
        try:
            answer = adapter.client.adapter_predict(
                adapter.reference,
                images=list(contents.values()),
                top_k=top,
                abstain_below=abstain_below,
                classes=adapter.card.classes,
                idempotency_key=key if rows.is_resumable else None,
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


def _unchanged(call: Batch) -> dict[str, bytes] | None:
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
