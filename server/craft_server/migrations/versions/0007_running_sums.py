"""What every call waits for takes as long with a million answers as with a hundred.

Stored answers' bytes are summed up as they come and go; a key's lines are found by time, and public
adapters without looking at the others.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
ALTERS = ("adapter_settings", "calls", "charges")

_SHARDS = 16
_STORED = "body_bytes > 0 AND repeatable"


def upgrade() -> None:
    """Makes the sums and the indexes; those that they replace go last, for which readers wait."""
    stored_bytes = op.create_table(
        "stored_bytes",
        sa.Column("shard", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
    summed = sa.text(f"SELECT COALESCE(SUM(body_bytes), 0) FROM calls WHERE {_STORED}")  # noqa: S608
    total = int(op.get_bind().execute(summed).scalar_one())
    op.bulk_insert(
        stored_bytes,
        [{"shard": shard, "bytes": 0 if shard else total} for shard in range(_SHARDS)],
    )
    _create_partial("ix_calls_stored", "calls", ["id", "body_bytes"], _STORED)
    _create_partial("ix_charges_of_run", "charges", ["key_id", "run"], "run IS NOT NULL")
    op.create_index("ix_charges_key_id_at", "charges", ["key_id", "at"])
    _create_partial("ix_adapter_settings_public", "adapter_settings", ["owner", "name"], "public")
    op.drop_index("ix_calls_evictable", "calls")
    op.drop_index("ix_charges_key_id_run", "charges")


def downgrade() -> None:
    """Drops the sums; an older server counts each time."""
    _create_partial("ix_calls_evictable", "calls", ["id"], _STORED)
    op.create_index("ix_charges_key_id_run", "charges", ["key_id", "run"])
    op.drop_index("ix_adapter_settings_public", "adapter_settings")
    op.drop_index("ix_charges_key_id_at", "charges")
    op.drop_index("ix_charges_of_run", "charges")
    op.drop_index("ix_calls_stored", "calls")
    op.drop_table("stored_bytes")


def _create_partial(name: str, table: str, columns: list[str], where: str) -> None:
    condition = sa.text(where)
    op.create_index(name, table, columns, sqlite_where=condition, postgresql_where=condition)
