"""Calls under an idempotency key: whether one was made before, and what was answered.

A call's answer is stored in the transaction that charges it, before a byte of it is sent: from then
on it can be given again, byte for byte, whatever becomes of the connection. Answers of calls that
can be repeated without harm (predictions) may be large; their bytes go once the client has
acknowledged them, or once all of them together pass a bound, the oldest first: a running sum says
how many they are. The record stays, with what the call was resolved to, so that such a call is done
anew free of charge, on exactly that and a bounded number of times. Answers of calls that change
something are small and are kept as long as the record.

Source: draft-ietf-httpapi-idempotency-key-header-07.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from craft_server.ledger.tables import CALLS, STORED, STORED_BYTES
from craft_server.statements import Asked, Statement, run

Condition = sa.ColumnElement[bool] | sa.TextClause

# As many as migration 0007 made.
SHARDS = 16
# Of one step of `evict`: other writers wait for it.
_STEP_CALLS = 500
_STEP_BYTES = 32 * 2**20


@dataclass(frozen=True)
class StoredAnswer:
    """An answer as it was sent: HTTP status, content type, body."""

    status: int
    media_type: str
    body: bytes


@dataclass(frozen=True)
class Attempt:
    """A call that is made under an idempotency key."""

    key: str  # the idempotency key
    fingerprint: str  # of method, address and body: what makes it the same call
    repeatable: bool  # whether doing it twice does no harm


class KeyReused(Exception):  # noqa: N818 - reads as what it is where it is caught
    """Another call was made under this idempotency key."""


class StillRunning(Exception):  # noqa: N818 - reads as what it is where it is caught
    """The same call runs now; `charge_id` is of its reservation, where it is known."""

    def __init__(self, charge_id: int | None = None) -> None:
        super().__init__(charge_id)
        self.charge_id = charge_id


class AnswerGone(Exception):  # noqa: N818 - the problem type's name
    """The call was answered, and can be neither answered so again nor computed anew; says why."""


@dataclass(frozen=True)
class Record:
    """What is known of a call under an idempotency key, without its answer."""

    id: int  # of the record
    fingerprint: str  # of the call
    done: bool  # whether it was answered
    charge_id: int | None  # what it was charged; None where it was free
    resolution: str | None  # what it was resolved to; None where it cannot be computed anew


@dataclass(frozen=True)
class Made:
    """The call was made before."""

    answer: StoredAnswer | None  # what was answered; None where its bytes are gone
    record: Record  # of the call


@dataclass(frozen=True)
class Begun:
    """A call that runs."""

    id: int  # of its record
    repeatable: bool  # as of its attempt


# Of one call, so that what is charged once is not worked on without end.
MAX_RECOMPUTATIONS = 8

# For a statement that has other columns called `id` and the like.
RECORD_COLUMNS = tuple(
    CALLS.c[name].label(f"call_{name}")
    for name in ("id", "fingerprint", "done", "charge_id", "resolution")
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
_BEGUN = ("key_id", "idempotency_key", "fingerprint", "at", "holder", "repeatable")


def beginning(charge_id: sa.ColumnElement[Any]) -> Statement:
    """Inserts the record of a call that is charged so; its id. Errors: see `is_running`."""
    values: dict[str, Any] = {name: sa.bindparam(name) for name in _BEGUN}
    rest = {"charge_id": charge_id, "done": sa.false(), "body_bytes": sa.literal_column("0")}
    return Statement(sa.insert(CALLS).values({**values, **rest}).returning(CALLS.c.id))


def is_running(error: sa.exc.IntegrityError) -> bool:
    """Whether a call could not begin because of another attempt at it."""
    # SQLite names the columns, PostgreSQL the constraint.
    return "calls.idempotency_key" in str(error.orig) or "uq_calls_key_id" in str(error.orig)


_INSERT = beginning(sa.bindparam("charge_id"))
_ANSWERED = ("status", "media_type", "body", "body_bytes", "resolution")
_FINISH = Statement(
    sa.update(CALLS)
    .where(CALLS.c.id == sa.bindparam("of_id"), ~CALLS.c.done)
    .values(
        {"done": sa.true(), **{name: sa.bindparam(f"to_{name}") for name in _ANSWERED}},
    )
    .returning(CALLS.c.repeatable)
)
_BEGIN_ANEW = Statement(
    sa.update(CALLS)
    .where(
        CALLS.c.id == sa.bindparam("of_id"), CALLS.c.done, CALLS.c.recomputed < sa.bindparam("most")
    )
    .values(recomputed=CALLS.c.recomputed + sa.literal_column("1"))
)
_ADD_BYTES = Statement(
    sa.update(STORED_BYTES)
    .where(STORED_BYTES.c.shard == sa.bindparam("of_shard"))
    .values(bytes=STORED_BYTES.c.bytes + sa.bindparam("add_bytes", type_=sa.BigInteger))
)
_TOTAL = sa.select(sa.cast(sa.func.sum(STORED_BYTES.c.bytes), sa.BigInteger))


def record_of(row: Any) -> Record | None:
    """The record in a row that has `RECORD_COLUMNS`; None where they are null."""
    if row.call_id is None:
        return None
    return Record(
        row.call_id,
        row.call_fingerprint,
        bool(row.call_done),
        row.call_charge_id,
        row.call_resolution,
    )


def look_up(connection: sa.Connection, key_id: int, key: str, fingerprint: str) -> Made | None:
    """Whether the key's owner has made the call under this idempotency key before.

    Raises:
        KeyReused: it was another call.
        StillRunning: it has not been answered yet.
    """
    record = find_record(connection, key_id, key)
    return None if record is None else recall(connection, record, fingerprint)


def find_record(connection: sa.Connection, key_id: int, key: str) -> Record | None:
    """The record of the call under this idempotency key, whatever call that was."""
    rows = run(connection, (_FIND, {"of_key": key_id, "of_call": key}))[0].rows
    return record_of(rows[0]) if rows else None


def recall(connection: sa.Connection, record: Record, fingerprint: str) -> Made:
    """What the call of a record was answered.

    Raises:
        KeyReused: it was another call.
        StillRunning: it has not been answered yet.
    """
    if record.fingerprint != fingerprint:
        raise KeyReused
    if not record.done:
        raise StillRunning(record.charge_id)
    rows = run(connection, (_READ, {"of_id": record.id}))[0].rows
    answer = StoredAnswer(rows[0].status, rows[0].media_type, bytes(rows[0].body)) if rows else None
    return Made(answer, record)


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
    asked = {**record(key_id, attempt, holder, at), "charge_id": charge_id}
    try:
        (begun,) = run(connection, (_INSERT, asked))
    except sa.exc.IntegrityError as error:
        if is_running(error):
            raise StillRunning from error
        raise
    made: int = begun.rows[0].id
    return made


def record(key_id: int, attempt: Attempt, holder: str, at: int) -> dict[str, Any]:
    """What `beginning`'s statement writes, but for the charge."""
    return {
        "key_id": key_id,
        "idempotency_key": attempt.key,
        "fingerprint": attempt.fingerprint,
        "at": at,
        "holder": holder,
        "repeatable": attempt.repeatable,
    }


