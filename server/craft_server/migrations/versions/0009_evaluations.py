"""What a reported run's adapter is worth on labelled images."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
ALTERS = ("run_reports",)


def upgrade() -> None:
    """Makes the column."""
    op.add_column("run_reports", sa.Column("evaluation", sa.Text))


def downgrade() -> None:
    """Drops it."""
    op.drop_column("run_reports", "evaluation")
