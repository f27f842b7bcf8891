"""The database: where it is, how it is opened, and which threads wait for it.

SQLite (WAL mode, every commit on disk before it is answered) and PostgreSQL through the same calls.
A transaction is a plain function whose first argument is a `Connection`; where it might wait, it
runs on this module's own threads, never on the event loop.

Sources: SQLAlchemy 2, "pysqlite: serializable isolation" (https://docs.sqlalchemy.org/);
SQLite's PRAGMA reference (https://sqlite.org/pragma.html).
"""

from __future__ import annotations

import asyncio
import os
import select
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakValueDictionary

import sqlalchemy as sa
from alembic.util import CommandError
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from craft_server.statements import IDLE
from craft_server.threads import on_thread, to_the_end
from craft_server.together import Together
from craft_shared.files import keep_private, make_private, make_private_folder

METADATA = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite counts rows up only in a column of exactly this type.
Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")

POSTGRESQL_THREADS = 8
_LONG_READS = 2  # at a time
BUSY_TIMEOUT_MS = 30_000
# Seconds and milliseconds after which a server that does not answer is gone.
_POSTGRESQL_PATIENCE = {"connect_timeout": 5, "tcp_user_timeout": 20_000}
FILE_NAME = "craftbox.db"
# What a data folder holds that is nobody else's: craftbox's own names begin like this.
_OWN_FILES = (FILE_NAME, "receipt-key.pem", ".receipt-key.pem")
# A transaction that writes, so that its commit waits for the disk, and all earlier commits with it.
_FLUSH = (
    b"BEGIN; SET LOCAL synchronous_commit TO on;"
    b" SELECT pg_logical_emit_message(true, 'craftbox', ''); COMMIT"
)

P = ParamSpec("P")
A = TypeVar("A")
T = TypeVar("T")
Transaction = Callable[Concatenate[sa.Connection, P], T]


@dataclass(frozen=True)
class _Kind:
    """How a transaction runs."""

    # SQLite's statement; without one each statement is a transaction. A writer that began as a
    # reader could not wait for another writer: SQLite would refuse it.
    begin: str
    deferred: bool = False  # whether its end does not wait for the disk
    at_once: bool = False  # whether, on SQLite, it is tried without waiting for anything

    @cached_property
    def pragmas(self) -> Mapping[str, str | int]:
        """SQLite's settings. Checkpoints of the log wait for the disk: not where none may wait."""
        return {
            "busy_timeout": 0 if self.at_once else BUSY_TIMEOUT_MS,
            "synchronous": "NORMAL" if self.deferred else "FULL",
            "wal_autocheckpoint": 0 if self.at_once else 1000,
        }


_READ = _Kind("BEGIN")
_QUERY = _Kind("")
_WRITE = _Kind("BEGIN IMMEDIATE")
_DEFER = _Kind("BEGIN IMMEDIATE", deferred=True, at_once=True)
_DEFER_WAITING = _Kind("BEGIN IMMEDIATE", deferred=True)


class DatabaseError(Exception):
    """The database cannot be used; the message is one line for the operator."""


class Unavailable(DatabaseError):  # noqa: N818 - reads as what it is where it is caught
    """The database cannot do now what it was asked for: it is full, gone, read-only or broken.

    If the connection broke (`disconnected`), what was asked for may have been done.
    """

    def __init__(self, message: str, *, disconnected: bool = False) -> None:
        super().__init__(message)
        self.disconnected = disconnected