def begin_anew(connection: sa.Connection, call_id: int) -> None:
    """Notes that the answer of a call is computed once more.

    Raises:
        AnswerGone: it was often enough; the transaction must be undone.
    """
    asked = {"of_id": call_id, "most": MAX_RECOMPUTATIONS}
    if run(connection, (_BEGIN_ANEW, asked))[0].count == 0:
        raise AnswerGone(f"it has been computed anew {MAX_RECOMPUTATIONS} times already")


def abandon_anew(connection: sa.Connection, call_id: int) -> None:
    """What `begin_anew` has noted did not come to an end, by no doing of the client's."""
    connection.execute(
        sa.update(CALLS)
        .where(CALLS.c.id == call_id, CALLS.c.recomputed > 0)
        .values(recomputed=CALLS.c.recomputed - 1)
    )


def finish(
    connection: sa.Connection, call_id: int, answer: StoredAnswer, resolution: str | None = None
) -> None:
    """Stores the answer, and what the call was resolved to.

    Raises:
        StillRunning: this process's lease ran out and the call is somebody else's by now.
    """
    stored = {f"to_{name}": value for name, value in _columns(answer, resolution).items()}
    (finished,) = run(connection, (_FINISH, {"of_id": call_id, **stored}))
    if not finished.rows:
        raise StillRunning
    if finished.rows[0].repeatable:
        _add(connection, {call_id % SHARDS: len(answer.body)})


def finishing(answered: Sequence[tuple[Begun, StoredAnswer, str | None]]) -> list[Asked]:
    """What `finish` asks the database for several calls."""
    asked: list[Asked] = []
    added: Counter[int] = Counter()
    for call, answer, resolution in sorted(answered, key=lambda one: one[0].id):
        columns = _columns(answer, resolution)
        stored = {"of_id": call.id, **{f"to_{name}": value for name, value in columns.items()}}
        asked.append((_FINISH, stored))
        if call.repeatable:
            added[call.id % SHARDS] += len(answer.body)
    shards = [{"of_shard": shard, "add_bytes": count} for shard, count in sorted(added.items())]
    return [*asked, (_ADD_BYTES, shards)]


def finish_anew(
    connection: sa.Connection, call_id: int, answer: StoredAnswer, resolution: str | None
) -> None:
    """Stores the answer of a call that was answered before; nothing if its record is gone."""
    this = CALLS.c.id == call_id
    before = connection.execute(
        sa.select(CALLS.c.body_bytes).where(this, CALLS.c.done).with_for_update()
    ).scalar()
    if before is None:
        return
    columns = _columns(answer, resolution)
    connection.execute(sa.update(CALLS).where(this).values(columns))
    _add(connection, {call_id % SHARDS: len(answer.body) - before})


