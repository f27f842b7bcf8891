"""Sessions of people who have signed in: made by showing a key once, ended with it.

The browser holds a random token in a cookie; only the token's SHA-256 is kept here, so that whoever
reads the database can use no session. A session is as good as the secret that was shown: it ends
when the key is revoked, when the key or that secret expires, at sign-out, and after some hours.
Every function is one transaction of its caller.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

import sqlalchemy as sa

from craft_server.database import METADATA
from craft_server.ledger.keys import Caller, authenticate, living_caller

CONSOLE_SESSIONS = sa.Table(
    "console_sessions",
    METADATA,
    sa.Column("token_hash", sa.Text, primary_key=True),
    sa.Column("prefix", sa.Text, sa.ForeignKey("key_secrets.prefix"), nullable=False),
    sa.Column("form_token", sa.Text, nullable=False),
    # What the last form did; the next page shows it, once.
    sa.Column("notice", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
)


@dataclass(frozen=True)
class Session:
    """A living session."""

    id: str  # names it in the database; not the token
    caller: Caller  # whose key was shown
    form_token: str  # what each form of the session's pages must hold
    notice: str  # for the next page; may be empty


def sign_in(connection: sa.Connection, secret: str, *, at: int, until: int) -> str | None:
    """Makes a session for who shows a key's secret, and removes those that are over.

    Returns:
        The token, this once; None where no living key reads so.
    """
    connection.execute(sa.delete(CONSOLE_SESSIONS).where(CONSOLE_SESSIONS.c.expires_at <= at))
    caller = authenticate(connection, secret, at)
    if caller is None:
        return None
    token = secrets.token_urlsafe(32)
    connection.execute(
        sa.insert(CONSOLE_SESSIONS).values(
            token_hash=_hash(token),
            prefix=caller.prefix,
            form_token=secrets.token_urlsafe(32),
            notice="",
            created_at=at,
            expires_at=until,
        )
    )
    return token


def find(connection: sa.Connection, token: str, at: int) -> Session | None:
    """The session of a token; None where there is none, or its key does not live any more."""
    row = connection.execute(
        sa.select(CONSOLE_SESSIONS).where(
            CONSOLE_SESSIONS.c.token_hash == _hash(token), CONSOLE_SESSIONS.c.expires_at > at
        )
    ).one_or_none()
    caller = None if row is None else living_caller(connection, row.prefix, at)
    if row is None or caller is None:
        return None
    return Session(row.token_hash, caller, row.form_token, row.notice)


def sign_out(connection: sa.Connection, session: Session) -> None:
    """Ends a session."""
    connection.execute(
        sa.delete(CONSOLE_SESSIONS).where(CONSOLE_SESSIONS.c.token_hash == session.id)
    )


def set_notice(connection: sa.Connection, session: Session, notice: str) -> None:
    """Stores the notice that the session's next page shows; an empty one removes it."""
    connection.execute(
        sa.update(CONSOLE_SESSIONS)
        .where(CONSOLE_SESSIONS.c.token_hash == session.id)
        .values(notice=notice)
    )


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
