"""Which adapter a prediction was charged for; charges of all keys are found by time.

Of the lines that there are nobody knows it any more.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
ALTERS = ("charges",)


def upgrade() -> None:
    """Makes the index, while which readers go on, and then the column, for which they wait."""
    op.create_index("ix_charges_at", "charges", ["at"])
    op.add_column("charges", sa.Column("adapter", sa.Text))


def downgrade() -> None:
    """Drops both."""
    op.drop_column("charges", "adapter")
    op.drop_index("ix_charges_at", "charges")
