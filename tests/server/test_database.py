from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from craft_server import database
from craft_server.database import FILE_NAME, Database, DatabaseError, insert_missing
from craft_server.ledger.keys import create_key, list_keys
from craft_server.ledger.tables import TEAMS
from craft_server.migrations import METADATA

POSTGRESQL = os.environ.get("CRAFT_TEST_POSTGRESQL", "postgresql://postgres@127.0.0.1:5432")


def test_migrations_make_the_schema_that_the_code_uses(store: Database) -> None:
    with store.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_opening_again_keeps_what_is_there(store: Database, store_url: str, tmp_path: Path) -> None:
    with store.writing() as connection:
        create_key(connection, owner="owner", at=0)
    again = Database.open(store_url, tmp_path)
    with again.reading() as connection:
        assert [entry.owner for entry in list_keys(connection)] == ["owner"]
    again.close()


def test_processes_that_open_an_empty_database_at_once_wait_for_each_other(
    bare_url: str, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(6) as threads:
        opened = list(threads.map(lambda _: Database.open(bare_url, tmp_path), range(6)))
    for one in opened:
        one.close()


def test_opening_waits_for_another_program_that_writes_to_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE theirs (id INTEGER)")
    other.execute("BEGIN IMMEDIATE")
    writing = threading.Timer(0.2, other.execute, ("COMMIT",))
    writing.start()
    Database.open(None, tmp_path).close()
    writing.join()
    other.close()


def test_a_newer_database_is_refused(store: Database, store_url: str, tmp_path: Path) -> None:
    with store.writing() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseError, match="another version of craftbox"):
        Database.open(store_url, tmp_path)


def test_sqlite_keeps_commits_through_a_power_cut(tmp_path: Path) -> None:
    database = Database.open(None, tmp_path)
    with database.reading() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    database.close()
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_a_transaction_that_raises_changes_nothing(store: Database) -> None:
    def fail_halfway() -> None:
        with store.writing() as connection:
            create_key(connection, owner="owner", at=0)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    with store.reading() as connection:
        assert list_keys(connection) == []


def test_calls_run_off_the_event_loop(store: Database) -> None:
    async def where() -> int:
        return await store.read(lambda _: threading.get_ident())

    assert asyncio.run(where()) != threading.get_ident()


def _pid(connection: sa.Connection) -> int:
    pid: int = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
    return pid


