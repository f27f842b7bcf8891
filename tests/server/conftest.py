"""Stores, servers and pictures for the server's tests."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import sqlalchemy as sa
import structlog
import uvicorn
from fastapi import FastAPI
from sqlalchemy.engine import make_url

from craft_server.app import create_app
from craft_server.clock import now_ms
from craft_server.database import FILE_NAME, Database
from craft_server.engine import Engine
from craft_server.ledger.budgets import set_budget
from craft_server.ledger.keys import Caller, authenticate, create_key, find_key
from craft_server.serving.listening import server_config
from craft_server.settings import DEFAULT_LIMITS, Settings

POSTGRESQL = os.environ.get("CRAFT_TEST_POSTGRESQL", "postgresql://postgres@127.0.0.1:5432")


@pytest.fixture(scope="session", autouse=True)
def _quiet_log() -> Iterator[None]:
    """Keeps log lines from being rendered for nobody."""
    structlog.configure(processors=[_drop])
    yield
    structlog.reset_defaults()


def _drop(_logger: Any, _method: str, _event: Any) -> Any:
    raise structlog.DropEvent


@pytest.fixture(scope="session")
def new_postgresql() -> Iterator[Callable[[], str]]:
    """Gives URLs of empty schemas of one PostgreSQL database, dropped at the end of the session."""
    try:
        admin = psycopg.connect(f"{POSTGRESQL}/postgres", autocommit=True, connect_timeout=3)
    except psycopg.OperationalError as error:
        pytest.skip(f"no PostgreSQL answers at {POSTGRESQL}: {error}")
    name = f"craftbox_test_{secrets.token_hex(6)}"
    admin.execute(f'CREATE DATABASE "{name}"')

    def make() -> str:
        schema = f"test_{secrets.token_hex(6)}"
        with psycopg.connect(f"{POSTGRESQL}/{name}", autocommit=True) as connection:
            connection.execute(f'CREATE SCHEMA "{schema}"')
        return f"{POSTGRESQL}/{name}?options=-csearch_path%3D{schema}"

    yield make
    admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    admin.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def bare_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    make: Callable[[], str] = request.getfixturevalue("new_postgresql")
    return make()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database without rows: to copy it takes a hundredth of the time to migrate one."""
    path = tmp_path_factory.mktemp("migrated") / "store.db"
    Database.open(f"sqlite:///{path}", path.parent).close()
    return path


