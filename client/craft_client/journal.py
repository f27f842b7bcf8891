"""The run directory: every paid answer in order, on disk before it is used.

    run.json        what was asked for: settings, model, classes, labels, when
    journal.jsonl   one line a paid answer, only ever appended to
    tensors/        what the lines refer to: codes with their losses, answers that heads read; and
                    a checkpoint: what was learnt from answers that are not kept any more
    adapter/        the tuned adapter
    summary.json    how the run ended
    evaluation.json what its adapter came to on a split (`craft_client.evaluation`)

A line is on disk, and so is every tensor file it names, before `append` returns. All other files
appear whole or not at all. While a process writes, it holds the file `lock`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Self

from craft_client.exceptions import CraftError
from craft_client.run_folder import (
    ADAPTER_FOLDER,
    CHECKPOINT,
    LINES_FILE,
    LOCK_FILE,
    RUN_FILE,
    SUMMARY_FILE,
    TENSOR_FOLDER,
    alone,
    holder,
)
from craft_shared import codec
from craft_shared.adapter import Adapter, AdapterError
from craft_shared.codec import CodecError, Tensors
from craft_shared.files import append, check_room, write_whole
from craft_shared.printing import json_text


class JournalError(CraftError):
    """The run directory cannot be written or read; the message says why and what to do."""


class Journal:
    """One run's directory. Use `create`, `claimed` or `open`.

    `document` is what `run.json` holds; empty where the run has not begun.

    Raises:
        JournalError: from every method: the directory cannot be written or read, or is damaged.
        InUse: from `create`, `claimed` and `alone`: another process is at it.
    """

    def __init__(self, folder: Path, document: Mapping[str, Any]) -> None:
        self.folder = folder
        self.document = document
        self._alone = False

    @classmethod
    def create(cls, folder: Path, document: Mapping[str, Any]) -> Self:
        """Starts a run in a directory that is new or empty."""
        journal = cls(folder, {})
        with journal.alone():
            journal.begin(document)
        return journal

    @classmethod
    @contextmanager
    def claimed(cls, folder: Path, *, new: bool = False) -> Iterator[Self]:
        """A directory that no other process writes to meanwhile: a run's, or one that is empty.

        With `new` it must be empty. An empty one is removed again where the block fails and nothing
        was written.
        """
        journal = cls(folder, {})
        try:
            with journal.alone():
                if new or not (folder / RUN_FILE).exists():
                    journal._check_empty()
                else:
                    journal.document = cls.open(folder).document
                    journal._check_writable()
                yield journal
        except BaseException:
            with suppress(OSError):
                folder.rmdir()  # as long as it is empty
            raise

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other processes, and other journals of this one, from writing."""
        if self._alone:
            yield
            return
        with ExitStack() as stack:
            with _using(self.folder, "write"):
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(alone(self.folder / LOCK_FILE, f"the run in '{self.folder}'"))
            self._alone = True
            try:
                yield
            finally:
                self._alone = False

    def begin(self, document: Mapping[str, Any]) -> None:
        """Starts a run in the directory, which is empty but for the lock."""
        self._check_empty()
        with _using(self.folder, "write"):
            (self.folder / TENSOR_FOLDER).mkdir(exist_ok=True)
            (self.folder / LINES_FILE).touch()
            # Last, because a directory with this file is a run.
            write_whole(self.folder / RUN_FILE, _pretty(document))
        self.document = document

    def check_room(self, needed: int) -> None:
        """Raises JournalError where the disk has less than so many bytes left."""
        with _using(self.folder, "write"):
            check_room(self.folder, needed)

    def _check_writable(self) -> None:
        try:
            (self.folder / LINES_FILE).open("ab").close()
            with TemporaryFile(dir=self.folder / TENSOR_FOLDER):
                pass
        except OSError as error:
            raise _unusable(Path(error.filename or self.folder), "write", error) from error

    def _check_empty(self) -> None:
        """Raises JournalError unless there is the lock alone, and what a crash left of `begin`."""
        remains = {LOCK_FILE, LINES_FILE, TENSOR_FOLDER, f"{RUN_FILE}.partial"}
        lines, tensors = self.folder / LINES_FILE, self.folder / TENSOR_FOLDER
        with _using(self.folder, "read"):
            found = {path.name for path in self.folder.iterdir()}
            empty = found <= remains
            empty = empty and not (LINES_FILE in found and lines.stat().st_size)
            empty = empty and not (TENSOR_FOLDER in found and any(tensors.iterdir()))
        if not empty:
            raise JournalError(
                f"'{self.folder}' already holds a run or other files.",
                remedy="Name another run directory with --run, or remove this one.",
            )

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Reads a run that `create` started, finished or not."""
        return cls(folder, _read_object(folder / RUN_FILE, "There is no run here"))

    def append(self, line: Mapping[str, Any], tensors: Mapping[str, Tensors] | None = None) -> None:
        """Adds one line and the tensor files that belong to it; where it fails, neither is there.

        `line` is JSON-able, without NaN or infinity, and gets a field `tensors`: the files' names.
        """
        files = dict(tensors or {})
        document = {**line, "tensors": sorted(files)}
        text = json.dumps(document, allow_nan=False, separators=(",", ":"))
        for name, content in files.items():
            self._write_tensors(name, {}, content)
        with _using(self.folder, "write"):
            append(self.folder / LINES_FILE, f"{text}\n".encode())

    def resume(self) -> list[dict[str, Any]]:
        """The lines, after which `append` adds more; a line that a crash cut short is removed."""
        lines = list(self.lines())
        path = self.folder / LINES_FILE
        with _using(path, "write"):
            whole = path.read_bytes().rfind(b"\n") + 1
            if whole < path.stat().st_size:
                os.truncate(path, whole)
        return lines

    def lines(self) -> Iterator[dict[str, Any]]:
        """The lines in order. One that a crash cut short at the very end is left out."""
        path = self.folder / LINES_FILE
        with _using(self.folder, "read"):
            texts = path.read_bytes().split(b"\n")
        for number, text in enumerate(texts[:-1], start=1):
            try:
                yield json.loads(text)
            except (ValueError, RecursionError) as error:
                raise JournalError(f"'{path}', line {number}, is damaged.") from error

    def tensors(self, name: str) -> Tensors:
        """The tensors of the file `name`, as a line's `tensors` names it."""
        return self._read_tensors(name)[1]

    def replace(self, name: str, tensors: Tensors) -> None:
        """Writes the tensor file of an earlier line anew, whole or not at all."""
        self._write_tensors(name, {}, tensors)

    def save_checkpoint(self, document: Mapping[str, Any], tensors: Tensors) -> None:
        """Writes a checkpoint in the place of the one before, whole or not at all."""
        self._write_tensors(CHECKPOINT, document, tensors)

    def checkpoint(self) -> tuple[dict[str, Any], Tensors] | None:
        """The last checkpoint; None where there is none."""
        if not self._tensor_path(CHECKPOINT).exists():
            return None
        return self._read_tensors(CHECKPOINT)

    def finish(self, adapter: Adapter, summary: Mapping[str, Any]) -> None:
        """Writes the adapter and, last, the summary."""
        with _using(self.folder, "write"):
            adapter.save(self.folder / ADAPTER_FOLDER)
            write_whole(self.folder / SUMMARY_FILE, _pretty(summary))

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.folder / SUMMARY_FILE).exists()

    @property
    def whole(self) -> bool:
        """Whether it came to its end and that can be read; otherwise it can be resumed."""
        try:
            return self.finished and bool(self.adapter() and self.summary())
        except JournalError:
            return False

    def adapter(self) -> Adapter:
        """The tuned adapter."""
        try:
            return Adapter.load(self.folder / ADAPTER_FOLDER)
        except AdapterError as error:
            raise JournalError(
                f"The run in '{self.folder}' has no adapter that can be used: {error}.",
                remedy=self._resumed(),
            ) from error

    def _resumed(self) -> str:
        """What to do about an adapter that is not there, or damaged."""
        who = holder(self.folder / LOCK_FILE)
        if who is not None:
            return f"{who} is at the run: wait until it ends."
        if self.finished:
            return f"Make it anew from the journal, for free: craft tune --resume {self.folder}"
        return f"The run did not come to its end: craft tune --resume {self.folder}"

    def summary(self) -> dict[str, Any]:
        """How the run ended."""
        return _read_object(self.folder / SUMMARY_FILE, "The run did not come to its end")

    def _write_tensors(self, name: str, document: Mapping[str, Any], tensors: Tensors) -> None:
        with _using(self.folder, "write"):
            write_whole(self._tensor_path(name), codec.encode(dict(document), tensors))

    def _read_tensors(self, name: str) -> tuple[dict[str, Any], Tensors]:
        path = self._tensor_path(name)
        with _using(path, "read"):
            data = path.read_bytes()
        try:
            return codec.decode(data)
        except CodecError as error:
            raise JournalError(f"'{path}' is damaged: {error}.") from error

    def _tensor_path(self, name: str) -> Path:
        return self.folder / TENSOR_FOLDER / f"{name}.safetensors"


def _pretty(document: Mapping[str, Any]) -> bytes:
    return f"{json_text(document, indent=2)}\n".encode()


def _read_object(path: Path, missing: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise JournalError(
            f"{missing}: '{path}' does not exist.", remedy="Name the directory of a tuning run."
        ) from error
    except OSError as error:
        raise _unusable(path, "read", error) from error
    except (ValueError, RecursionError) as error:
        raise JournalError(f"'{path}' is not valid JSON.") from error
    if not isinstance(value, dict):
        raise JournalError(f"'{path}' is not a JSON object.")
    return value


@contextmanager
def _using(path: Path, verb: str) -> Iterator[None]:
    """Turns what the system raises into a JournalError."""
    try:
        yield
    except OSError as error:
        raise _unusable(path, verb, error) from error


def _unusable(path: Path, verb: str, error: OSError) -> JournalError:
    return JournalError(
        f"Cannot {verb} '{path}': {error.strerror or error}.",
        remedy="Check its permissions and the free space, or name another run directory.",
    )
