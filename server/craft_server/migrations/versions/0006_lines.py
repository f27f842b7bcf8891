"""Lines of the ledger are numbered key by key: ids counted the calls of all keys together.

Lines that there are get their numbers in the order of their ids.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
ALTERS = ("charges", "totals")

_NUMBER = """
    UPDATE charges SET line = numbered.line
    FROM (
        SELECT id, ROW_NUMBER() OVER (PARTITION BY key_id ORDER BY id) AS line FROM charges
    ) AS numbered
    WHERE numbered.id = charges.id
"""
_COUNT = """
    UPDATE totals
    SET lines = (SELECT COUNT(*) FROM charges WHERE charges.key_id = totals.key_id)
"""


def upgrade() -> None:
    """Makes both columns and fills them."""
    for table, column in (("charges", "line"), ("totals", "lines")):
        # SQLite adds no column without a default to a table that may have rows.
        op.add_column(
            table, sa.Column(column, sa.BigInteger, nullable=False, server_default=sa.text("0"))
        )
    op.execute(_NUMBER)
    op.execute(_COUNT)
    op.drop_index("ix_charges_key_id_id", "charges")
    op.create_index("ix_charges_key_id_line", "charges", ["key_id", "line"], unique=True)


def downgrade() -> None:
    """Drops the columns; ids are as they were."""
    op.drop_index("ix_charges_key_id_line", "charges")
    op.create_index("ix_charges_key_id_id", "charges", ["key_id", "id"])
    op.drop_column("charges", "line")
    op.drop_column("totals", "lines")
