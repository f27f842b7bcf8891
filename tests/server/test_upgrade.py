"""A server of the previous schema goes on reading while, and after, the schema is migrated."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.engine import make_url

from craft_server import migrations
from craft_server.database import Database, DatabaseError
from waiting import until

PATIENCE_SECONDS = 30
# What `GET /v1/usage` and `GET /v1/budget` read, a key's admission included.
READ = ("key_secrets", "api_keys", "teams", "budgets", "totals", "charges", "calls", "prices")


def config_of(connection: sa.Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["connection"] = connection
    return config


def revisions() -> list[str]:
    """Oldest first."""
    script = ScriptDirectory.from_config(config_of())
    return [one.revision for one in script.walk_revisions()][::-1]


def engine_of(url: str) -> sa.Engine:
    made = make_url(url)
    if made.drivername == "postgresql":
        made = made.set(drivername="postgresql+psycopg")
    return sa.create_engine(made)


@pytest.fixture
def previous(bare_url: str) -> Any:
    """An engine on a database of the previous revision, with a key and a charge."""
    engine = engine_of(bare_url)
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        command.upgrade(config_of(connection), revisions()[-2])
    tables = reflected(engine)
    rows: dict[str, dict[str, Any]] = {
        "teams": {"id": 1, "name": "lab", "created_at": 0},
        "api_keys": {"id": 1, "owner": "me", "name": "", "scopes": "predict", "created_at": 0},
        "key_secrets": {"prefix": "aaaaaaaa", "key_id": 1, "secret_hash": "x", "created_at": 0},
    }
    with engine.begin() as connection:
        for name, row in rows.items():
            connection.execute(sa.insert(tables[name]).values(**row))
    yield engine
    engine.dispose()


def reflected(engine: sa.Engine) -> dict[str, sa.Table]:
    metadata = sa.MetaData()
    metadata.reflect(engine)
    return dict(metadata.tables)


def read(engine: sa.Engine, statements: list[sa.Select[Any]]) -> list[Any]:
    with engine.connect() as connection:
        return [connection.execute(statement).all() for statement in statements]


def waits(engine: sa.Engine) -> bool:
    """Whether somebody waits for a table; on SQLite no reader ever does."""
    if engine.dialect.name == "sqlite":
        return False
    waiting = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation'")
    with engine.connect() as connection:
        return bool(connection.execute(waiting).scalar())


def test_migrations_only_add(bare_url: str) -> None:
    """What the older version reads and writes is there, of the same type; it need not know more."""
    engine = engine_of(bare_url)
    before: dict[str, sa.Table] = {}
    for revision in revisions()[1:]:
        with engine.begin() as connection:
            command.upgrade(config_of(connection), revision)
        after = reflected(engine)
        for name, table in before.items():
            for column in table.columns:
                kept = after[name].columns[column.name]
                same = (str(kept.type), kept.nullable) == (str(column.type), column.nullable)
                assert same, f"{revision}: {kept}"
            for column in after[name].columns:
                needed = not column.nullable and column.server_default is None
                assert column.name in table.columns or not needed, (
                    f"{revision}: an older server cannot fill {column}"
                )
        before = after
    engine.dispose()
    assert before


def test_a_server_of_the_previous_schema_reads_while_it_is_migrated(
    previous: sa.Engine, bare_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Written by the previous version: these columns in the place of those that it does not know.
    tables = reflected(previous)
    statements = [sa.select(*tables[name].columns) for name in READ]
    expected = read(previous, statements)
    migrated, commit = threading.Event(), threading.Event()
    upgrade = migrations.upgrade

    def upgrade_slowly(connection: sa.Connection) -> None:
        upgrade(connection)
        migrated.set()
        assert commit.wait(PATIENCE_SECONDS)

    monkeypatch.setattr(migrations, "upgrade", upgrade_slowly)
    with ThreadPoolExecutor(2) as threads:
        opening = threads.submit(Database.open, bare_url, tmp_path)
        assert migrated.wait(PATIENCE_SECONDS)
        if previous.dialect.name == "sqlite":
            # Readers see the database as it was, and wait for nothing.
            assert read(previous, statements) == expected
        # PostgreSQL locks the tables that get a column, until the migration ends, and no longer.
        reading = threads.submit(read, previous, statements)
        until(lambda: reading.done() or waits(previous))
        commit.set()
        assert reading.result(PATIENCE_SECONDS) == expected
        opening.result(PATIENCE_SECONDS).close()
    assert read(previous, statements) == expected


def test_a_migration_does_not_queue_readers_behind_a_long_transaction(
    new_postgresql: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_postgresql()
    engine = engine_of(url)
    with engine.begin() as connection:
        command.upgrade(config_of(connection), "0012")
    monkeypatch.setattr(migrations, "LOCK_SECONDS", 0.2)
    with engine.connect() as long:
        # The next migration changes some of them.
        for name in reflected(engine):
            long.execute(sa.text(f'SELECT * FROM "{name}"'))
        with pytest.raises(
            DatabaseError, match=r"lock timeout.*; stop the servers that use it, or"
        ):
            Database.open(url, tmp_path)
    Database.open(url, tmp_path).close()
    engine.dispose()


def test_a_revision_names_the_tables_that_it_locks(new_postgresql: Any) -> None:
    engine = engine_of(new_postgresql())
    script = ScriptDirectory.from_config(config_of())
    locked = sa.text(
        "SELECT DISTINCT relname FROM pg_locks JOIN pg_class ON relation = pg_class.oid"
        " WHERE pid = pg_backend_pid() AND relkind = 'r' AND relname <> 'alembic_version'"
        " AND mode IN ('AccessExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock')"
    )
    found, named = {}, {}
    for revision in revisions():
        before = set(reflected(engine))
        with engine.begin() as connection:
            command.upgrade(config_of(connection), revision)
            if revision > "0002":  # those before made the database anew
                found[revision] = before.intersection(connection.scalars(locked))
                module = script.get_revision(revision).module
                named[revision] = set(getattr(module, "ALTERS", ()))
    engine.dispose()
    assert found == named


# Each holds one table and waits for another, the one in this order and the other in that.
RESERVE = (
    "UPDATE budgets SET reserved = reserved + 1",
    "UPDATE totals SET lines = lines + 1",
    "UPDATE charges SET queries = queries + 1",
)


def test_a_database_in_use_is_upgraded_under_its_writers(
    new_postgresql: Any, tmp_path: Path
) -> None:
    url = new_postgresql()
    engine = engine_of(url)
    with engine.begin() as connection:
        command.upgrade(config_of(connection), "0009")
    done, stop = [0, 0], threading.Event()

    def write(number: int, statements: tuple[str, ...]) -> None:
        while not stop.is_set():
            with engine.begin() as connection:
                for statement in statements:
                    connection.execute(sa.text(statement))
                    time.sleep(0.01)
            done[number] += 1
            time.sleep(0.03)

    with ThreadPoolExecutor(2) as threads:
        writers = [
            threads.submit(write, number, statements)
            for number, statements in enumerate((RESERVE, RESERVE[::-1]))
        ]
        try:
            until(lambda: all(done))
            Database.open(url, tmp_path).close()
            before = list(done)
            until(lambda: all(map(int.__gt__, done, before)) or any(w.done() for w in writers))
        finally:
            stop.set()
        for writer in writers:
            writer.result(PATIENCE_SECONDS)
    engine.dispose()
