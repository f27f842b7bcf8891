"""The ledger's tables. A charge's state moves once, from `reserved` to `settled` or `refunded`."""

from __future__ import annotations

import sqlalchemy as sa

from craft_server.database import METADATA
from craft_shared.units import UNITS

# SQLite counts rows up only in a column of exactly this type.
_Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")

API_KEYS = sa.Table(
    "api_keys",
    METADATA,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("prefix", sa.Text, nullable=False, unique=True),
    sa.Column("secret_hash", sa.Text, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("revoked_at", sa.Text),
)

BUDGETS = sa.Table(
    "budgets",
    METADATA,
    sa.Column("key_id", _Id, sa.ForeignKey("api_keys.id"), primary_key=True),
    sa.Column("unit", sa.Text, primary_key=True),
    sa.Column("limit", sa.BigInteger, nullable=False),
    sa.Column("spent", sa.BigInteger, nullable=False),
    sa.Column("reserved", sa.BigInteger, nullable=False),
    sa.CheckConstraint(f"unit IN ({', '.join(repr(unit) for unit in UNITS)})", "known_unit"),
    sa.CheckConstraint('"limit" >= 0 AND spent >= 0 AND reserved >= 0', "natural_numbers"),
    sa.CheckConstraint('spent + reserved <= "limit"', "within_limit"),
)

CHARGES = sa.Table(
    "charges",
    METADATA,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("key_id", _Id, sa.ForeignKey("api_keys.id"), nullable=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("call", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    *(sa.Column(unit, sa.BigInteger, nullable=False) for unit in UNITS),
    sa.CheckConstraint("state IN ('reserved', 'settled', 'refunded')", "known_state"),
    sa.CheckConstraint(" AND ".join(f"{unit} >= 0" for unit in UNITS), "natural_numbers"),
    sa.Index("ix_charges_key_id_id", "key_id", "id"),
    sqlite_autoincrement=True,
)
