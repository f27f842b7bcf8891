"""Calls under an idempotency key: whether one was made before, and what was answered.

A call's answer is stored in the transaction that charges it, before a byte of it is sent: from then
on it can be given again, byte for byte, whatever becomes of the connection. Answers of calls that
can be repeated without harm (predictions) may be large; their bytes go once the client has
acknowledged them, or once all of them together pass a bound, the oldest first. The record stays, so
that such a call is done anew free of charge. Answers of calls that change something are small and
are kept as long as the record.

Source: draft-ietf-httpapi-idempotency-key-header-07.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from craft_server.ledger.tables import CALLS


@dataclass(frozen=True)
class StoredAnswer:
    """An answer as it was sent: HTTP status, content type, body."""

    status: int
    media_type: str
    body: bytes


@dataclass(frozen=True)
class Attempt:
    """A call that is made under an idempotency key.

    Attributes:
        key: the idempotency key.
        fingerprint: of method, address and body: what makes it the same call.
        repeatable: whether doing it twice does no harm.
    """

    key: str
    fingerprint: str
    repeatable: bool


class KeyReused(Exception):  # noqa: N818 - reads as what it is where it is caught
    """Another call was made under this idempotency key."""


class StillRunning(Exception):  # noqa: N818 - reads as what it is where it is caught
    """The same call runs now."""


@dataclass(frozen=True)
class Made:
    """The call was made before.

    Attributes:
        answer: what was answered; None where its bytes are gone.
        charge_id: what it was charged; None where it was free.
    """

    answer: StoredAnswer | None
    charge_id: int | None


# Statements are built once: building one takes several times as long as running it.
_FIND = sa.select(CALLS).where(
    CALLS.c.key_id == sa.bindparam("of_key"), CALLS.c.idempotency_key == sa.bindparam("of_call")
)
_INSERT = {
    dialect: insert(CALLS)
    .on_conflict_do_nothing(index_elements=["key_id", "idempotency_key"])
    .returning(CALLS.c.id)
    for dialect, insert in (("postgresql", postgresql_insert), ("sqlite", sqlite_insert))
}
_FINISH = (
    sa.update(CALLS)
    .where(CALLS.c.id == sa.bindparam("call"), ~CALLS.c.done)
    .values(
        done=True,
        status=sa.bindparam("status"),
        media_type=sa.bindparam("media_type"),
        body=sa.bindparam("body"),
        body_bytes=sa.bindparam("body_bytes"),
    )
)


def look_up(connection: sa.Connection, key_id: int, key: str, fingerprint: str) -> Made | None:
    """Whether the key's owner has made the call under this idempotency key before.

    Raises:
        KeyReused: it was another call.
        StillRunning: it has not been answered yet.
    """
    row = connection.execute(_FIND, {"of_key": key_id, "of_call": key}).one_or_none()
    if row is None:
        return None
    if row.fingerprint != fingerprint:
        raise KeyReused(key)
    if not row.done:
        raise StillRunning(key)
    if row.body is None:
        return Made(None, row.charge_id)
    return Made(StoredAnswer(row.status, row.media_type, bytes(row.body)), row.charge_id)


def begin(
    connection: sa.Connection,
    key_id: int,
    attempt: Attempt,
    *,
    holder: str,
    charge_id: int | None,
    at: int,
) -> int:
    """Notes that the call runs; the record's id.

    Raises:
        StillRunning: another attempt was faster; the transaction must be undone.
    """
    made: int | None = connection.execute(
        _INSERT[connection.dialect.name],
        {
            "key_id": key_id,
            "idempotency_key": attempt.key,
            "fingerprint": attempt.fingerprint,
            "at": at,
            "holder": holder,
            "charge_id": charge_id,
            "done": False,
            "repeatable": attempt.repeatable,
            "body_bytes": 0,
        },
    ).scalar_one_or_none()
    if made is None:
        raise StillRunning(attempt.key)
    return made


def finish(connection: sa.Connection, call_id: int, answer: StoredAnswer) -> None:
    """Stores the answer.

    Raises:
        StillRunning: this process's lease ran out and the call is somebody else's by now.
    """
    finished = connection.execute(
        _FINISH,
        {
            "call": call_id,
            "status": answer.status,
            "media_type": answer.media_type,
            "body": answer.body,
            "body_bytes": len(answer.body),
        },
    )
    if finished.rowcount == 0:
        raise StillRunning(call_id)


def abandon(connection: sa.Connection, call_id: int) -> None:
    """Forgets a call that failed, so that it may be made again under its key."""
    connection.execute(sa.delete(CALLS).where(CALLS.c.id == call_id, ~CALLS.c.done))


def acknowledge(connection: sa.Connection, key_id: int, key: str) -> None:
    """The client has stored the answer: its bytes are not needed any more."""
    connection.execute(
        sa.update(CALLS)
        .where(
            CALLS.c.key_id == key_id,
            CALLS.c.idempotency_key == key,
            CALLS.c.done,
            CALLS.c.repeatable,
        )
        .values(body=None, body_bytes=0)
    )


def evict(connection: sa.Connection, *, most_bytes: int, before: int) -> None:
    """Keeps stored answers within their bounds.

    Args:
        connection: of a writing transaction.
        most_bytes: of all repeatable calls' answers together; past it the oldest bytes go.
        before: records of calls before this time go whole.
    """
    connection.execute(sa.delete(CALLS).where(CALLS.c.at < before, CALLS.c.done))
    stored = sa.and_(CALLS.c.body_bytes > 0, CALLS.c.repeatable)
    newer = connection.execute(
        sa.select(CALLS.c.id, CALLS.c.body_bytes).where(stored).order_by(CALLS.c.id.desc())
    )
    total = 0
    for row in newer:
        total += row.body_bytes
        if total > most_bytes:
            connection.execute(
                sa.update(CALLS).where(stored, CALLS.c.id <= row.id).values(body=None, body_bytes=0)
            )
            return
