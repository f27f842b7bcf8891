"""The schema's history, applied with Alembic.

From 0003 on a revision only adds: tables, columns that may be null or have a default, indexes. So a
server of the revision before goes on while and after another one migrates. `ALTERS` in a revision
names the older tables that it changes, refers to or indexes.

Source: Alembic, "Sharing a connection across one or more programmatic migration commands".
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError

# So that METADATA has all tables.
import craft_server.adapters.tables
import craft_server.console.sessions
import craft_server.image_sets
import craft_server.ledger.tables
import craft_server.noise
import craft_server.policy
import craft_server.run_reports  # noqa: F401
from craft_server.database import METADATA as METADATA
from craft_server.database import Unavailable

LOCK_TIMEOUT_MS = 200
LOCK_SECONDS = 30.0
_PAUSE_SECONDS = 0.1
_LOCK = 0x63726166745F6462  # any number that nothing else on the PostgreSQL server locks


def upgrade(connection: sa.Connection) -> None:
    """Brings the schema to the newest revision, inside the caller's writing transaction.

    Two processes that start at once wait for each other, and the second finds nothing to do.

    Raises:
        alembic.util.CommandError: the database has a revision that this code does not know.
        Unavailable: others use its tables without a pause.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        _lock(connection, _altered(connection, ScriptDirectory.from_config(config)))
    command.upgrade(config, "head")


def _altered(connection: sa.Connection, script: ScriptDirectory) -> set[str]:
    """The tables that exist and that a pending revision alters; none of a newer schema's."""
    heads = MigrationContext.configure(connection).get_current_heads()
    try:
        pending = list(script.iterate_revisions("head", heads or "base"))
    except RevisionError:  # the upgrade itself says so
        return set()
    altered = {table for one in pending for table in getattr(one.module, "ALTERS", ())}
    return altered.intersection(sa.inspect(connection).get_table_names())


def _lock(connection: sa.Connection, tables: Iterable[str]) -> None:
    """Locks all tables at once, or lets go of all before it tries again.

    Calls that run hold some of them and wait for others, in orders of their own: who held one table
    while it waits for the next would deadlock with them. Whoever comes later waits behind this.
    """
    connection.execute(sa.text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
    quote = connection.dialect.identifier_preparer.quote
    names = ", ".join(quote(table) for table in sorted(tables))
    if not names:
        return
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            with connection.begin_nested():
                connection.execute(sa.text(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE"))
        except sa.exc.OperationalError as error:
            if error.connection_invalidated:
                raise
            if time.monotonic() > until:
                raise Unavailable(
                    f"its schema has to be upgraded, and for {LOCK_SECONDS:g} s others used its "
                    f"tables all the time ({error.orig}); stop the servers that use it, or try "
                    "again when they have less to do"
                ) from error
            time.sleep(_PAUSE_SECONDS)
        else:
            return