class Schema:
    """A schema of PostgreSQL that is migrated once and then serves one test after another."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        Database.open(url, folder).close()
        # No connection stays open, for tests end those that are.
        self._engine = sa.create_engine(
            make_url(url).set(drivername="postgresql+psycopg"), poolclass=sa.NullPool
        )
        metadata = sa.MetaData()
        metadata.reflect(self._engine)
        self._tables = metadata.sorted_tables
        with self._engine.begin() as connection:
            self._rows = [connection.execute(sa.select(table)).all() for table in self._tables]
            self._sequences = connection.execute(_SEQUENCES).mappings().all()

    def as_migrated(self) -> None:
        """Takes away what a test has left; a test that holds a lock for ever fails here."""
        with self._engine.begin() as connection:
            connection.execute(sa.text("SET LOCAL lock_timeout = '10s'"))
            for table in reversed(self._tables):
                connection.execute(sa.delete(table))
            for table, rows in zip(self._tables, self._rows, strict=True):
                if rows:
                    connection.execute(sa.insert(table), [row._asdict() for row in rows])
            connection.execute(
                sa.text("SELECT setval(:name, coalesce(:last, 1), :last IS NOT NULL)"),
                [dict(sequence) for sequence in self._sequences],
            )


_SEQUENCES = sa.text(
    "SELECT format('%I.%I', schemaname, sequencename) AS name, last_value AS last "
    "FROM pg_sequences WHERE schemaname = current_schema()"
)


@pytest.fixture(scope="session")
def _schema(new_postgresql: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Schema:
    return Schema(new_postgresql(), tmp_path_factory.mktemp("migrated"))


@pytest.fixture
def migrated_postgresql(_schema: Schema) -> Iterator[str]:
    """The URL of tables without rows, which take a second to migrate and a moment to empty."""
    yield _schema.url
    _schema.as_migrated()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path, migrated_sqlite: Path) -> str:
    """The URL of a database whose tables have no rows, of each kind."""
    if request.param == "sqlite":
        shutil.copy(migrated_sqlite, tmp_path / "store.db")
        return f"sqlite:///{tmp_path / 'store.db'}"
    url: str = request.getfixturevalue("migrated_postgresql")
    return url


@pytest.fixture
def store(store_url: str, tmp_path: Path) -> Iterator[Database]:
    """An open database of each kind."""
    database = Database.open(store_url, tmp_path)
    yield database
    database.close()


@dataclass
class Server:
    """The real application behind a socket, in this process."""

    url: str
    app: FastAPI

    @property
    def database(self) -> Database:
        database: Database = self.app.state.services.database
        return database

    @property
    def engine(self) -> Any:
        return self.app.state.services.engine

    def key(self, owner: str | None = None, **limits: int) -> str:
        """The secret of a new key with lifetime budgets."""
        at = now_ms()
        with self.database.writing() as connection:
            secret = create_key(connection, owner=owner or secrets.token_hex(4), name="test", at=at)
            key_id = find_key(connection, secret.split("_")[1]).key_id
            for unit, limit in limits.items():
                set_budget(
                    connection,
                    key_id=key_id,
                    unit=unit,
                    window="lifetime",
                    limit=limit,
                    at=at,
                )
        return secret

    def client(self, owner: str | None = None, **limits: int) -> httpx.Client:
        """A client with a new key; of a new owner unless one is named."""
        headers = {"Authorization": f"Bearer {self.key(owner, **limits)}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)


ServeApp = Callable[..., Any]


@contextmanager
def serving(settings: Settings, engine: Engine) -> Iterator[Server]:
    app = create_app(settings, engine)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = server_config(app, settings, grace_seconds=1)
        process = uvicorn.Server(config)
        thread = threading.Thread(target=process.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            deadline = time.monotonic() + 30
            while not process.started:
                assert thread.is_alive(), "the server did not start"
                assert time.monotonic() < deadline, "the server did not start in time"
                time.sleep(0.005)
            yield Server(f"http://127.0.0.1:{listener.getsockname()[1]}", app)
        finally:
            process.should_exit = True
            thread.join(30)
            assert not thread.is_alive(), "the server did not stop"


@pytest.fixture(scope="session")
def serving_with() -> Callable[[Settings, Engine], Any]:
    """Starts servers that outlive a test: `with serving_with(settings, engine) as server`."""
    return serving


@pytest.fixture
def serve(tmp_path: Path, tiny_engine: Engine, migrated_sqlite: Path) -> ServeApp:
    """Starts a server with settings of the test's own: `with serve(limits={...}) as server`."""
    if not (tmp_path / FILE_NAME).exists():
        shutil.copy(migrated_sqlite, tmp_path / FILE_NAME)

    def start(*, engine: Any = None, limits: dict[str, int] | None = None, **settings: Any) -> Any:
        bounds = DEFAULT_LIMITS.model_copy(update=limits or {})
        return serving(
            Settings(data_dir=tmp_path, limits=bounds, **settings), engine or tiny_engine
        )

    return start


@pytest.fixture(params=["sqlite", "postgresql"])
def stored(request: pytest.FixtureRequest, serve: ServeApp) -> Iterator[Server]:
    """A server on each kind of database."""
    url = None if request.param == "sqlite" else request.getfixturevalue("migrated_postgresql")
    with serve(database_url=url) as running:
        yield running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_engine: Engine) -> Iterator[Server]:
    """One server on SQLite for all tests that need nothing special of it."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("server"))
    with serving(settings, tiny_engine) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A client of a new owner without bounds."""
    with server.client() as made:
        yield made


@pytest.fixture
def caller(store: Database) -> Caller:
    """A key with a budget of ten queries."""
    with store.writing() as connection:
        secret = create_key(connection, owner="owner", at=now_ms())
        found = authenticate(connection, secret, now_ms())
        assert found is not None
        set_budget(
            connection,
            key_id=found.key_id,
            unit="queries",
            window="lifetime",
            limit=10,
            at=now_ms(),
        )
    return found
