"""API keys: made, found by what a caller shows, listed, revoked.

A key reads `craft_<prefix>_<secret>`. The prefix names it in lists and logs; of the secret only the
SHA-256 is kept, which is enough for 256 random bits (no dictionary can be tried against it).
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from craft_server.clock import now
from craft_server.ledger.tables import API_KEYS, BUDGETS
from craft_shared.units import Unit

_ALPHABET = string.ascii_lowercase + string.digits
_PREFIX_LENGTH = 8
_KEY = re.compile(r"craft_(?P<prefix>[a-z0-9]{8})_(?P<secret>[A-Za-z0-9_-]{43})", re.ASCII)
_NO_HASH = "0" * 64


@dataclass(frozen=True)
class Caller:
    """Who calls: the key's id and prefix, and the owner whose objects it sees."""

    key_id: int
    prefix: str
    owner: str


@dataclass(frozen=True)
class KeyEntry:
    """A key as lists show it."""

    key_id: int
    prefix: str
    owner: str
    name: str
    created_at: str
    revoked_at: str | None


class UnknownKey(Exception):  # noqa: N818 - reads as what it is where it is caught
    """No key has this prefix."""


def create_key(
    connection: sa.Connection, *, owner: str, name: str, limits: Mapping[Unit, int]
) -> str:
    """Makes a key with a budget for each unit in `limits`, and returns it, this once.

    Units that `limits` does not name are not bounded.
    """
    prefix = "".join(secrets.choice(_ALPHABET) for _ in range(_PREFIX_LENGTH))
    secret = secrets.token_urlsafe(32)
    key_id = connection.execute(
        sa.insert(API_KEYS)
        .values(owner=owner, name=name, prefix=prefix, secret_hash=_hash(secret), created_at=now())
        .returning(API_KEYS.c.id)
    ).scalar_one()
    for unit, limit in limits.items():
        connection.execute(
            sa.insert(BUDGETS).values(key_id=key_id, unit=unit, limit=limit, spent=0, reserved=0)
        )
    return f"craft_{prefix}_{secret}"


def authenticate(connection: sa.Connection, key: str) -> Caller | None:
    """The caller who shows `key`, or None where no living key reads so.

    The comparison takes the same time whether or not the prefix is known.
    """
    shown = _KEY.fullmatch(key)
    if shown is None:
        return None
    row = connection.execute(
        sa.select(API_KEYS).where(API_KEYS.c.prefix == shown["prefix"])
    ).one_or_none()
    expected = row.secret_hash if row else _NO_HASH
    matches = hmac.compare_digest(_hash(shown["secret"]), expected)
    if row is None or not matches or row.revoked_at is not None:
        return None
    return Caller(row.id, row.prefix, row.owner)


def list_keys(connection: sa.Connection) -> list[KeyEntry]:
    """All keys, the oldest first."""
    rows = connection.execute(sa.select(API_KEYS).order_by(API_KEYS.c.id))
    return [_entry(row) for row in rows]


def find_key(connection: sa.Connection, prefix: str) -> KeyEntry:
    """The key with this prefix.

    Raises:
        UnknownKey: there is none.
    """
    row = connection.execute(sa.select(API_KEYS).where(API_KEYS.c.prefix == prefix)).one_or_none()
    if row is None:
        raise UnknownKey(prefix)
    return _entry(row)


def revoke_key(connection: sa.Connection, prefix: str) -> KeyEntry:
    """Makes the key with this prefix useless from now on; revoking again changes nothing.

    Raises:
        UnknownKey: there is none.
    """
    connection.execute(
        sa.update(API_KEYS)
        .where(API_KEYS.c.prefix == prefix, API_KEYS.c.revoked_at.is_(None))
        .values(revoked_at=now())
    )
    return find_key(connection, prefix)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _entry(row: sa.Row[tuple[object, ...]]) -> KeyEntry:
    return KeyEntry(row.id, row.prefix, row.owner, row.name, row.created_at, row.revoked_at)
