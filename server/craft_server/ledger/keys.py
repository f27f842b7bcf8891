"""API keys: made, found by what a caller shows, listed, rotated, revoked.

A key's secret reads `craft_<prefix>_<secret>`. The prefix names it in lists and logs; of the rest
only the SHA-256 is kept, which is enough for 256 random bits (no dictionary can be tried against
it). A key that is rotated has two secrets for a while; budgets, totals and limits belong to the
key, and so does everything that it was charged.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import sqlalchemy as sa

from craft_server.clock import rfc3339
from craft_server.database import insert_missing
from craft_server.ledger.calls import RECORD_COLUMNS, Record, record_of
from craft_server.ledger.tables import API_KEYS, BUDGETS, CALLS, KEY_SECRETS, TEAMS, TOTALS
from craft_server.statements import Statement, run
from craft_shared.amounts import MAX_INTEGER
from craft_shared.units import MEASURES
from craft_shared.wire import KeyCard, Scope

SCOPES: tuple[Scope, ...] = get_args(Scope)
DEFAULT_SCOPES: tuple[Scope, ...] = ("predict", "publish")

_ALPHABET = string.ascii_lowercase + string.digits
_PREFIX_LENGTH = 8
_SECRET_INSIDE = re.compile(rb"craft_[a-z0-9]{8}_[A-Za-z0-9_-]{43}")
_SECRET = re.compile(r"craft_(?P<prefix>[a-z0-9]{8})_(?P<secret>[A-Za-z0-9_-]{43})", re.ASCII)
_NO_HASH = "0" * 64
_NEWEST_FIRST = (KEY_SECRETS.c.created_at.desc(), KEY_SECRETS.c.prefix)


@dataclass(frozen=True)
class Rates:
    """What a key may do at most; None is not bounded."""

    requests_per_minute: int | None = None  # HTTP calls
    predictions_per_minute: int | None = None  # prompts scored against one image
    concurrency: int | None = None  # charged calls at a time


@dataclass(frozen=True)
class Caller:
    """Who calls: the key, the owner whose objects it sees, and what it may do."""

    key_id: int
    prefix: str
    owner: str
    team_id: int | None
    scopes: frozenset[str]
    rates: Rates
    policies: str | None = None  # what may be answered, as `craft_server.policy` writes it
    # Whether a budget that bounds the key had nothing left, or its window has passed.
    used_up: bool = False
    require_user: bool = False  # whether its calls have to say for which end user they are

    @property
    def tenant(self) -> str:
        """What the engine, which knows no keys, calls the key."""
        return str(self.key_id)


@dataclass(frozen=True)
class KeyEntry:
    """A key as lists show it; `prefixes` are those of its secrets, the newest first."""

    key_id: int
    prefixes: tuple[str, ...]
    owner: str
    name: str
    team: str | None
    team_id: int | None
    scopes: tuple[Scope, ...]
    rates: Rates
    policies: str | None
    require_user: bool
    created_at: int
    expires_at: int | None
    revoked_at: int | None


class UnknownKey(Exception):  # noqa: N818 - reads as what it is where it is caught
    """No key has this prefix."""


class UnknownTeam(Exception):  # noqa: N818 - reads as what it is where it is caught
    """No team has this name."""


class RevokedKey(Exception):  # noqa: N818 - reads as what it is where it is caught
    """The key was revoked: there is nothing to rotate."""


_FIND_SECRET = Statement(
    sa.select(
        API_KEYS,
        KEY_SECRETS.c.prefix,
        KEY_SECRETS.c.secret_hash,
        KEY_SECRETS.c.expires_at.label("secret_expires_at"),
        *RECORD_COLUMNS,
        sa.exists()
        .where(
            sa.or_(BUDGETS.c.key_id == API_KEYS.c.id, BUDGETS.c.team_id == API_KEYS.c.team_id),
            BUDGETS.c.spent + BUDGETS.c.reserved >= BUDGETS.c.limit,
        )
        .label("used_up"),
    )
    .join(KEY_SECRETS, KEY_SECRETS.c.key_id == API_KEYS.c.id)
    .outerjoin(
        CALLS,
        sa.and_(
            CALLS.c.key_id == API_KEYS.c.id,
            CALLS.c.idempotency_key == sa.bindparam("of_call"),
        ),
    )
    .where(KEY_SECRETS.c.prefix == sa.bindparam("of_prefix"))
)


def create_key(connection: sa.Connection, *, owner: str, at: int, **attributes: Any) -> str:
    """Makes a key and returns its secret, this once; it has no budget yet: nothing is bounded.

    Attributes are those of `_columns`.
    """
    key_id = connection.execute(
        sa.insert(API_KEYS)
        .values(owner=owner, created_at=at, **_columns(connection, at, **attributes))
        .returning(API_KEYS.c.id)
    ).scalar_one()
    nothing = dict.fromkeys(("lines", *MEASURES), 0)
    connection.execute(sa.insert(TOTALS).values(key_id=key_id, **nothing))
    return _new_secret(connection, key_id, at)


def change_key(connection: sa.Connection, key_id: int, *, at: int, **attributes: Any) -> None:
    """Changes all of a key but its owner, its secrets and its budgets, from its next call on.

    Attributes are those of `_columns`; one that is not named becomes what it is by default.
    """
    columns = _columns(connection, at, **attributes)
    connection.execute(sa.update(API_KEYS).where(API_KEYS.c.id == key_id).values(columns))


def _columns(
    connection: sa.Connection,
    at: int,
    *,
    name: str = "",
    team: str | None = None,  # is made if there is none of that name
    scopes: Sequence[Scope] = DEFAULT_SCOPES,
    rates: Rates = Rates(),
    policies: str | None = None,
    require_user: bool = False,
    expires_at: int | None = None,
) -> dict[str, Any]:
    return {
        "name": name,
        "team_id": None if team is None else team_id_of(connection, team, at),
        "scopes": " ".join(scope for scope in SCOPES if scope in scopes),
        "requests_per_minute": rates.requests_per_minute,
        "predictions_per_minute": rates.predictions_per_minute,
        "concurrency": rates.concurrency,
        "policies": policies,
        "require_user": require_user,
        "expires_at": expires_at,
    }


def list_teams(connection: sa.Connection) -> list[str]:
    """The names of all teams, in alphabetical order."""
    names = sa.select(TEAMS.c.name).where(TEAMS.c.user_of.is_(None)).order_by(TEAMS.c.name)
    return list(connection.execute(names).scalars())


def team_id_of(connection: sa.Connection, name: str, at: int) -> int:
    """The id of a team, which is made if there is none of that name."""
    insert_missing(connection, TEAMS, name=name, created_at=at)
    return find_team(connection, name)


def find_team(connection: sa.Connection, name: str) -> int:
    """The id of a team.

    Raises:
        UnknownTeam: there is none of that name.
    """
    found: int | None = connection.execute(
        sa.select(TEAMS.c.id).where(TEAMS.c.name == name, TEAMS.c.user_of.is_(None))
    ).scalar()
    if found is None:
        raise UnknownTeam(name)
    return found


def shows_secret(text: bytes) -> bool:
    """Whether something that reads like a key's secret stands anywhere in it."""
    return _SECRET_INSIDE.search(text) is not None


