"""The first schema: keys, budgets, charges, image sets, adapters."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_UNITS = ("queries", "predictions", "images", "texts", "requests")
_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Makes all tables."""
    op.create_table(
        "api_keys",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("prefix", sa.Text, nullable=False, unique=True),
        sa.Column("secret_hash", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("revoked_at", sa.Text),
    )
    op.create_table(
        "budgets",
        sa.Column("key_id", _ID, sa.ForeignKey("api_keys.id"), primary_key=True),
        sa.Column("unit", sa.Text, primary_key=True),
        sa.Column("limit", sa.BigInteger, nullable=False),
        sa.Column("spent", sa.BigInteger, nullable=False),
        sa.Column("reserved", sa.BigInteger, nullable=False),
        sa.CheckConstraint(f"unit IN ({', '.join(repr(unit) for unit in _UNITS)})", "known_unit"),
        sa.CheckConstraint('"limit" >= 0 AND spent >= 0 AND reserved >= 0', "natural_numbers"),
        sa.CheckConstraint('spent + reserved <= "limit"', "within_limit"),
    )
    op.create_table(
        "charges",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("key_id", _ID, sa.ForeignKey("api_keys.id"), nullable=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("call", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        *(sa.Column(unit, sa.BigInteger, nullable=False) for unit in _UNITS),
        sa.CheckConstraint("state IN ('reserved', 'settled', 'refunded')", "known_state"),
        sa.CheckConstraint(" AND ".join(f"{unit} >= 0" for unit in _UNITS), "natural_numbers"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_charges_key_id_id", "charges", ["key_id", "id"])
    op.create_table(
        "image_sets",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("revision", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
    )
    op.create_table(
        "image_features",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("revision", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("features", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("owner", "model", "revision", "sha256"),
    )
    op.create_table(
        "image_set_rows",
        sa.Column("image_set_id", sa.Text, sa.ForeignKey("image_sets.id"), primary_key=True),
        sa.Column("row", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("feature_id", _ID, sa.ForeignKey("image_features.id"), nullable=False),
    )
    op.create_index("ix_image_set_rows_feature_id", "image_set_rows", ["feature_id"])
    op.create_table(
        "adapters",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("revision", sa.Text, nullable=False),
        sa.Column("access_mode", sa.Text, nullable=False),
        sa.Column("classes", sa.Text, nullable=False),
        sa.Column("prompts", sa.Integer, nullable=False),
        sa.Column("published_at", sa.Text, nullable=False),
        sa.Column("retired_at", sa.Text),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("text_features", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("owner", "name", "version"),
    )


def downgrade() -> None:
    """Drops all tables; what they hold is lost."""
    for table in (
        "adapters",
        "image_set_rows",
        "image_features",
        "image_sets",
        "charges",
        "budgets",
        "api_keys",
    ):
        op.drop_table(table)