def _columns(answer: StoredAnswer, resolution: str | None) -> dict[str, Any]:
    return {
        "status": answer.status,
        "media_type": answer.media_type,
        "body": answer.body,
        "body_bytes": len(answer.body),
        "resolution": resolution,
    }


def abandon(connection: sa.Connection, call_id: int) -> None:
    """Forgets a call that failed, so that it may be made again under its key."""
    connection.execute(sa.delete(CALLS).where(CALLS.c.id == call_id, ~CALLS.c.done))


def acknowledge(connection: sa.Connection, key_id: int, key: str) -> None:
    """The client has stored the answer: its bytes are not needed any more."""
    row = connection.execute(
        sa.select(CALLS.c.id, CALLS.c.body_bytes)
        .where(
            CALLS.c.key_id == key_id,
            CALLS.c.idempotency_key == key,
            CALLS.c.done,
            CALLS.c.repeatable,
            CALLS.c.body.is_not(None),
        )
        .with_for_update()
    ).one_or_none()
    if row is not None:
        _forget_bytes(connection, [row])


def evict(connection: sa.Connection, *, most_bytes: int, before: int) -> bool:
    """Takes a step towards keeping stored answers within their bounds; whether more are due.

    A step is short, so that other writers need not wait long. Past `most_bytes` of all repeatable
    calls' answers the oldest bytes go; records of calls before the time `before` go whole.
    """
    if connection.dialect.name == "postgresql":  # SQLite has one writer at a time anyway
        lock = sa.func.hashtextextended("stored answers", 2)
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))
    old = _step(connection, CALLS.c.at, sa.and_(CALLS.c.at < before, CALLS.c.done))
    aged = _first(old, _STEP_BYTES)
    if aged:
        _subtract(connection, (row for row in aged if row.repeatable))
        connection.execute(sa.delete(CALLS).where(CALLS.c.id.in_([row.id for row in aged])))
    over = connection.execute(_TOTAL).scalar_one() - most_bytes
    stored = _step(connection, CALLS.c.id, STORED) if over > 0 else []
    gone = _first(stored, min(over, _STEP_BYTES))
    _forget_bytes(connection, gone)
    freed = sum(row.body_bytes for row in gone)
    cut = len(old) == _STEP_CALLS or len(aged) < len(old)
    return cut or (bool(gone) and freed < over)


def correct_sums(connection: sa.Connection, missing: int) -> None:
    """Adds to the sum of stored bytes what `missing_bytes` has found."""
    _add(connection, {0: missing})


def missing_bytes(connection: sa.Connection) -> int:
    """How many bytes are stored that their sum does not count; less than zero: too many are.

    There are some after a server of an earlier version has worked on the database. It reads the
    whole index: seconds with millions of answers, for which no writer waits.
    """
    counted = sa.select(sa.func.coalesce(sa.func.sum(CALLS.c.body_bytes), 0)).where(STORED)
    # One statement, which sees both at one moment.
    return int(
        connection.execute(
            sa.select(counted.scalar_subquery() - _TOTAL.scalar_subquery())
        ).scalar_one()
    )


def _step(
    connection: sa.Connection, order: sa.ColumnElement[Any], which: Condition
) -> Sequence[Any]:
    """The first calls that nobody else works on; their size."""
    return connection.execute(
        sa.select(CALLS.c.id, CALLS.c.body_bytes, CALLS.c.repeatable)
        .where(which)
        .order_by(order)
        .limit(_STEP_CALLS)
        .with_for_update(skip_locked=True)
    ).all()


def _first(rows: Sequence[Any], enough: int) -> Sequence[Any]:
    """As many of the rows as it takes to have so many bytes; all of them where they have fewer."""
    total = 0
    for count, row in enumerate(rows, 1):
        total += row.body_bytes
        if total >= enough:
            return rows[:count]
    return rows


def _forget_bytes(connection: sa.Connection, rows: Sequence[Any]) -> None:
    if not rows:
        return
    connection.execute(
        sa.update(CALLS)
        .where(CALLS.c.id.in_([row.id for row in rows]))
        .values(body=None, body_bytes=0)
    )
    _subtract(connection, rows)


def _subtract(connection: sa.Connection, rows: Iterable[Any]) -> None:
    sums: Counter[int] = Counter()
    for row in rows:
        sums[row.id % SHARDS] -= row.body_bytes
    _add(connection, sums)


def _add(connection: sa.Connection, sums: Mapping[int, int]) -> None:
    # In the order of shards, so that two transactions never wait for each other in a circle.
    for shard, amount in sorted(sums.items()):
        connection.execute(
            sa.update(STORED_BYTES)
            .where(STORED_BYTES.c.shard == shard)
            .values(bytes=STORED_BYTES.c.bytes + amount)
        )
