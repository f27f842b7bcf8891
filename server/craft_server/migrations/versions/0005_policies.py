"""What a key's answers may reveal, the secret of noise, and which prompts have been asked.

Keys that there are go on seeing everything.
"""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
ALTERS = ("api_keys",)


def upgrade() -> None:
    """Makes the column and the tables, and the secret."""
    op.add_column("api_keys", sa.Column("policies", sa.Text))
    noise_secrets = op.create_table(
        "noise_secrets",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("secret", sa.LargeBinary, nullable=False),
    )
    op.bulk_insert(noise_secrets, [{"id": 1, "secret": secrets.token_bytes(32)}])
    op.create_table(
        "asked_prompts",
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("pictures", sa.Text, primary_key=True),
        sa.Column("prompt", sa.Text, primary_key=True),
    )


def downgrade() -> None:
    """There is no way back: 0004 has no place for what 0005 knows."""
    raise NotImplementedError("restore a backup made before the upgrade")
