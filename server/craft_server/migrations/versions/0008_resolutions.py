"""What charged calls were resolved to, how often they were computed anew, and who called.

Calls that there are were resolved to nobody knows what any more; they can be answered again while
their bytes are there. Lines that are closed need no caller.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
ALTERS = ("calls", "charges")

_RESERVED = sa.text("state = 'reserved'")


def upgrade() -> None:
    """Makes the columns and fills the caller in where it counts."""
    op.add_column("calls", sa.Column("resolution", sa.Text))
    op.add_column(
        "calls",
        sa.Column("recomputed", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    )
    op.add_column("charges", sa.Column("caller_key_id", sa.BigInteger))
    op.execute("UPDATE charges SET caller_key_id = key_id WHERE state = 'reserved'")
    op.drop_index("ix_charges_reserved", "charges")
    op.create_index(
        "ix_charges_reserved",
        "charges",
        ["caller_key_id", "holder"],
        sqlite_where=_RESERVED,
        postgresql_where=_RESERVED,
    )


def downgrade() -> None:
    """Drops the columns."""
    op.drop_index("ix_charges_reserved", "charges")
    op.create_index(
        "ix_charges_reserved",
        "charges",
        ["key_id", "holder"],
        sqlite_where=_RESERVED,
        postgresql_where=_RESERVED,
    )
    op.drop_column("charges", "caller_key_id")
    op.drop_column("calls", "recomputed")
    op.drop_column("calls", "resolution")
