"""Metering: teams, scopes, rotation, windows, prices, leases, idempotency keys, running totals.

Times become integers. What 0001 charged, and what is left of its budgets, stays what it was;
reservations that were open are given back, since no process that made one runs during a migration.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_UNITS = ("queries", "predictions", "images", "texts", "requests")
_MEASURES = (*_UNITS, "cost_micros")
_WINDOWS = ("lifetime", "month", "week", "day", "hour")
_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Makes the new tables and moves the old ones' rows into them."""
    connection = op.get_bind()
    old = {name: _rows(connection, name) for name in ("api_keys", "budgets", "charges")}
    op.drop_index("ix_charges_key_id_id", "charges")
    for table in ("charges", "budgets", "api_keys"):
        op.drop_table(table)
    _create_tables()
    for key in old["api_keys"]:
        _insert(
            connection,
            "api_keys",
            id=key["id"],
            owner=key["owner"],
            name=key["name"],
            scopes="predict publish",
            created_at=_ms(key["created_at"]),
            revoked_at=_ms(key["revoked_at"]),
        )
        _insert(
            connection,
            "key_secrets",
            prefix=key["prefix"],
            key_id=key["id"],
            secret_hash=key["secret_hash"],
            created_at=_ms(key["created_at"]),
        )
        settled = [
            charge
            for charge in old["charges"]
            if charge["key_id"] == key["id"] and charge["state"] == "settled"
        ]
        totals = {unit: sum(charge[unit] for charge in settled) for unit in _UNITS}
        _insert(connection, "totals", key_id=key["id"], **totals, cost_micros=0)
    for budget in old["budgets"]:
        _insert(
            connection,
            "budgets",
            key_id=budget["key_id"],
            unit=budget["unit"],
            window="lifetime",
            window_start=0,
            limit=budget["limit"],
            spent=budget["spent"],
            reserved=0,
        )
    for charge in old["charges"]:
        at = _ms(charge["at"])
        _insert(
            connection,
            "charges",
            **{name: charge[name] for name in ("id", "key_id", "call", "model", *_UNITS)},
            at=at,
            closed_at=at,
            revision="",
            state="refunded" if charge["state"] == "reserved" else charge["state"],
            holder="",
            holds=json.dumps([]),
            cost_micros=0,
        )
    if connection.dialect.name == "postgresql":
        for table in ("api_keys", "charges"):
            connection.execute(
                sa.text(
                    f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), "  # noqa: S608
                    f"COALESCE((SELECT MAX(id) FROM {table}), 1), "
                    f"EXISTS (SELECT 1 FROM {table}))"
                )
            )


def downgrade() -> None:
    """There is no way back: 0001 has no place for what 0002 knows."""
    raise NotImplementedError("restore a backup made before the upgrade")


def _rows(connection: sa.Connection, table: str) -> list[dict[str, Any]]:
    found = connection.execute(sa.text(f'SELECT * FROM "{table}" ORDER BY 1, 2'))  # noqa: S608
    return [dict(row._mapping) for row in found]


def _insert(connection: sa.Connection, table: str, **values: Any) -> None:
    connection.execute(sa.insert(sa.table(table, *map(sa.column, values))).values(**values))


def _ms(text: str | None) -> int | None:
    if text is None:
        return None
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f'"{column}" IN ({", ".join(repr(value) for value in values)})'


def _natural(columns: tuple[str, ...]) -> str:
    return " AND ".join(f'"{column}" >= 0' for column in columns)


