"""A placeholder: its place belongs to another change."""

from __future__ import annotations

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Nothing."""


def downgrade() -> None:
    """Nothing."""
