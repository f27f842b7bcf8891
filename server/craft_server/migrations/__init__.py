"""The schema's history, applied with Alembic.

From 0003 on a revision only adds: tables, columns that may be null or have a default, indexes. So a
server of the revision before goes on while and after another one migrates.

Source: Alembic, "Sharing a connection across one or more programmatic migration commands".
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

# So that METADATA has all tables.
import craft_server.adapters.tables
import craft_server.console.sessions
import craft_server.image_sets
import craft_server.ledger.tables
import craft_server.noise
import craft_server.policy
import craft_server.run_reports  # noqa: F401
from craft_server.database import METADATA as METADATA

LOCK_TIMEOUT_MS = 5000
_LOCK = 0x63726166745F6462  # any number that nothing else on the PostgreSQL server locks


def upgrade(connection: sa.Connection) -> None:
    """Brings the schema to the newest revision, inside the caller's writing transaction.

    Two processes that start at once wait for each other, and the second finds nothing to do.

    Raises:
        alembic.util.CommandError: the database has a revision that this code does not know.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        # A change of a table that waits for a long transaction would keep all readers waiting.
        connection.execute(sa.text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
