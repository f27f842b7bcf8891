"""Leases: which server processes live, and so which reservations still have somebody behind them.

A process renews its lease while it runs. Once a lease has run out, whoever sees it first gives back
what the process held: its reservations are refunded, and its running calls are forgotten, so that
the same idempotency keys may be used again. What a process could not give back at once, it gives
back later in the same way.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from craft_server.ledger.charges import refund_all
from craft_server.ledger.tables import CALLS, CHARGES, HOLDERS, RUNNING


@dataclass(frozen=True)
class Released:
    """What was given back: leases that had run out, and the reservations of their processes."""

    leases: int
    reservations: int


def renew(connection: sa.Connection, holder: str, until: int) -> None:
    """Makes or prolongs a process's lease."""
    renewed = connection.execute(
        sa.update(HOLDERS).where(HOLDERS.c.id == holder).values(lease_until=until)
    )
    if renewed.rowcount == 0:
        connection.execute(sa.insert(HOLDERS).values(id=holder, lease_until=until))


def end(connection: sa.Connection, holder: str, at: int) -> None:
    """Ends a process's lease early and gives back what it still held."""
    connection.execute(sa.update(HOLDERS).where(HOLDERS.c.id == holder).values(lease_until=at))
    release_expired(connection, at)


def release_expired(connection: sa.Connection, at: int) -> Released:
    """Gives back what processes hold whose lease has run out; how much that was.

    A lease that another transaction works on, because it is renewed after all, is left to it.
    """
    dead = connection.execute(
        sa.select(HOLDERS.c.id)
        .where(HOLDERS.c.lease_until <= at)
        .order_by(HOLDERS.c.id)
        .with_for_update(skip_locked=True)
    ).scalars()
    gone = dead.all()
    # A process that was taken for dead may have gone on, and died, before it could renew.
    kept = sa.select(HOLDERS.c.id).where(HOLDERS.c.id.not_in(gone))
    released = _give_back(connection, CHARGES.c.holder.not_in(kept), at)
    connection.execute(sa.delete(HOLDERS).where(HOLDERS.c.id.in_(gone)))
    return Released(len(gone), released)


def give_back(connection: sa.Connection, charge_ids: Collection[int], at: int) -> int:
    """Gives back those of the reservations that are still held; how many they were."""
    return _give_back(connection, CHARGES.c.id.in_(charge_ids), at)


def _give_back(connection: sa.Connection, held: sa.ColumnElement[bool], at: int) -> int:
    """Gives reservations back and forgets their calls, which may be made again."""
    released = refund_all(connection, held, at)
    given_back = sa.exists().where(CHARGES.c.id == CALLS.c.charge_id, CHARGES.c.state == "refunded")
    connection.execute(sa.delete(CALLS).where(RUNNING, given_back))
    return released
