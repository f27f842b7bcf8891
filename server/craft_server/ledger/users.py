"""End users of a key: what each of them may use, in their owner's words for them.

An operator bounds what any one end user of a key may use. Budgets of a user, which are rows like a
team's, are made when a call first names it, and are brought to what the operator has set since
whenever one names it again: `look_up` sees whether they are as they should be, `admit` makes them
so. From there on a user's budgets are held, settled and refunded like all others.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from craft_server.clock import window_start
from craft_server.database import insert_missing
from craft_server.ledger.budgets import (
    NoSuchBudget,
    add_budget,
    as_budget,
    begin_window,
    in_order,
    this_budget,
)
from craft_server.ledger.tables import BUDGETS, TEAMS, TOTALS, USER_LIMITS
from craft_server.statements import Statement, run
from craft_shared.amounts import Measure
from craft_shared.wire import Budget, BudgetLimit, Window

# What no team's name may hold.
_SEPARATOR = "\x1f"


@dataclass(frozen=True)
class EndUser:
    """For whom a key makes a call."""

    name: str  # what the key's owner calls it
    holder: int | None = None  # of its budgets; None where nothing bounds each user
    used_up: bool = False  # whether one of its budgets had nothing left


class TooManyUsers(Exception):  # noqa: N818 - reads as what it is where it is caught
    """So many end users of the key have budgets as may; nothing was made for another one."""


class TeamHasNoUsers(Exception):  # noqa: N818 - reads as what it is where it is caught
    """End users are a key's."""


_LIMITS_AND_BUDGETS = Statement(
    sa.select(
        USER_LIMITS.c.unit,
        USER_LIMITS.c.window,
        USER_LIMITS.c.limit.label("most"),
        TEAMS.c.id.label("holder"),
        *(BUDGETS.c[name] for name in ("id", "team_id", "per_user", "window_start")),
        *(BUDGETS.c[name] for name in ("limit", "spent", "reserved")),
    )
    .select_from(USER_LIMITS)
    .outerjoin(TEAMS, TEAMS.c.name == sa.bindparam("of_holder"))
    .outerjoin(
        BUDGETS,
        sa.and_(
            BUDGETS.c.team_id == TEAMS.c.id,
            BUDGETS.c.unit == USER_LIMITS.c.unit,
            BUDGETS.c.window == USER_LIMITS.c.window,
        ),
    )
    .where(USER_LIMITS.c.key_id == sa.bindparam("of_key"))
)


def look_up(connection: sa.Connection, key_id: int, name: str, at: int) -> EndUser | None:
    """A user whose budgets are as the key's limits say; None where `admit` has to make them so."""
    rows = _limits_and_budgets(connection, key_id, name)
    if any(row.id is None or row.limit != max(row.most, _used(row, at)) for row in rows):
        return None
    return _end_user(name, rows, at)


def admit(connection: sa.Connection, key_id: int, name: str, at: int, *, most: int) -> EndUser:
    """Makes a user's budgets be as the key's limits say.

    Of a budget of which more is used than its new limit, nothing is left.

    Raises:
        TooManyUsers: the user is new, and `most` users have budgets; the transaction must be
            undone.
    """
    # Not while one of them is removed: the user's budget would stay.
    limits = connection.execute(
        sa.select(USER_LIMITS)
        .where(USER_LIMITS.c.key_id == key_id)
        .order_by(USER_LIMITS.c.unit, USER_LIMITS.c.window)
        .with_for_update(read=True)
    ).all()
    if not limits:
        return EndUser(name)
    new = insert_missing(
        connection,
        TEAMS,
        # Like a budget's: SQLite would use a forgotten user's again, for whom calls may run.
        id=secrets.randbits(62),
        name=_holder(key_id, name),
        created_at=at,
        user_of=key_id,
    )
    holder: int = connection.execute(
        sa.select(TEAMS.c.id).where(TEAMS.c.name == _holder(key_id, name))
    ).scalar_one()
    for one in limits:
        add_budget(
            connection,
            team_id=holder,
            unit=one.unit,
            window=one.window,
            limit=one.limit,
            at=at,
            per_user=True,
        )
    # In the order in which reservations lock them.
    connection.execute(
        sa.select(BUDGETS.c.id)
        .where(BUDGETS.c.team_id == holder)
        .order_by(BUDGETS.c.id)
        .with_for_update()
    )
    used = BUDGETS.c.spent + BUDGETS.c.reserved
    for one in limits:
        begin_window(connection, team_id=holder, unit=one.unit, window=one.window, at=at)
        connection.execute(
            sa.update(BUDGETS)
            .where(this_budget(None, holder, one.unit, one.window))
            .values(limit=sa.case((used > one.limit, used), else_=one.limit))
        )
    if new:
        counted = connection.execute(
            sa.update(TOTALS)
            .where(TOTALS.c.key_id == key_id, TOTALS.c.users < most)
            .values(users=TOTALS.c.users + 1)
        )
        if counted.rowcount == 0:
            raise TooManyUsers(most)
    return _end_user(name, _limits_and_budgets(connection, key_id, name), at)