def prefix_of(secret: str) -> str:
    """The part of a key's secret that may be shown."""
    return secret.split("_")[1]


def authenticate(connection: sa.Connection, secret: str, at: int) -> Caller | None:
    """The caller who shows a secret, or None where no living one reads so.

    The comparison takes the same time whether or not the prefix is known.
    """
    return admit(connection, secret, None, at)[0]


def admit(
    connection: sa.Connection, secret: str, idempotency_key: str | None, at: int
) -> tuple[Caller, Record | None] | tuple[None, None]:
    """Like `authenticate`; and the record of the call under the idempotency key, if there is one.

    Both in one statement, because every call waits for it.
    """
    shown = _SECRET.fullmatch(secret)
    if shown is None:
        return None, None
    asked = {"of_prefix": shown["prefix"], "of_call": idempotency_key}
    rows = run(connection, (_FIND_SECRET, asked))[0].rows
    row = rows[0] if rows else None
    expected = row.secret_hash if row else _NO_HASH
    matches = hmac.compare_digest(_hash(shown["secret"]), expected)
    if row is None or not matches or not _lives(row, at):
        return None, None
    return _caller(row, bool(row.used_up)), record_of(row)


def payer(connection: sa.Connection, key_id: int, at: int) -> Caller | None:
    """A key as the payer of calls that others make; None once it is expired or revoked."""
    row = connection.execute(
        sa.select(API_KEYS, KEY_SECRETS.c.prefix)
        .join(KEY_SECRETS, KEY_SECRETS.c.key_id == API_KEYS.c.id)
        .where(
            API_KEYS.c.id == key_id,
            API_KEYS.c.revoked_at.is_(None),
            sa.or_(API_KEYS.c.expires_at.is_(None), API_KEYS.c.expires_at > at),
        )
        .order_by(KEY_SECRETS.c.created_at.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else _caller(row)


def living_caller(connection: sa.Connection, prefix: str, at: int) -> Caller | None:
    """The caller whose secret has this prefix, while it lives; the secret itself is not asked.

    Only for who has shown the secret before.
    """
    rows = run(connection, (_FIND_SECRET, {"of_prefix": prefix, "of_call": None}))[0].rows
    return _caller(rows[0]) if rows and _lives(rows[0], at) else None


def list_keys(connection: sa.Connection) -> list[KeyEntry]:
    """All keys, the oldest first."""
    return _entries(connection, sa.true())


@dataclass(frozen=True)
class Page:
    """A part of the list of keys."""

    entries: list[KeyEntry]
    next_after: int | None  # the id after which the list continues; None at its end


def list_page(
    connection: sa.Connection,
    *,
    after: int = 0,
    limit: int | None = None,
    newest_first: bool = False,
) -> Page:
    """Up to `limit` keys after the one with that id, or all; the oldest first, unless told else."""
    follows = API_KEYS.c.id < (after or MAX_INTEGER) if newest_first else API_KEYS.c.id > after
    most = None if limit is None else limit + 1
    entries = _entries(connection, follows, most, newest_first=newest_first)
    page = entries[:limit]
    return Page(page, page[-1].key_id if len(page) < len(entries) else None)


def find_key(connection: sa.Connection, prefix: str) -> KeyEntry:
    """The key one of whose secrets has this prefix.

    Raises:
        UnknownKey: there is none.
    """
    if not (prefix.isascii() and prefix.isprintable()):
        raise UnknownKey(prefix)  # PostgreSQL takes no NUL
    key_id: int | None = connection.execute(
        sa.select(KEY_SECRETS.c.key_id).where(KEY_SECRETS.c.prefix == prefix)
    ).scalar()
    if key_id is None:
        raise UnknownKey(prefix)
    (entry,) = _entries(connection, API_KEYS.c.id == key_id)
    return entry


def any_key(connection: sa.Connection) -> bool:
    """Whether a key was ever made."""
    return connection.execute(sa.select(API_KEYS.c.id).limit(1)).first() is not None


def newest_prefix(key_id: sa.ColumnElement[int]) -> sa.ScalarSelect[str]:
    """The prefix of a key's newest secret, as part of a statement."""
    return (
        sa.select(KEY_SECRETS.c.prefix)
        .where(KEY_SECRETS.c.key_id == key_id)
        .order_by(*_NEWEST_FIRST)
        .limit(1)
        .scalar_subquery()
    )


def as_card(entry: KeyEntry) -> KeyCard:
    """The key as lists show it."""
    return KeyCard(
        id=entry.key_id,
        prefix=entry.prefixes[0],
        prefixes=list(entry.prefixes),
        owner=entry.owner,
        name=entry.name,
        team=entry.team,
        scopes=list(entry.scopes),
        requests_per_minute=entry.rates.requests_per_minute,
        predictions_per_minute=entry.rates.predictions_per_minute,
        concurrency=entry.rates.concurrency,
        require_user=entry.require_user,
        created_at=rfc3339(entry.created_at),
        expires_at=None if entry.expires_at is None else rfc3339(entry.expires_at),
        revoked_at=None if entry.revoked_at is None else rfc3339(entry.revoked_at),
    )


def set_policies(connection: sa.Connection, key_id: int, policies: str) -> None:
    """Sets what a key's answers may reveal, from its next call on."""
    connection.execute(sa.update(API_KEYS).where(API_KEYS.c.id == key_id).values(policies=policies))


def rotate_key(connection: sa.Connection, prefix: str, *, overlap_ms: int, at: int) -> str:
    """Gives the key a new secret and returns it, this once; older ones end after the overlap.

    Raises:
        UnknownKey: there is none.
        RevokedKey: it was revoked.
    """
    entry = find_key(connection, prefix)
    if entry.revoked_at is not None:
        raise RevokedKey(prefix)
    end = at + overlap_ms
    connection.execute(
        sa.update(KEY_SECRETS)
        .where(
            KEY_SECRETS.c.key_id == entry.key_id,
            sa.or_(KEY_SECRETS.c.expires_at.is_(None), KEY_SECRETS.c.expires_at > end),
        )
        .values(expires_at=end)
    )
    return _new_secret(connection, entry.key_id, at)


def revoke_key(connection: sa.Connection, prefix: str, at: int) -> KeyEntry:
    """Makes the key useless from now on, all its secrets; revoking again changes nothing.

    Raises:
        UnknownKey: there is none.
    """
    entry = find_key(connection, prefix)
    connection.execute(
        sa.update(API_KEYS)
        .where(API_KEYS.c.id == entry.key_id, API_KEYS.c.revoked_at.is_(None))
        .values(revoked_at=at)
    )
    return find_key(connection, prefix)


def _entries(
    connection: sa.Connection,
    condition: sa.ColumnElement[bool],
    limit: int | None = None,
    *,
    newest_first: bool = False,
) -> list[KeyEntry]:
    """The keys that meet a condition, in order, up to `limit` of them or all."""
    rows = connection.execute(
        sa.select(API_KEYS, TEAMS.c.name.label("team"))
        .outerjoin(TEAMS, TEAMS.c.id == API_KEYS.c.team_id)
        .where(condition)
        .order_by(API_KEYS.c.id.desc() if newest_first else API_KEYS.c.id)
        .limit(limit)
    ).all()
    if not rows:
        return []
    of_keys = (
        sa.select(KEY_SECRETS.c.key_id, KEY_SECRETS.c.prefix)
        .where(KEY_SECRETS.c.key_id.between(*sorted((rows[0].id, rows[-1].id))))
        .order_by(*_NEWEST_FIRST)
    )
    prefixes: dict[int, list[str]] = {}
    for secret in connection.execute(of_keys):
        prefixes.setdefault(secret.key_id, []).append(secret.prefix)
    return [
        KeyEntry(
            key_id=row.id,
            prefixes=tuple(prefixes[row.id]),
            owner=row.owner,
            name=row.name,
            team=row.team,
            team_id=row.team_id,
            scopes=tuple(row.scopes.split()),
            rates=_rates(row),
            policies=row.policies,
            require_user=row.require_user,
            created_at=row.created_at,
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
        )
        for row in rows
    ]


def _new_secret(connection: sa.Connection, key_id: int, at: int) -> str:
    prefix = "".join(secrets.choice(_ALPHABET) for _ in range(_PREFIX_LENGTH))
    secret = secrets.token_urlsafe(32)
    connection.execute(
        sa.insert(KEY_SECRETS).values(
            prefix=prefix, key_id=key_id, secret_hash=_hash(secret), created_at=at
        )
    )
    return f"craft_{prefix}_{secret}"


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _lives(row: Any, at: int) -> bool:
    ends = (row.expires_at, row.secret_expires_at)
    return row.revoked_at is None and all(end is None or end > at for end in ends)


def _caller(row: Any, used_up: bool = False) -> Caller:
    return Caller(
        key_id=row.id,
        prefix=row.prefix,
        owner=row.owner,
        team_id=row.team_id,
        scopes=frozenset(row.scopes.split()),
        rates=_rates(row),
        policies=row.policies,
        used_up=used_up,
        require_user=bool(row.require_user),
    )


def _rates(row: Any) -> Rates:
    return Rates(row.requests_per_minute, row.predictions_per_minute, row.concurrency)
