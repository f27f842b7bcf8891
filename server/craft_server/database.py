"""The database: where it is, how it is opened, and which threads wait for it.

SQLite (WAL mode, every commit on disk before it is answered) and PostgreSQL through the same calls.
A transaction is a plain function whose first argument is a `Connection`; where it might wait, it
runs on this module's own threads, never on the event loop. This module does not know what the
tables mean.

Sources: SQLAlchemy 2, "pysqlite: serializable isolation" (https://docs.sqlalchemy.org/);
SQLite's PRAGMA reference (https://sqlite.org/pragma.html).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import sqlalchemy as sa
from alembic.util import CommandError
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from craft_server.threads import on_thread

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
BUSY_TIMEOUT_MS = 30_000
# How a transaction begins on SQLite. A writer that began as a reader could not wait for another
# writer: SQLite would refuse it.
_BEGIN_WRITING = "BEGIN IMMEDIATE"
_NO_BEGIN = ""
# Checkpoints of the log wait for the disk; they are left to connections that may.
_PRAGMAS: dict[str, dict[str, str | int]] = {
    "durable": {"busy_timeout": BUSY_TIMEOUT_MS, "synchronous": "FULL"},
    "deferring": {"busy_timeout": BUSY_TIMEOUT_MS, "synchronous": "NORMAL"},
    "at once": {"busy_timeout": 0, "synchronous": "NORMAL", "wal_autocheckpoint": 0},
}
FILE_NAME = "craftbox.db"
# A transaction that writes, so that its commit waits for the disk, and all earlier commits with it.
_FLUSH = b"SET LOCAL synchronous_commit TO on; SELECT pg_logical_emit_message(true, 'craftbox', '')"

P = ParamSpec("P")
T = TypeVar("T")


class DatabaseError(Exception):
    """The database cannot be used; the message is one line for the operator."""


class Database:
    """An open database whose schema is the newest.

    `read`, `query`, `write` and `write_deferred` run one function in one transaction, on the
    database's threads unless it need not wait (`query` and `write_deferred` on SQLite); `reading`
    and `writing` are `read` and `write` for callers without an event loop.
    """

    def __init__(self, url: URL) -> None:
        self._engine = _create_engine(url, "durable")
        self._deferring = _create_engine(url, "deferring")
        self._at_once = _create_engine(url, "at once") if self.dialect == "sqlite" else None
        # SQLite has one writer at a time anyway: a second thread could only wait for the first.
        threads = 1 if self.dialect == "sqlite" else POSTGRESQL_THREADS
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="craft-database")

    @classmethod
    def open(cls, url: str | None, data_dir: Path) -> Database:
        """Connects, makes the folder and the file where need be, and migrates the schema.

        Args:
            url: of the database; None means SQLite in `data_dir`.
            data_dir: folder of the SQLite database.

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
        except CommandError as error:
            database.close()
            raise DatabaseError(
                f"the database '{shown}' was made by another version of craftbox: {error}"
            ) from error
        except SQLAlchemyError as error:
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
        with _begun(self._engine, "BEGIN") as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that writes: committed at the end of the block, undone if it raises."""
        with _begun(self._engine, _BEGIN_WRITING) as connection:
            yield connection

    async def read(
        self,
        function: Callable[Concatenate[sa.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Awaits `function(connection, ...)` in a reading transaction."""
        return await self._run(self._engine, "BEGIN", function, *args, **kwargs)

    async def query(
        self,
        function: Callable[Concatenate[sa.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Awaits a short `function(connection, ...)` that runs one reading statement.

        The statement is its own transaction, which saves the ways to the database and back that
        begin and end one. A connection that broke since it was used last is replaced.
        """
        try:
            return await self._run_soon(self._engine, _NO_BEGIN, function, *args, **kwargs)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            return await self._run(self._engine, _NO_BEGIN, function, *args, **kwargs)

    async def write(
        self,
        function: Callable[Concatenate[sa.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Awaits `function(connection, ...)` in a writing transaction, which is then on disk.

        On PostgreSQL others need not wait for the disk: they see the transaction, and may lock what
        it has changed, before. What they write is on disk only after it.
        """
        if self.dialect == "sqlite":
            return await self._run(self._engine, _BEGIN_WRITING, function, *args, **kwargs)

        def write_and_flush() -> T:
            with self._deferring.connect() as connection:
                with connection.begin():
                    result = function(connection, *args, **kwargs)
                _flush(connection)
            return result

        return await on_thread(self._threads, write_and_flush)

    async def on_disk(self) -> None:
        """Waits until the disk has every transaction that could be seen when it was called."""
        if self.dialect == "sqlite":
            return

        def flush() -> None:
            with self._deferring.connect() as connection:
                _flush(connection)

        await on_thread(self._threads, flush)

    async def write_deferred(
        self,
        function: Callable[Concatenate[sa.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Like `write`, but the disk has it only with the next `write`, or soon.

        Everyone sees it at once, and it survives the death of this process. If the machine itself
        dies, it may be lost, but never without everything that was written after it.
        """
        return await self._run_soon(self._deferring, _BEGIN_WRITING, function, *args, **kwargs)

    async def _run_soon(
        self,
        engine: sa.Engine,
        begin: str,
        function: Callable[Concatenate[sa.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """On SQLite at once, on the event loop, unless it would have to wait.

        What waits neither for the disk nor for another writer is Python code, which would hold the
        interpreter lock on any thread; the way to a thread and back takes as long as it does.
        """
        if self._at_once is not None:
            try:
                with _begun(self._at_once, begin) as connection:
                    return function(connection, *args, **kwargs)
            except DBAPIError as error:
                if not _is_busy(error):
                    raise
        return await self._run(engine, begin, function, *args, **kwargs)

    async def _run(
        self,
        engine: sa.Engine,
        begin: str,
        function: Callable[Concatenate[sa.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        def run() -> T:
            with _begun(engine, begin) as connection:
                return function(connection, *args, **kwargs)

        return await on_thread(self._threads, run)

    async def answers(self) -> bool:
        """Whether the database answers."""
        try:
            await self.query(_ping)
        except SQLAlchemyError:
            return False
        return True

    def close(self) -> None:
        """Waits for running transactions and closes all connections."""
        self._threads.shutdown()
        for engine in (self._engine, self._deferring, self._at_once):
            if engine is not None:
                engine.dispose()


@contextmanager
def _begun(engine: sa.Engine, begin: str) -> Iterator[sa.Connection]:
    with engine.connect() as connection:
        connection.execution_options(craft_begin=begin)
        if begin == _NO_BEGIN and engine.dialect.name == "postgresql":
            connection.execution_options(isolation_level="AUTOCOMMIT")
        with connection.begin():
            yield connection


def _flush(connection: sa.Connection) -> None:
    """Waits until the disk has what the PostgreSQL connection has committed."""
    driver: Any = connection.connection.driver_connection
    # As one simple query, which is one transaction of its own.
    result = driver.pgconn.exec_(_FLUSH)
    if result.error_message:
        raise sa.exc.OperationalError(None, None, Exception(result.get_error_message()))


def insert_missing(connection: sa.Connection, table: sa.Table, **values: Any) -> None:
    """Inserts a row unless a unique constraint says that it is there, by whoever made it."""
    insert = postgresql_insert if connection.dialect.name == "postgresql" else sqlite_insert
    connection.execute(insert(table).values(**values).on_conflict_do_nothing())


def insert_all_missing(
    connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Like `insert_missing` for some rows of the same columns."""
    insert = postgresql_insert if connection.dialect.name == "postgresql" else sqlite_insert
    connection.execute(insert(table).on_conflict_do_nothing(), [dict(row) for row in rows])


def _ping(connection: sa.Connection) -> None:
    connection.execute(sa.select(1))


def _file_url(data_dir: Path) -> URL:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseError(
            f"cannot make the data folder '{data_dir}': {error.strerror}"
        ) from error
    return URL.create("sqlite", database=str(data_dir / FILE_NAME))


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


def _create_engine(url: URL, purpose: Literal["durable", "deferring", "at once"]) -> sa.Engine:
    try:
        if url.get_backend_name() == "sqlite":
            engine = sa.create_engine(url)
            sa.event.listen(engine, "connect", partial(_on_sqlite_connect, _PRAGMAS[purpose]))
            sa.event.listen(engine, "begin", _on_sqlite_begin)
            return engine
        # The connection used last is the fastest: its statements are prepared.
        engine = sa.create_engine(url, pool_size=POSTGRESQL_THREADS, pool_use_lifo=True)
        if purpose == "deferring":
            sa.event.listen(engine, "connect", _on_deferring_postgresql_connect)
        return engine
    except (ImportError, SQLAlchemyError) as error:
        raise DatabaseError(
            f"the driver of '{url.drivername}' is not installed: pip install 'craftbox[postgres]'"
        ) from error


def _on_sqlite_connect(pragmas: Mapping[str, str | int], connection: Any, _record: Any) -> None:
    # Python's sqlite3 would begin transactions on its own, and too late.
    connection.isolation_level = None
    for name, value in {"journal_mode": "WAL", "foreign_keys": "ON", **pragmas}.items():
        connection.execute(f"PRAGMA {name} = {value}")


def _on_sqlite_begin(connection: sa.Connection) -> None:
    begin = connection.get_execution_options()["craft_begin"]
    if begin != _NO_BEGIN:
        connection.exec_driver_sql(begin)


def _is_busy(error: DBAPIError) -> bool:
    """Whether SQLite would have had to wait for another connection."""
    code: int = getattr(error.orig, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_BUSY


def _on_deferring_postgresql_connect(connection: Any, _record: Any) -> None:
    connection.execute("SET synchronous_commit = off")
    connection.commit()


def _reason(error: SQLAlchemyError) -> str:
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    return " ".join(str(cause).split())