def test_a_query_goes_on_with_a_new_connection_when_the_server_ended_the_old_one(
    new_postgresql: Callable[[], str], tmp_path: Path
) -> None:
    store = Database.open(new_postgresql(), tmp_path)
    before = asyncio.run(store.query(_pid))
    with psycopg.connect(f"{POSTGRESQL}/postgres", autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(%s)", [before])
    assert asyncio.run(store.query(_pid)) != before
    store.close()


def test_a_deferred_write_is_seen_at_once_and_undone_if_it_raises(store: Database) -> None:
    asyncio.run(store.write_deferred(insert_missing, TEAMS, name="lab", created_at=1))
    with pytest.raises(sa.exc.IntegrityError):
        asyncio.run(store.write_deferred(insert_missing, TEAMS, name="x", created_at=None))
    names = asyncio.run(store.query(lambda c: c.execute(sa.select(TEAMS.c.name)).scalars().all()))
    assert names == ["lab"]


def test_what_was_written_to_postgresql_is_on_disk(
    new_postgresql: Callable[[], str], tmp_path: Path
) -> None:
    store = Database.open(new_postgresql(), tmp_path)

    def write(connection: sa.Connection) -> object:
        connection.execute(sa.insert(TEAMS).values(name=uuid.uuid4().hex, created_at=0))
        return connection.execute(sa.text("SELECT pg_current_wal_insert_lsn()")).scalar()

    def beyond(place: object) -> bool:
        with store.reading() as connection:
            flushed = sa.text("SELECT pg_current_wal_flush_lsn() >= CAST(:place AS pg_lsn)")
            return bool(connection.execute(flushed, {"place": place}).scalar())

    async def deferred_and_waited_for() -> object:
        place = await store.write_deferred(write)
        await store.on_disk()
        return place

    assert all(beyond(asyncio.run(store.write(write))) for _ in range(20))
    assert all(beyond(asyncio.run(deferred_and_waited_for())) for _ in range(20))
    store.close()


def test_who_waits_for_the_disk_does_not_keep_others_waiting_on_postgresql(
    new_postgresql: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Database.open(new_postgresql(), tmp_path)
    with store.writing() as connection:
        connection.execute(sa.insert(TEAMS).values(name="shared", created_at=0))
    # A disk that takes its time.
    wait = "SELECT pg_advisory_xact_lock(1)"
    monkeypatch.setattr(database, "_FLUSH", f"BEGIN; {wait}; COMMIT".encode())

    def change(connection: sa.Connection) -> None:
        connection.execute(sa.update(TEAMS).values(created_at=TEAMS.c.created_at + 1))

    async def go() -> None:
        with store.reading() as connection:
            connection.execute(sa.text(wait))
            first = asyncio.ensure_future(store.write(change))
            await asyncio.sleep(0.2)
            await asyncio.wait_for(store.write_deferred(change), 10)
            assert not first.done()
        await first

    asyncio.run(go())
    store.close()


def test_a_deferred_write_on_sqlite_waits_for_another_writer_off_the_event_loop(
    tmp_path: Path,
) -> None:
    async def go() -> list[str]:
        events: list[str] = []

        def write(_: sa.Connection) -> None:
            assert threading.get_ident() != loop_thread
            events.append("written")

        loop_thread = threading.get_ident()
        with store.writing():
            waiting = asyncio.ensure_future(store.write_deferred(write))
            await asyncio.sleep(0)  # it has tried, and the loop is free again
            events.append("the loop runs")
        await waiting
        return events

    store = Database.open(None, tmp_path)
    assert asyncio.run(go()) == ["the loop runs", "written"]
    store.close()


def test_a_closed_database_does_not_answer(tmp_path: Path) -> None:
    database = Database.open(None, tmp_path)
    assert asyncio.run(database.answers())
    database._engine.dispose()
    (tmp_path / "craftbox.db").unlink()
    (tmp_path / "craftbox.db").mkdir()
    assert not asyncio.run(database.answers())
    database.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "not valid"),
        ("mysql://user:secret@localhost/name", "mysql"),
        ("sqlite://", "sqlite:///path"),
        ("postgresql://user:secret@127.0.0.1:1/name", "refused"),
        ("sqlite:////proc/nowhere/store.db", "unable to open"),
    ],
)
def test_a_bad_url_is_one_line_without_the_password(url: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=words) as caught:
        Database.open(url, tmp_path)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_there_is_not_inserted_again(store: Database) -> None:
    with store.writing() as connection:
        insert_missing(connection, TEAMS, name="lab", created_at=1)
        insert_missing(connection, TEAMS, name="lab", created_at=2)
        assert connection.execute(sa.select(TEAMS.c.created_at)).scalars().all() == [1]
        with pytest.raises(sa.exc.IntegrityError):
            insert_missing(connection, TEAMS, name="other", created_at=None)


def test_long_reads_of_one_key_leave_other_keys_their_turn(store: Database) -> None:
    begun, go = [], threading.Event()

    def slow(_connection: sa.Connection) -> None:
        begun.append(1)
        assert go.wait(60)

    async def read() -> None:
        of_one = [asyncio.ensure_future(store.read_long(1, slow)) for _ in range(4)]
        try:
            while not begun:
                await asyncio.sleep(0.01)
            # Whoever hangs up gets no more threads than who waits.
            of_one[0].cancel()
            assert await asyncio.wait_for(store.read_long(2, _seven), 30) == 7
            assert len(begun) == 1
        finally:
            go.set()
        await asyncio.gather(*of_one, return_exceptions=True)
        assert len(begun) == 4

    asyncio.run(read())


def _seven(connection: sa.Connection) -> int:
    return int(connection.execute(sa.select(sa.literal(7))).scalar_one())
