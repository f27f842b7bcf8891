"""The file of a recording: questions and their answers in order, in one SQLite file.

An answer is in the file before it is sent, so that a recording that was killed holds everything
that its client has seen. It holds no keys: no header of a request is ever given to it.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from craft_server.recording.content import CallContent
from craft_shared.files import keep_private, make_private

_APPLICATION_ID = 0x43465442
_FORMAT = 1
_NEW = f"""
BEGIN;
CREATE TABLE answers (
    id INTEGER PRIMARY KEY,
    digest TEXT NOT NULL,
    attempt TEXT UNIQUE,
    method TEXT NOT NULL,
    path TEXT NOT NULL,
    question TEXT NOT NULL,
    status INTEGER NOT NULL,
    media_type TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX ix_answers_path ON answers (path, method);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_FORMAT};
COMMIT;
"""


class TapeError(Exception):
    """The file cannot be used; the message says why."""


@dataclass(frozen=True)
class Answer:
    """An answer as it was sent, without headers."""

    status: int
    media_type: str
    body: bytes


class Tape:
    """An open recording, for any thread. Use `record` or `play`.

    `mended` says whether others could read it until it was opened.
    """

    mended = False

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    @classmethod
    def record(cls, file: Path) -> Self:
        """Opens a recording to add to; a new one if there is no such file.

        Raises:
            TapeError: it cannot be written, or is no recording.
        """
        try:
            make_private(file)
        except OSError as error:
            raise TapeError(f"'{file}' cannot be written: {error.strerror}") from error
        tape = cls._open(file, "rwc")
        tape.mended = bool(keep_private([file]))
        return tape

    @classmethod
    def play(cls, file: Path) -> Self:
        """Opens a recording that there is.

        Raises:
            TapeError: it cannot be read, or is no recording.
        """
        return cls._open(file, "rw")

    @classmethod
    def _open(cls, file: Path, mode: str) -> Self:
        try:
            connection = sqlite3.connect(
                f"{file.resolve().as_uri()}?mode={mode}", uri=True, check_same_thread=False
            )
            try:
                _check(connection, file, new=mode == "rwc")
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            raise TapeError(f"'{file}' cannot be opened as a recording: {error}") from error
        return cls(connection)

    def append(self, question: CallContent, answer: Answer, idempotency_key: str | None) -> None:
        """Adds an answer, which is then in the file; what it holds already it does not hold twice.

        A call with an idempotency key may be sent again, and is one call nevertheless.

        Raises:
            TapeError: it cannot be written, because the disk is full, for example.
        """
        attempt = None if idempotency_key is None else _attempt(question, idempotency_key)
        row = (
            question.digest,
            attempt,
            question.method,
            question.path,
            question.json,
            answer.status,
            answer.media_type,
            answer.body,
        )
        try:
            with self._lock, self._connection as connection:
                connection.execute(
                    "INSERT INTO answers"
                    " (digest, attempt, method, path, question, status, media_type, body)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (attempt) DO NOTHING",
                    row,
                )
        except sqlite3.Error as error:
            raise TapeError(f"the recording cannot be written: {error}") from error

    def order(self) -> dict[str, list[int]]:
        """The numbers of each question's answers in the order in which they were given."""
        found: dict[str, list[int]] = {}
        with self._lock:
            rows = self._connection.execute("SELECT digest, id FROM answers ORDER BY id").fetchall()
        for digest, number in rows:
            found.setdefault(digest, []).append(number)
        return found

    def answer(self, number: int) -> Answer:
        """The answer of that number."""
        with self._lock:
            row = self._connection.execute(
                "SELECT status, media_type, body FROM answers WHERE id = ?", (number,)
            ).fetchone()
        return Answer(*row)

    def questions(self, method: str, path: str, *, most: int) -> Iterator[CallContent]:
        """Different questions that were asked at an address, the first ones."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT question FROM answers WHERE path = ? AND method = ?"
                " GROUP BY digest ORDER BY min(id) LIMIT ?",
                (path, method, most),
            ).fetchall()
        return (CallContent.from_json(text) for (text,) in rows)

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._connection.close()


def _check(connection: sqlite3.Connection, file: Path, *, new: bool) -> None:
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if new and tables == 0:
        connection.executescript(_NEW)
    kind = connection.execute("PRAGMA application_id").fetchone()[0]
    if kind != _APPLICATION_ID:
        raise TapeError(f"'{file}' is no recording of craftbox")
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found != _FORMAT:
        raise TapeError(f"'{file}' is a recording of format {found}; this version reads {_FORMAT}")


def _attempt(question: CallContent, idempotency_key: str) -> str:
    return hashlib.sha256(f"{idempotency_key}\n{question.digest}".encode()).hexdigest()
