"""Copies of a SQLite database, taken while servers write to it, and a server's return to one.

A copy is the database at one moment, in one file, and the key that signs receipts in a table of its
own: without the key, a server could not sign as the same provider again.

Source: SQLite, "Using the SQLite Online Backup API" (https://sqlite.org/backup.html).
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import sqlalchemy as sa

from craft_server.clock import now_ms
from craft_server.database import Database, DatabaseError
from craft_server.ledger import leases
from craft_server.ledger.tables import HOLDERS
from craft_server.receipts import write_key
from craft_shared.files import make_private, make_private_folder

_KEY_TABLE = "backed_up_receipt_key"


class BackupError(Exception):
    """The copy cannot be made or used; the message is one line for the operator."""


def back_up(source: Path, file: Path, receipt_key: Path) -> bool:
    """Writes a copy of a database that may be in use; nobody waits for it.

    Whether there is a receipt key, which is then in the copy.

    Raises:
        BackupError: there is no such database, the file exists, or it cannot be written.
    """
    if not source.is_file():
        raise BackupError(f"there is no database '{source}'; name it with --data-dir")
    pem = _read_key(receipt_key)
    with _becoming(file) as made:
        _copy(source, made)
        if pem is not None:
            _put_key(made, pem)
    return pem is not None


def restore(file: Path, target: Path, receipt_key: Path) -> tuple[int, bool]:
    """Makes a database from a copy, and the receipt key that is in it.

    How many reservations that were open in it are given back, and whether there was a key. The
    schema becomes this version's.

    Raises:
        BackupError: a database or another key is there already, or the file is no copy of one.
    """
    if not file.is_file():
        raise BackupError(f"there is no backup '{file}'")
    for suffix in ("", "-wal", "-shm"):
        if (there := target.with_name(target.name + suffix)).exists():
            raise BackupError(
                f"'{there}' exists, and a server may be using it: stop the server and move "
                f"'{target.name}' away, with '{target.name}-wal' and '{target.name}-shm' if they "
                "exist"
            )
    make_private_folder(target.parent)
    with _becoming(target) as made:
        _copy(file, made)
        if (pem := _take_key(made)) is not None:
            _write_key(receipt_key, pem)
        return _released(made), pem is not None


def _read_key(file: Path) -> bytes | None:
    """The receipt key; None where no server has made one yet."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BackupError(f"cannot read the receipt key '{file}': {error.strerror}") from error


def _write_key(file: Path, pem: bytes) -> None:
    """Makes the key's file, unless it is there as it was."""
    if (there := _read_key(file)) is None:
        try:
            write_key(file, pem)
        except OSError as error:
            raise BackupError(f"cannot write the receipt key '{file}': {error.strerror}") from error
    elif there != pem:
        raise BackupError(
            f"'{file}' is not the receipt key that was backed up: move it away, and what it has "
            "signed can still be verified if its public half is added to the restored one"
        )


def _put_key(made: Path, pem: bytes) -> None:
    with closing(sqlite3.connect(made)) as connection, connection:
        connection.execute(f"CREATE TABLE {_KEY_TABLE} (pem BLOB NOT NULL)")
        connection.execute(f"INSERT INTO {_KEY_TABLE} VALUES (?)", (pem,))  # noqa: S608 - no value


def _take_key(made: Path) -> bytes | None:
    """The receipt key in a copy, which no longer holds it; None in copies of earlier versions."""
    with closing(sqlite3.connect(made)) as connection, connection:
        named = "SELECT count(*) FROM sqlite_schema WHERE name = ?"
        if not connection.execute(named, (_KEY_TABLE,)).fetchone()[0]:
            return None
        pem: bytes = connection.execute(f"SELECT pem FROM {_KEY_TABLE}").fetchone()[0]  # noqa: S608 - no value
        # Freed pages would still have it.
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute(f"DROP TABLE {_KEY_TABLE}")
        return pem


def _released(made: Path) -> int:
    """Brings a copy up to date and gives back what processes held when it was taken."""
    try:
        with (
            closing(Database.open(f"sqlite:///{made}", made.parent)) as database,
            database.writing() as connection,
        ):
            connection.execute(sa.update(HOLDERS).values(lease_until=0))
            released = leases.release_expired(connection, now_ms())
    except DatabaseError as error:
        raise BackupError(str(error)) from error
    _into_one_file(made)
    return released.reservations


def _copy(source: Path, made: Path) -> None:
    make_private(made)
    try:
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as old,
            closing(sqlite3.connect(made)) as new,
        ):
            # In one step: it reads one moment of the log, and writers go on after it.
            old.backup(new, pages=-1)
            (found,) = new.execute("PRAGMA integrity_check").fetchone()
            if found != "ok":
                raise BackupError(f"'{source}' is damaged: {found}")
    except sqlite3.Error as error:
        raise BackupError(f"cannot copy '{source}': {error}") from error
    _into_one_file(made)


def _into_one_file(made: Path) -> None:
    with closing(sqlite3.connect(made)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")


@contextmanager
def _becoming(file: Path) -> Iterator[Path]:
    """A file beside `file` that becomes it, on disk, at the end of the block, or vanishes."""
    if file.exists():
        raise BackupError(f"'{file}' exists; name another file")
    try:
        with tempfile.TemporaryDirectory(dir=file.absolute().parent) as folder:
            made = Path(folder) / file.name
            yield made
            _sync(made)
            # Unlike a renaming, a link never replaces a file that has appeared in the meantime.
            os.link(made, file)
            _sync(file.absolute().parent)
    except FileExistsError as error:
        raise BackupError(f"'{file}' exists; name another file") from error
    except OSError as error:
        raise BackupError(f"cannot write '{file}': {error.strerror}") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
