"""The tables of published adapters."""

from __future__ import annotations

import re
from dataclasses import dataclass

import sqlalchemy as sa

from craft_server.database import METADATA, Id
from craft_shared.units import UNITS
from craft_shared.wire.adapters import LATEST

# An owner is any text that a database can hold, so that only the last slash divides.
_FORM = re.compile(
    r"((?P<owner>[^\x00]+)/)?(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,63})"
    r"(@((?P<version>[1-9][0-9]{0,8})|(?P<alias>[A-Za-z][A-Za-z0-9._-]{0,31})))?",
    re.ASCII,
)
# An index's condition, which is used only where a statement says the very same.
PUBLIC = sa.text("public")

# One row a version. Nothing of it changes but `retired_at`.
ADAPTERS = sa.Table(
    "adapters",
    METADATA,
    sa.Column("id", Id, primary_key=True),
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
    sa.Column("provenance", sa.Text, nullable=False, server_default="{}"),
    sa.Column("visual", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.UniqueConstraint("owner", "name", "version"),
)

# One row a name: what its owner has decided for all versions.
ADAPTER_SETTINGS = sa.Table(
    "adapter_settings",
    METADATA,
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("public", sa.Boolean, nullable=False),
    # The key that pays for everybody's predictions; null where each caller pays for its own.
    sa.Column("payer_key_id", Id, sa.ForeignKey("api_keys.id")),
    sa.Column("abstain_below", sa.Float),
    sa.Index(
        "ix_adapter_settings_public",
        "owner",
        "name",
        sqlite_where=PUBLIC,
        postgresql_where=PUBLIC,
    ),
)

# A grantee is kept as it was written, whether or not it exists, so that granting tells nobody which
# keys and teams there are.
ADAPTER_GRANTS = sa.Table(
    "adapter_grants",
    METADATA,
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("grantee", sa.Text, primary_key=True),
    sa.CheckConstraint("\"kind\" IN ('key', 'team')", "known_kind"),
    sa.Index("ix_adapter_grants_kind_grantee", "kind", "grantee"),
)

ADAPTER_ALIASES = sa.Table(
    "adapter_aliases",
    METADATA,
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("alias", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.ForeignKeyConstraint(
        ["owner", "name", "version"], ["adapters.owner", "adapters.name", "adapters.version"]
    ),
)

# What was classified with each version in all, so that telling it takes no longer as it grows.
ADAPTER_TOTALS = sa.Table(
    "adapter_totals",
    METADATA,
    sa.Column("adapter_id", Id, sa.ForeignKey("adapters.id"), primary_key=True),
    sa.Column("calls", sa.BigInteger, nullable=False),
    *(sa.Column(unit, sa.BigInteger, nullable=False) for unit in UNITS),
)


class NoSuchAdapter(Exception):  # noqa: N818 - reads as what it is where it is caught
    """There is no adapter that the caller may use under this reference."""


@dataclass(frozen=True)
class Reference:
    """An adapter, and which version of it."""

    owner: str | None  # whose; None means the caller's
    name: str  # of the adapter
    version: int | None  # exactly this one
    # The version that has it; None for the newest, and where `version` says which.
    alias: str | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Reads a reference.

        Raises:
            NoSuchAdapter: it is none.
        """
        parts = _FORM.fullmatch(text)
        if parts is None:
            raise NoSuchAdapter(text)
        version, alias = parts["version"], parts["alias"]
        return cls(
            parts["owner"],
            parts["name"],
            None if version is None else int(version),
            None if alias == LATEST else alias,
        )
