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
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from craft_server.ledger.tables import CALLS
from craft_server.statements import Asked, Result, Statement, run


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
class Record:
    """What is known of a call under an idempotency key, without its answer.

    Attributes:
        id: of the record.
        fingerprint: of the call.
        done: whether it was answered.
        charge_id: what it was charged; None where it was free.
    """

    id: int
    fingerprint: str
    done: bool
    charge_id: int | None


@dataclass(frozen=True)
class Made:
    """The call was made before.

    Attributes:
        answer: what was answered; None where its bytes are gone.
        charge_id: what it was charged; None where it was free.
    """

    answer: StoredAnswer | None
    charge_id: int | None


# For a statement that has other columns called `id` and the like.
RECORD_COLUMNS = tuple(
    CALLS.c[name].label(f"call_{name}") for name in ("id", "fingerprint", "done", "charge_id")
)
_FIND = Statement(
    sa.select(*RECORD_COLUMNS).where(
        CALLS.c.key_id == sa.bindparam("of_key"), CALLS.c.idempotency_key == sa.bindparam("of_call")
    )
)
_READ = Statement(
    sa.select(CALLS.c.status, CALLS.c.media_type, CALLS.c.body).where(
        CALLS.c.id == sa.bindparam("of_id"), CALLS.c.body.is_not(None)
    )
)
_BEGUN: dict[str, sa.BindParameter[object]] = {
    name: sa.bindparam(name)
    for name in (
        *("key_id", "idempotency_key", "fingerprint", "at", "holder", "charge_id", "repeatable"),
    )
}
_INSERT = Statement(
    {
        dialect: insert(CALLS)
        .values({**_BEGUN, "done": sa.false(), "body_bytes": sa.literal_column("0")})
        .on_conflict_do_nothing(index_elements=["key_id", "idempotency_key"])
        .returning(CALLS.c.id)
        for dialect, insert in (("postgresql", postgresql_insert), ("sqlite", sqlite_insert))
    }
)
_FINISH = Statement(
    sa.update(CALLS)
    .where(CALLS.c.id == sa.bindparam("of_id"), ~CALLS.c.done)
    .values(
        done=sa.true(),
        status=sa.bindparam("to_status"),
        media_type=sa.bindparam("to_media_type"),
        body=sa.bindparam("to_body"),
        body_bytes=sa.bindparam("to_body_bytes"),
    )
)


def record_of(row: Any) -> Record | None:
    """The record in a row that has `RECORD_COLUMNS`; None where they are null."""
    if row.call_id is None:
        return None
    return Record(row.call_id, row.call_fingerprint, bool(row.call_done), row.call_charge_id)


def look_up(connection: sa.Connection, key_id: int, key: str, fingerprint: str) -> Made | None:
    """Whether the key's owner has made the call under this idempotency key before.

    Raises:
        KeyReused: it was another call.
        StillRunning: it has not been answered yet.
    """
    rows = run(connection, (_FIND, {"of_key": key_id, "of_call": key}))[0].rows
    record = record_of(rows[0]) if rows else None
    return None if record is None else recall(connection, record, fingerprint)


def recall(connection: sa.Connection, record: Record, fingerprint: str) -> Made:
    """What the call of a record was answered.

    Raises:
        KeyReused: it was another call.
        StillRunning: it has not been answered yet.
    """
    if record.fingerprint != fingerprint:
        raise KeyReused
    if not record.done:
        raise StillRunning
    rows = run(connection, (_READ, {"of_id": record.id}))[0].rows
    answer = StoredAnswer(rows[0].status, rows[0].media_type, bytes(rows[0].body)) if rows else None
    return Made(answer, record.charge_id)


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
    record = {
        "key_id": key_id,
        "idempotency_key": attempt.key,
        "fingerprint": attempt.fingerprint,
        "at": at,
        "holder": holder,
        "charge_id": charge_id,
        "repeatable": attempt.repeatable,
    }
    rows = run(connection, (_INSERT, record))[0].rows
    if not rows:
        raise StillRunning(attempt.key)
    made: int = rows[0].id
    return made


def finish(connection: sa.Connection, call_id: int, answer: StoredAnswer) -> None:
    """Stores the answer.

    Raises:
        StillRunning: this process's lease ran out and the call is somebody else's by now.
    """
    check_finished(run(connection, finishing(call_id, answer))[0])


def finishing(call_id: int, answer: StoredAnswer) -> Asked:
    """What `finish` asks the database, for `check_finished` to check the result."""
    stored = {
        "of_id": call_id,
        "to_status": answer.status,
        "to_media_type": answer.media_type,
        "to_body": answer.body,
        "to_body_bytes": len(answer.body),
    }
    return _FINISH, stored


def check_finished(result: Result) -> None:
    """Raises StillRunning as `finish` does; the transaction must be undone."""
    if result.count == 0:
        raise StillRunning


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
