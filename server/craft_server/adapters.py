"""Published adapters: names, versions, owners, and what serving them needs.

A name belongs to its owner; each publication under it is a new, immutable version. Every function
is one transaction of its caller. This module does not know how adapters are found, how texts are
encoded, nor what anything costs.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from craft_server.clock import now
from craft_server.database import METADATA
from craft_shared.adapter import Adapter
from craft_shared.wire import AdapterCard

_Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")

ADAPTERS = sa.Table(
    "adapters",
    METADATA,
    sa.Column("id", _Id, primary_key=True),
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

_CARD = [
    column for column in ADAPTERS.columns if column.name not in ("body", "text_features", "owner")
]
_REFERENCE = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,63})(@(?P<version>[1-9][0-9]{0,8}))?", re.ASCII
)


class NoSuchAdapter(Exception):  # noqa: N818 - reads as what it is where it is caught
    """The owner has no living adapter of this name, or not this version of it."""


@dataclass(frozen=True)
class Publication:
    """A version of an adapter: its row and its card."""

    id: int
    card: AdapterCard


@dataclass(frozen=True)
class ServableAdapter:
    """What a prediction needs: the head, and the prompts' text features [P, C + M, width]."""

    adapter: Adapter
    text_features: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """About how much memory it takes."""
        head = sum(tensor.nbytes for tensor in self.adapter.head.tensors().values())
        return head + self.adapter.codes.nbytes + self.text_features.nbytes


def find(connection: sa.Connection, owner: str, reference: str) -> Publication:
    """The owner's adapter that `name` (the newest version) or `name@version` refers to.

    Raises:
        NoSuchAdapter: there is none that lives.
    """
    row = connection.execute(
        sa.select(*_CARD)
        .where(*_living(owner, reference))
        .order_by(ADAPTERS.c.version.desc())
        .limit(1)
    ).one_or_none()
    if row is None:
        raise NoSuchAdapter(reference)
    return _publication(row)


def find_digest(
    connection: sa.Connection, owner: str, name: str, digest: str
) -> Publication | None:
    """The newest living version under `name` whose content has this digest."""
    row = connection.execute(
        sa.select(*_CARD)
        .where(*_living(owner, name), ADAPTERS.c.digest == digest)
        .order_by(ADAPTERS.c.version.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else _publication(row)


def list_cards(connection: sa.Connection, owner: str) -> list[AdapterCard]:
    """All living versions of the owner's adapters, by name and version."""
    rows = connection.execute(
        sa.select(*_CARD)
        .where(ADAPTERS.c.owner == owner, ADAPTERS.c.retired_at.is_(None))
        .order_by(ADAPTERS.c.name, ADAPTERS.c.version)
    )
    return [_publication(row).card for row in rows]


def add(
    connection: sa.Connection,
    owner: str,
    name: str,
    *,
    adapter: Adapter,
    digest: str,
    body: bytes,
    text_features: NDArray[np.float32],
) -> AdapterCard:
    """Publishes the next version under `name`; numbers of retired versions are not given again."""
    if connection.dialect.name == "postgresql":  # SQLite has one writer at a time anyway
        connection.execute(
            sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(owner, 1)))
        )
    last = connection.execute(
        sa.select(sa.func.max(ADAPTERS.c.version)).where(
            ADAPTERS.c.owner == owner, ADAPTERS.c.name == name
        )
    ).scalar()
    card = AdapterCard(
        name=name,
        version=(last or 0) + 1,
        digest=digest,
        model=adapter.config.model,
        revision=adapter.config.revision,
        access_mode=adapter.config.access_mode,
        classes=adapter.config.classes,
        prompts=adapter.config.prompts,
        published_at=now(),
    )
    connection.execute(
        sa.insert(ADAPTERS).values(
            **card.model_dump(exclude={"classes"}),
            owner=owner,
            classes=json.dumps(card.classes),
            body=body,
            text_features=text_features.astype("<f4").tobytes(),
        )
    )
    return card


def read_content(connection: sa.Connection, adapter_id: int) -> tuple[bytes, bytes]:
    """The adapter's body and its text features, both as they were stored."""
    row = connection.execute(
        sa.select(ADAPTERS.c.body, ADAPTERS.c.text_features).where(ADAPTERS.c.id == adapter_id)
    ).one()
    return row.body, row.text_features


def servable(body: bytes, text_features: bytes) -> ServableAdapter:
    """Parses what `read_content` read."""
    adapter = Adapter.from_bytes(body)
    shape = (adapter.config.prompts, len(adapter.config.scored), -1)
    flat = np.frombuffer(bytearray(text_features), np.float32)  # writable, as torch wants it
    return ServableAdapter(adapter, flat.reshape(shape))


def retire(connection: sa.Connection, owner: str, reference: str) -> None:
    """Retires one version (`name@version`) or all versions (`name`) of the owner's adapter.

    Raises:
        NoSuchAdapter: there is none that lives.
    """
    retired = connection.execute(
        sa.update(ADAPTERS).where(*_living(owner, reference)).values(retired_at=now())
    )
    if retired.rowcount == 0:
        raise NoSuchAdapter(reference)


def _living(owner: str, reference: str) -> tuple[sa.ColumnElement[bool], ...]:
    parts = _REFERENCE.fullmatch(reference)
    if parts is None:
        raise NoSuchAdapter(reference)
    conditions = (
        ADAPTERS.c.owner == owner,
        ADAPTERS.c.name == parts["name"],
        ADAPTERS.c.retired_at.is_(None),
    )
    if parts["version"] is None:
        return conditions
    return (*conditions, ADAPTERS.c.version == int(parts["version"]))


def _publication(row: sa.Row[tuple[object, ...]]) -> Publication:
    card = AdapterCard(
        name=row.name,
        version=row.version,
        digest=row.digest,
        model=row.model,
        revision=row.revision,
        access_mode=row.access_mode,
        classes=json.loads(row.classes),
        prompts=row.prompts,
        published_at=row.published_at,
    )
    return Publication(row.id, card)
