"""Notices of how much of a budget is spent, until they are sent."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

_NUMBERS = ("budget_id", "key_id", "team_id", "window_start", "limit", "spent", "percent")
_MAY_BE_NULL = ("key_id", "team_id")


def upgrade() -> None:
    """Makes the table."""
    op.create_table(
        "notices",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=name in _MAY_BE_NULL) for name in _NUMBERS),
        sa.Column("unit", sa.Text, nullable=False),
        sa.Column("window", sa.Text, nullable=False),
        sa.Column("told", sa.Text, nullable=False, server_default=sa.text("'[]'")),
        sa.Column("attempts", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("next_at", sa.BigInteger, nullable=False),
        sa.Column("closed_at", sa.BigInteger),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_notices_closed_at_next_at", "notices", ["closed_at", "next_at"])


def downgrade() -> None:
    """Drops it; what was not sent is not sent any more."""
    op.drop_table("notices")