class Database:
    """An open database whose schema is the newest.

    `read` and `write` run one function in one transaction, on the database's threads, and
    `read_long` on threads that no call waits for. `query` and `write_deferred` are for those that
    every call waits for, and run on the event loop where they need not wait (SQLite). `reading` and
    `writing` are for callers without an event loop. Each raises `Unavailable` for what is not its
    caller's fault.
    """

    def __init__(self, url: URL) -> None:
        self._engine = _create_engine(url)
        # SQLite has one writer at a time anyway: a second thread could only wait for the first.
        threads = 1 if self.dialect == "sqlite" else POSTGRESQL_THREADS
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="craft-database")
        self._long = ThreadPoolExecutor(_LONG_READS, thread_name_prefix="craft-long-reads")
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()  # of keys
        self._together: dict[Callable[..., Any], Together[Any, Any]] = {}
        self.mended: list[Path] = []  # files and folders that others could read until now

    @classmethod
    def open(cls, url: str | None, data_dir: Path) -> Database:
        """Connects, makes the folder and the file where need be, and migrates the schema.

        Without a `url` it is SQLite in `data_dir`.

        Raises:
            DatabaseError: the URL is not valid, or the database cannot be reached or written.
        """
        # Alembic's environment imports the tables, which import this module.
        from craft_server.migrations import upgrade

        target = _checked_url(url) if url else _file_url(data_dir)
        shown = target.render_as_string(hide_password=True)
        database = cls(target)
        try:
            with database.writing() as connection:
                upgrade(connection)
            if target.get_backend_name() == "sqlite":
                database.mended = _mended(Path(target.database or ""), data_dir)
        except CommandError as error:
            database.close()
            raise DatabaseError(
                f"the database '{shown}' was made by another version of craftbox: {error}"
            ) from error
        except (SQLAlchemyError, Unavailable) as error:
            database.close()
            raise DatabaseError(f"cannot use the database '{shown}': {_reason(error)}") from error
        return database

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._engine.dialect.name

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that only reads."""
        with self._transaction(_READ) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that writes: on disk at the end of the block, undone if it raises."""
        with self._transaction(_WRITE) as connection:
            yield connection

    async def read(self, function: Transaction[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Awaits `function(connection, ...)` in a reading transaction."""
        return await self._on_thread(
            _READ, lambda connection: function(connection, *args, **kwargs)
        )

    async def read_long(
        self, key_id: int, function: Transaction[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Like `read`, for what may read many lines: other transactions do not queue behind it.

        One at a time for a key, so that whatever it asks for, other keys have their turn.
        """
        turn = self._turns.setdefault(key_id, asyncio.Lock())

        async def read() -> T:
            return await self._on_thread(
                _READ, lambda connection: function(connection, *args, **kwargs), self._long
            )

        async with turn:
            # A thread goes on when nobody waits for it any more.
            return await to_the_end(read())

    async def write(self, function: Transaction[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Awaits `function(connection, ...)` in a writing transaction, which is then on disk.

        On PostgreSQL others need not wait for the disk: they see the transaction, and may lock what
        it has changed, before. What they write is on disk only after it.
        """
        return await self._on_thread(
            _WRITE, lambda connection: function(connection, *args, **kwargs)
        )

    async def query(self, function: Transaction[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Awaits a short `function(connection, ...)` that runs one reading statement.

        The statement is its own transaction, which saves the ways to the database and back that
        begin and end one. A connection that broke since it was used last is replaced.
        """

        def work(connection: sa.Connection) -> T:
            return function(connection, *args, **kwargs)

        try:
            return await self._soon(_QUERY, _QUERY, work)
        except Unavailable as error:
            if not error.disconnected:
                raise
            return await self._on_thread(_QUERY, work)

    async def write_deferred(
        self, function: Transaction[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Like `write`, but the disk has it only with the next `write`, or soon.

        Everyone sees it at once, and it survives the death of this process. If the machine itself
        dies, it may be lost, but never without everything that was written after it.
        """
        return await self._soon(
            _DEFER, _DEFER_WAITING, lambda connection: function(connection, *args, **kwargs)
        )

    async def write_together(
        self,
        function: Callable[[sa.Connection, Sequence[A]], Sequence[T | Exception]],
        asked: A,
        *,
        deferred: bool = False,
    ) -> T:
        """Awaits what `function(connection, [asked, ...])` has for this one; raises an exception.

        Like `write`, or `write_deferred`, but whoever asks for the same function meanwhile shares
        the transaction. If it raises and is undone, each of them gets a transaction of its own.
        """
        if deferred and (
            found := self._at_once(_DEFER, lambda connection: function(connection, [asked]))
        ):
            (outcome,) = found[0]
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
        if function not in self._together:
            kind = _DEFER_WAITING if deferred else _WRITE

            def transact(group: Sequence[A]) -> Sequence[T | Exception]:
                with self._transaction(kind) as connection:
                    return function(connection, group)

            self._together[function] = Together(self._threads, transact, final=Unavailable)
        answer: T = await self._together[function].ask(asked)
        return answer

    async def on_disk(self) -> None:
        """Waits until the disk has every transaction that could be seen when it was called."""

        def flush() -> None:
            with _faults_named(), self._engine.connect() as connection:
                _flush(connection)

        if self.dialect == "postgresql":
            await on_thread(self._threads, flush)

    async def answers(self) -> bool:
        """Whether the database answers."""
        try:
            await self.query(_ping)
        except Unavailable:
            return False
        return True

    def close(self) -> None:
        """Waits for running transactions and closes all connections."""
        self._threads.shutdown()
        self._long.shutdown()
        self._engine.dispose()

    async def _soon(self, kind: _Kind, waiting: _Kind, work: Callable[[sa.Connection], T]) -> T:
        found = self._at_once(kind, work)
        return found[0] if found else await self._on_thread(waiting, work)

    def _at_once(self, kind: _Kind, work: Callable[[sa.Connection], T]) -> tuple[T] | None:
        """Does it on SQLite, on the event loop, unless it would have to wait.

        What waits neither for the disk nor for another writer is Python code, which would hold the
        interpreter lock on any thread; the way to a thread and back takes as long as it does.
        """
        if self.dialect != "sqlite":
            return None
        try:
            with self._transaction(kind) as connection:
                return (work(connection),)
        except Unavailable as error:
            if not _is_busy(error):
                raise
            return None

    async def _on_thread(
        self,
        kind: _Kind,
        work: Callable[[sa.Connection], T],
        threads: ThreadPoolExecutor | None = None,
    ) -> T:
        def run() -> T:
            with self._transaction(kind) as connection:
                return work(connection)

        return await on_thread(threads or self._threads, run)

    @contextmanager
    def _transaction(self, kind: _Kind) -> Iterator[sa.Connection]:
        with _faults_named(), self._engine.connect() as connection:
            connection.execution_options(craft_kind=kind)
            postgresql = self.dialect == "postgresql"
            if postgresql and not kind.begin:
                connection.execution_options(isolation_level="AUTOCOMMIT")
            with connection.begin():
                yield connection
                if postgresql and kind is _WRITE:
                    _flush(connection)


class _faults_named:  # noqa: N801 - read as what it does; quicker than a generator, for every call
    """Raises `Unavailable` in the place of errors that are the database's, not its caller's."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: Any, error: BaseException | None, _traceback: Any) -> None:
        if isinstance(error, DBAPIError) and _is_fault(error):
            disconnected = error.connection_invalidated
            raise Unavailable(_reason(error), disconnected=disconnected) from error
        if isinstance(error, sa.exc.TimeoutError):  # of waiting for a connection
            raise Unavailable(_reason(error)) from error


def _is_fault(error: DBAPIError) -> bool:
    """Whether the database has failed; other errors are of a statement that cannot be right."""
    failed = (sa.exc.OperationalError, sa.exc.InternalError)
    # A file that is damaged, or none of SQLite's, is of no kind in particular.
    return (
        error.connection_invalidated
        or isinstance(error, failed)
        or type(error) is sa.exc.DatabaseError
    )


def _flush(connection: sa.Connection) -> None:
    """Ends a transaction on PostgreSQL, and with it its locks, and then waits for the disk.

    In one way there and back.
    """
    driver: Any = connection.connection.driver_connection
    idle = driver.pgconn.transaction_status == IDLE
    result = driver.pgconn.exec_(_FLUSH if idle else b"COMMIT; " + _FLUSH)
    if result.error_message:
        error = Exception(result.get_error_message())
        connection.invalidate(error)
        raise sa.exc.OperationalError(None, None, error, connection_invalidated=True)


def sqlite_file(url: str | None, data_dir: Path) -> Path | None:
    """The file of a SQLite database, whether or not it exists; None where it is PostgreSQL's.

    Raises:
        DatabaseError: the URL is not valid.
    """
    if url is None:
        return data_dir / FILE_NAME
    target = _checked_url(url)
    return Path(target.database or "") if target.get_backend_name() == "sqlite" else None


def insert_missing(connection: sa.Connection, table: sa.Table, **values: Any) -> bool:
    """Inserts a row unless a unique constraint says that it is there; whether it did."""
    insert = _inserting(connection, table).values(values).returning(sa.literal_column("1"))
    return connection.execute(insert).first() is not None


def insert_all_missing(
    connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Like `insert_missing` for some rows of the same columns."""
    connection.execute(_inserting(connection, table), [dict(row) for row in rows])


def _inserting(connection: sa.Connection, table: sa.Table) -> Any:
    insert = postgresql_insert if connection.dialect.name == "postgresql" else sqlite_insert
    return insert(table).on_conflict_do_nothing()


def _ping(connection: sa.Connection) -> None:
    connection.execute(sa.select(1))


def _file_url(data_dir: Path) -> URL:
    try:
        make_private_folder(data_dir)
    except OSError as error:
        raise DatabaseError(
            f"cannot make the data folder '{data_dir}': {error.strerror}"
        ) from error
    return URL.create("sqlite", database=str(data_dir / FILE_NAME))


def _mended(file: Path, data_dir: Path) -> list[Path]:
    """Keeps others from a database's files, and from the folder if nothing else is in it."""
    ours = [file.with_name(file.name + suffix) for suffix in ("", "-wal", "-shm", "-journal")]
    folder = file.parent
    if folder == data_dir and all(path.name.startswith(_OWN_FILES) for path in folder.iterdir()):
        ours.append(folder)
    return keep_private(ours)


def _checked_url(text: str) -> URL:
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise DatabaseError(
            "the database URL is not valid: write postgresql://user:password@host/name "
            "or sqlite:///path"
        ) from error
    if url.drivername in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
        return url
    if url.get_backend_name() == "postgresql":
        return url
    raise DatabaseError(
        f"a database URL of the kind '{url.drivername}' does not serve: write "
        "postgresql://user:password@host/name or sqlite:///path"
    )


def _create_engine(url: URL) -> sa.Engine:
    sqlite = url.get_backend_name() == "sqlite"
    patience = {
        name: value for name, value in _POSTGRESQL_PATIENCE.items() if name not in url.query
    }
    try:
        # The connection used last is the fastest: its statements are prepared.
        engine = sa.create_engine(
            url,
            pool_size=POSTGRESQL_THREADS,
            pool_use_lifo=True,
            connect_args={} if sqlite else patience,
        )
    except (ImportError, SQLAlchemyError) as error:
        raise DatabaseError(
            f"the driver of '{url.drivername}' is not installed: pip install 'craftbox[postgres]'"
        ) from error
    if sqlite:
        file = _SqliteFile(Path(url.database or ""))
        sa.event.listen(engine, "do_connect", file.on_connecting)
        sa.event.listen(engine, "connect", _on_sqlite_connect)
        sa.event.listen(engine, "begin", partial(_on_sqlite_begin, file))
    else:
        sa.event.listen(engine, "checkout", _on_postgresql_checkout)
        sa.event.listen(engine, "connect", _on_postgresql_connect)
    return engine


class _SqliteFile:
    """The file of a SQLite database, which stays the same while the database is open.

    SQLite itself would go on in a file that was deleted, and make a new one for its next
    connection.
    """

    def __init__(self, path: Path) -> None:
        self._name = str(path)
        self._opened: tuple[int, int] | None = None

    def on_connecting(self, *_: object) -> None:
        """Before a connection is made."""
        if self._opened is not None:
            self.check()
            return
        # SQLite gives its other files the rights of this one. What it cannot open it says itself.
        with suppress(OSError):
            make_private(Path(self._name))

    def check(self) -> None:
        """Raises OperationalError where the file is not the one that was opened."""
        try:
            status = os.stat(self._name)  # noqa: PTH116 - quicker, for every call
            found = status.st_dev, status.st_ino
        except OSError:
            found = None
        if self._opened is None:
            self._opened = found
        elif found != self._opened:
            moved = sqlite3.OperationalError(f"the file '{self._name}' was moved or replaced")
            raise sa.exc.OperationalError(None, None, moved)


def _on_postgresql_checkout(connection: Any, _record: Any, _proxy: Any) -> None:
    """Lets go of connections that the server has ended, before a statement is lost on one.

    Nothing is to be read from a connection that nobody uses but the news of its end.
    """
    waiting = select.poll()
    waiting.register(connection.fileno(), select.POLLIN)
    if waiting.poll(0):
        raise sa.exc.InvalidatePoolError


def _on_sqlite_connect(connection: Any, _record: Any) -> None:
    # Python's sqlite3 would begin transactions on its own, and too late.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    _use_wal(connection)
    connection.execute("PRAGMA foreign_keys = ON")


def _use_wal(connection: Any) -> None:
    """Switches the file to WAL, if it is new.

    SQLite does not wait, whatever its busy timeout, for another connection that switches it too.
    """
    until = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


def _on_sqlite_begin(file: _SqliteFile, connection: sa.Connection) -> None:
    file.check()
    kind: _Kind = connection.get_execution_options()["craft_kind"]
    # A single statement only reads, which in WAL mode waits for nobody and writes nothing.
    if kind.begin and connection.info.get("pragmas") != kind.pragmas:
        driver: Any = connection.connection.driver_connection
        for name, value in kind.pragmas.items():
            driver.execute(f"PRAGMA {name} = {value}")
        connection.info["pragmas"] = kind.pragmas
    if kind.begin:
        connection.exec_driver_sql(kind.begin)


def _is_busy(error: Unavailable) -> bool:
    """Whether SQLite would have had to wait for another connection."""
    code: int = getattr(getattr(error.__cause__, "orig", None), "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_BUSY


def _on_postgresql_connect(connection: Any, _record: Any) -> None:
    # What is to be on disk is flushed after its commit (`_flush`).
    connection.execute("SET synchronous_commit = off")
    connection.commit()


def _reason(error: Exception) -> str:
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    return " ".join(str(cause).split())
