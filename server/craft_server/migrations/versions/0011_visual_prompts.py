"""Which adapters add a visual prompt to pixels, as their bodies say."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from craft_shared import codec

revision = "0011"
down_revision = "0010"
ALTERS = ("adapters",)

_ADAPTERS = sa.table(
    "adapters",
    sa.column("id", sa.BigInteger),
    sa.column("body", sa.LargeBinary),
    sa.column("visual", sa.Boolean),
)


def upgrade() -> None:
    """Makes the column and fills it in."""
    visual = sa.Column("visual", sa.Boolean, nullable=False, server_default=sa.false())
    op.add_column("adapters", visual)
    connection = op.get_bind()
    for number in connection.scalars(sa.select(_ADAPTERS.c.id)).all():
        this = _ADAPTERS.c.id == number
        if _has_visual_prompt(connection.scalars(sa.select(_ADAPTERS.c.body).where(this)).one()):
            connection.execute(sa.update(_ADAPTERS).where(this).values(visual=True))


def downgrade() -> None:
    """Drops it."""
    op.drop_column("adapters", "visual")


def _has_visual_prompt(body: bytes) -> bool:
    try:
        return codec.decode(body)[0].get("visual") is not None
    except codec.CodecError:  # it is served by no version
        return False
