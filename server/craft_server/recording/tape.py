"""The file of a recording: what was asked and answered, in order, in one SQLite file.

An answer is in the file before it is sent, so that a recording that was killed holds everything
that its client has seen. What a call asks is method, path, query and the body's content, and
whether tensors are wanted as such: neither who asks nor when. JSON that is laid out otherwise is
the same content; of tensors and long strings, images among them, a digest is kept. The file holds
no keys: no header of a request is ever given to it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers
from starlette.types import Scope

from craft_server.api.middleware import JSON_TYPE, accepts
from craft_shared import codec
from craft_shared.files import keep_private, make_private
from craft_shared.strict_json import JsonError, parse_object

_LONGEST_TEXT = 300  # characters: a template's most


@dataclass(frozen=True)
class CallContent:
    """A call's content."""

    method: str  # of HTTP
    path: str  # decoded
    query: str  # its parameters in order of their names
    tensors: bool  # whether the answer's tensors are wanted as safetensors
    content: Any  # JSON-able; null without a body

    @classmethod
    def of(cls, scope: Scope, body: bytes) -> Self:
        """What a request asks."""
        headers = Headers(scope=scope)
        parameters = sorted(parse_qsl(scope["query_string"].decode("latin-1"), True))
        return cls(
            method=scope["method"],
            path=scope["path"],
            query=urlencode(parameters),
            tensors=accepts(headers.get("accept", ""), codec.MEDIA_TYPE),
            content=_content(headers.get("content-type", ""), body),
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `json` wrote."""
        return cls(**json.loads(text))

    @property
    def json(self) -> str:
        """The same question, the same text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @property
    def digest(self) -> str:
        """Names the question."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    def differences(self, recorded: Self) -> list[tuple[str, str]]:
        """Where it differs from another one, and how, in words."""
        mine, theirs = dict(self._leaves()), dict(recorded._leaves())
        return [
            (field, _difference(mine.get(field, _ABSENT), theirs.get(field, _ABSENT)))
            for field in dict.fromkeys((*mine, *theirs))
            if mine.get(field, _ABSENT) != theirs.get(field, _ABSENT)
        ]

    def _leaves(self) -> Iterator[tuple[str, object]]:
        yield "query", self.query
        yield "Accept", codec.MEDIA_TYPE if self.tensors else JSON_TYPE
        yield from _leaves("", self.content)


_ABSENT = object()  # what is not there; unlike null


def _content(content_type: str, body: bytes) -> Any:
    if not body:
        return None
    media_type = content_type.partition(";")[0].strip().lower()
    try:
        if media_type == codec.MEDIA_TYPE:
            document, tensors = codec.decode(body)
            digests = {
                name: f"{tensor.dtype} {list(tensor.shape)} {_digest(tensor.tobytes())}"
                for name, tensor in tensors.items()
            }
            return _shortened(document) | digests
        return _shortened(parse_object(body))
    except (codec.CodecError, JsonError):
        return {"body": _digest(body)}


def _shortened(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        return _digest(value.encode(errors="surrogatepass"))
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    if isinstance(value, dict):
        return {name: _shortened(item) for name, item in value.items()}
    return value


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _leaves(path: str, value: Any) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(f"{path}.{name}".lstrip("."), item)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _leaves(f"{path}[{number}]", item)
    elif value is not None:
        yield path or "body", value


def _difference(asked: object, recorded: object) -> str:
    if recorded is _ABSENT:
        return f"{_words(asked)} was sent, and nothing was recorded"
    if asked is _ABSENT:
        return f"{_words(recorded)} was recorded, and nothing was sent"
    return f"{_words(asked)} was sent, and {_words(recorded)} was recorded"


def _words(value: object) -> str:
    return f"'{value}'"[:120] if isinstance(value, str) else json.dumps(value)[:120]


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
        attempt = None
        if idempotency_key is not None:
            named = f"{idempotency_key}\n{question.digest}"
            attempt = hashlib.sha256(named.encode()).hexdigest()
        asked = (question.digest, attempt, question.method, question.path, question.json)
        answered = (answer.status, answer.media_type, answer.body)
        try:
            with self._lock, self._connection as connection:
                connection.execute(
                    "INSERT INTO answers"
                    " (digest, attempt, method, path, question, status, media_type, body)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (attempt) DO NOTHING",
                    asked + answered,
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