def _create_tables() -> None:
    op.create_table(
        "teams",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("team_id", _ID, sa.ForeignKey("teams.id")),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("requests_per_minute", sa.BigInteger),
        sa.Column("predictions_per_minute", sa.BigInteger),
        sa.Column("concurrency", sa.BigInteger),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("revoked_at", sa.BigInteger),
    )
    op.create_table(
        "key_secrets",
        sa.Column("prefix", sa.Text, primary_key=True),
        sa.Column("key_id", _ID, sa.ForeignKey("api_keys.id"), nullable=False),
        sa.Column("secret_hash", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
    )
    op.create_index("ix_key_secrets_key_id", "key_secrets", ["key_id"])
    op.create_table(
        "budgets",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("key_id", _ID, sa.ForeignKey("api_keys.id")),
        sa.Column("team_id", _ID, sa.ForeignKey("teams.id")),
        sa.Column("unit", sa.Text, nullable=False),
        sa.Column("window", sa.Text, nullable=False),
        sa.Column("window_start", sa.BigInteger, nullable=False),
        sa.Column("limit", sa.BigInteger, nullable=False),
        sa.Column("spent", sa.BigInteger, nullable=False),
        sa.Column("reserved", sa.BigInteger, nullable=False),
        sa.CheckConstraint(_one_of("unit", _MEASURES), "known_unit"),
        sa.CheckConstraint(_one_of("window", _WINDOWS), "known_window"),
        sa.CheckConstraint("(key_id IS NULL) <> (team_id IS NULL)", "one_holder"),
        sa.CheckConstraint(_natural(("limit", "spent", "reserved")), "natural_numbers"),
        sa.CheckConstraint('spent + reserved <= "limit"', "within_limit"),
        sa.UniqueConstraint("key_id", "unit", "window"),
        sa.UniqueConstraint("team_id", "unit", "window"),
    )
    op.create_table(
        "charges",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("key_id", _ID, sa.ForeignKey("api_keys.id"), nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("closed_at", sa.BigInteger),
        sa.Column("call", sa.Text, nullable=False),
        sa.Column("run", sa.Text),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("revision", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("holds", sa.Text, nullable=False),
        *(sa.Column(measure, sa.BigInteger, nullable=False) for measure in _MEASURES),
        sa.CheckConstraint(_one_of("state", ("reserved", "settled", "refunded")), "known_state"),
        sa.CheckConstraint(_natural(_MEASURES), "natural_numbers"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_charges_key_id_id", "charges", ["key_id", "id"])
    op.create_index("ix_charges_key_id_run", "charges", ["key_id", "run"])
    reserved = sa.text("state = 'reserved'")
    op.create_index(
        "ix_charges_reserved",
        "charges",
        ["key_id", "holder"],
        sqlite_where=reserved,
        postgresql_where=reserved,
    )
    op.create_table(
        "totals",
        sa.Column("key_id", _ID, sa.ForeignKey("api_keys.id"), primary_key=True),
        *(sa.Column(measure, sa.BigInteger, nullable=False) for measure in _MEASURES),
    )
    op.create_table(
        "holders",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("lease_until", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "calls",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("key_id", _ID, sa.ForeignKey("api_keys.id"), nullable=False),
        sa.Column("idempotency_key", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("charge_id", _ID, sa.ForeignKey("charges.id")),
        sa.Column("done", sa.Boolean, nullable=False),
        sa.Column("repeatable", sa.Boolean, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("media_type", sa.Text),
        sa.Column("body_bytes", sa.BigInteger, nullable=False),
        sa.Column("body", sa.LargeBinary),
        sa.UniqueConstraint("key_id", "idempotency_key"),
        sqlite_autoincrement=True,
    )
    stored = sa.text("body_bytes > 0 AND repeatable")
    op.create_index(
        "ix_calls_evictable", "calls", ["id"], sqlite_where=stored, postgresql_where=stored
    )
    running = sa.text("NOT done")
    op.create_index(
        "ix_calls_running", "calls", ["holder"], sqlite_where=running, postgresql_where=running
    )
    op.create_index("ix_calls_at", "calls", ["at"])
    op.create_table(
        "prices",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("unit", sa.Text, primary_key=True),
        sa.Column("micros", sa.BigInteger, nullable=False),
        sa.CheckConstraint(_one_of("unit", _UNITS), "known_unit"),
        sa.CheckConstraint("micros >= 0", "natural_numbers"),
    )
