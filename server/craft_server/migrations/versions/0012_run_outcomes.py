"""What reported runs came to, and what their owners note."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
ALTERS = ("run_reports",)


def upgrade() -> None:
    """Makes the columns."""
    op.add_column("run_reports", sa.Column("outcome", sa.Text))
    op.add_column("run_reports", sa.Column("note", sa.Text, nullable=False, server_default=""))


def downgrade() -> None:
    """Drops them."""
    op.drop_column("run_reports", "note")
    op.drop_column("run_reports", "outcome")
