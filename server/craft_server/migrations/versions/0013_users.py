"""End users: what each of a key's may use, and for which of them a call was made."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
ALTERS = ("api_keys", "budgets", "charges", "teams", "totals")

_MEASURES = ("queries", "predictions", "images", "texts", "requests", "cost_micros")
_WINDOWS = ("lifetime", "month", "week", "day", "hour")
_OF_USER = sa.text("end_user IS NOT NULL")


def upgrade() -> None:
    """Makes the columns, the table and the index."""
    op.add_column("teams", sa.Column("user_of", sa.BigInteger))
    op.add_column("charges", sa.Column("end_user", sa.Text))
    for table, column in (("api_keys", "require_user"), ("budgets", "per_user")):
        op.add_column(
            table, sa.Column(column, sa.Boolean, nullable=False, server_default=sa.false())
        )
    op.add_column(
        "totals", sa.Column("users", sa.BigInteger, nullable=False, server_default=sa.text("0"))
    )
    op.create_table(
        "user_limits",
        sa.Column(
            "key_id",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            sa.ForeignKey("api_keys.id"),
            primary_key=True,
        ),
        sa.Column("unit", sa.Text, primary_key=True),
        sa.Column("window", sa.Text, primary_key=True),
        sa.Column("limit", sa.BigInteger, nullable=False),
        sa.CheckConstraint(sa.column("unit").in_(_MEASURES), "known_unit"),
        sa.CheckConstraint(sa.column("window").in_(_WINDOWS), "known_window"),
        sa.CheckConstraint('"limit" >= 0', "natural_numbers"),
    )
    op.create_index(
        "ix_charges_of_user",
        "charges",
        ["key_id", "end_user"],
        sqlite_where=_OF_USER,
        postgresql_where=_OF_USER,
    )


def downgrade() -> None:
    """Drops them; end users' own budgets go, their holders stay."""
    op.drop_index("ix_charges_of_user", "charges")
    op.drop_table("user_limits")
    op.execute("DELETE FROM budgets WHERE per_user")
    op.drop_column("totals", "users")
    op.drop_column("budgets", "per_user")
    op.drop_column("api_keys", "require_user")
    op.drop_column("charges", "end_user")
    op.drop_column("teams", "user_of")
