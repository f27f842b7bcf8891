"""Adapters that others use: sharing, aliases, who pays, provenance, and what each is used for.

What was published stays private to its owner, and callers pay, as before.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
ALTERS = ("adapters", "api_keys")

_UNITS = ("queries", "predictions", "images", "texts", "requests")
_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Makes the tables, with a row for each name and version that there is."""
    op.add_column("adapters", sa.Column("provenance", sa.Text, nullable=False, server_default="{}"))
    op.create_table(
        "adapter_settings",
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("public", sa.Boolean, nullable=False),
        sa.Column("payer_key_id", _ID, sa.ForeignKey("api_keys.id")),
        sa.Column("abstain_below", sa.Float),
    )
    op.create_table(
        "adapter_grants",
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("grantee", sa.Text, primary_key=True),
        sa.CheckConstraint("\"kind\" IN ('key', 'team')", "known_kind"),
    )
    op.create_index("ix_adapter_grants_kind_grantee", "adapter_grants", ["kind", "grantee"])
    op.create_table(
        "adapter_aliases",
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("alias", sa.Text, primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(
            ["owner", "name", "version"], ["adapters.owner", "adapters.name", "adapters.version"]
        ),
    )
    op.create_table(
        "adapter_totals",
        sa.Column("adapter_id", _ID, sa.ForeignKey("adapters.id"), primary_key=True),
        sa.Column("calls", sa.BigInteger, nullable=False),
        *(sa.Column(unit, sa.BigInteger, nullable=False) for unit in _UNITS),
    )
    op.execute(
        "INSERT INTO adapter_settings (owner, name, public) "
        "SELECT DISTINCT owner, name, FALSE FROM adapters"
    )
    zeros = ", ".join("0" for _ in _UNITS)
    op.execute(
        f"INSERT INTO adapter_totals (adapter_id, calls, {', '.join(_UNITS)}) "  # noqa: S608
        f"SELECT id, 0, {zeros} FROM adapters"
    )


def downgrade() -> None:
    """There is no way back: 0002 has no place for what 0003 knows."""
    raise NotImplementedError("restore a backup made before the upgrade")
