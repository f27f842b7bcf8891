"""The console: sessions of people who sign in, and runs that report themselves."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
ALTERS = ("key_secrets",)

_UNITS = ("queries", "predictions", "images", "texts", "requests")
_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "console_sessions",
        sa.Column("token_hash", sa.Text, primary_key=True),
        sa.Column("prefix", sa.Text, sa.ForeignKey("key_secrets.prefix"), nullable=False),
        sa.Column("form_token", sa.Text, nullable=False),
        sa.Column("notice", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_console_sessions_expires_at", "console_sessions", ["expires_at"])
    op.create_table(
        "run_reports",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("dataset", sa.Text, nullable=False),
        sa.Column("recipe", sa.Text, nullable=False),
        sa.Column("budget", sa.BigInteger),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("owner", "run"),
    )
    op.create_table(
        "run_points",
        sa.Column("report_id", _ID, sa.ForeignKey("run_reports.id"), primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("loss", sa.Double),
        sa.Column("best_loss", sa.Double),
        sa.Column("accuracy", sa.Double),
        sa.Column("spent", sa.BigInteger, nullable=False),
        *(sa.Column(unit, sa.BigInteger, nullable=False) for unit in _UNITS),
    )


def downgrade() -> None:
    """Drops the tables; nothing of the ledger is in them."""
    for table in ("run_points", "run_reports", "console_sessions"):
        op.drop_table(table)
