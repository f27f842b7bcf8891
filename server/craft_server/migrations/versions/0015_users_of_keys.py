"""A key's end users are found without looking at those of all other keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
ALTERS = ("teams",)

_OF_KEY = sa.text("user_of IS NOT NULL")


def upgrade() -> None:
    """Makes the index."""
    op.create_index(
        "ix_teams_user_of",
        "teams",
        ["user_of"],
        sqlite_where=_OF_KEY,
        postgresql_where=_OF_KEY,
    )


def downgrade() -> None:
    """Drops it."""
    op.drop_index("ix_teams_user_of", "teams")