def list_limits(connection: sa.Connection, key_id: int) -> list[BudgetLimit]:
    """What each end user of a key may use."""
    rows = connection.execute(sa.select(USER_LIMITS).where(USER_LIMITS.c.key_id == key_id))
    return [
        BudgetLimit(unit=row.unit, window=row.window, limit=row.limit, per_user=True)
        for row in rows
    ]


def list_user_budgets(
    connection: sa.Connection, key_id: int, name: str | None, at: int
) -> list[Budget]:
    """What bounds a user of the key; without a name, what bounds one that is new."""
    rows = _limits_and_budgets(connection, key_id, name or "")
    return in_order([_as_budget(row, at) for row in rows])


def set_user_limit(
    connection: sa.Connection, key_id: int, *, unit: Measure, window: Window, limit: int
) -> None:
    """Sets what each end user of a key may use, those who have called before included."""
    which = {"key_id": key_id, "unit": unit, "window": window}
    insert_missing(connection, USER_LIMITS, **which, limit=limit)
    connection.execute(sa.update(USER_LIMITS).where(_of(which)).values(limit=limit))


def remove_user_limit(
    connection: sa.Connection, key_id: int, *, unit: Measure, window: Window
) -> None:
    """Removes a limit, and the budgets of users that it has made, whatever calls hold of them.

    What a call that runs holds of one is neither spent nor given back when it ends. With the last
    limit the key's users are forgotten.

    Raises:
        NoSuchBudget: there is none.
    """
    limit = _of({"key_id": key_id, "unit": unit, "window": window})
    if connection.execute(sa.delete(USER_LIMITS).where(limit)).rowcount == 0:
        raise NoSuchBudget(unit, window)
    of_users = BUDGETS.c.team_id.in_(sa.select(TEAMS.c.id).where(TEAMS.c.user_of == key_id))
    these = sa.and_(of_users, BUDGETS.c.unit == unit, BUDGETS.c.window == window)
    # In the order in which reservations lock them.
    connection.execute(
        sa.select(BUDGETS.c.id).where(these).order_by(BUDGETS.c.id).with_for_update()
    )
    connection.execute(sa.delete(BUDGETS).where(these))
    if not list_limits(connection, key_id):
        connection.execute(sa.delete(TEAMS).where(TEAMS.c.user_of == key_id))
        connection.execute(sa.update(TOTALS).where(TOTALS.c.key_id == key_id).values(users=0))


def _limits_and_budgets(connection: sa.Connection, key_id: int, name: str) -> Sequence[Any]:
    asked = {"of_key": key_id, "of_holder": _holder(key_id, name)}
    return run(connection, (_LIMITS_AND_BUDGETS, asked))[0].rows


def _holder(key_id: int, name: str) -> str:
    return f"{key_id}{_SEPARATOR}{name}"


def _end_user(name: str, rows: Sequence[Any], at: int) -> EndUser:
    return EndUser(
        name,
        rows[0].holder if rows else None,
        used_up=any(_used(row, at) >= row.limit for row in rows),
    )


def _used(row: Any, at: int) -> int:
    """What is used of a budget in the window that holds a time."""
    over = row.window_start < window_start(row.window, at)
    used: int = 0 if over else row.spent + row.reserved
    return used


def _as_budget(row: Any, at: int) -> Budget:
    if row.id is None:
        nothing = {"id": 0, "per_user": True, "limit": row.most, "spent": 0, "reserved": 0}
        start = {"window_start": window_start(row.window, at)}
        row = row._replace(**nothing, **start)
    budget = as_budget(row, at)
    remaining = max(0, row.most - budget.spent - budget.reserved)
    return budget.model_copy(update={"limit": row.most, "remaining": remaining})


def _of(which: dict[str, Any]) -> sa.ColumnElement[bool]:
    return sa.and_(*(USER_LIMITS.c[name] == value for name, value in which.items()))
