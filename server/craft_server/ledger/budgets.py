"""Budgets: what bounds a key, its own and its team's, lifetime or by calendar window (UTC).

A budget counts from when it is set. A windowed one begins anew with each window: the first
reservation in it finds the old counts and sets them to zero, so that nobody has to be awake at
midnight. A call counts in the window in which it was reserved.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, Literal

import sqlalchemy as sa

from craft_server.clock import rfc3339, window_end, window_start
from craft_server.database import insert_missing
from craft_server.ledger.tables import BUDGETS
from craft_shared.amounts import MAX_INTEGER, MEASURES, Measure
from craft_shared.wire import Budget, Window


class NoSuchBudget(Exception):  # noqa: N818 - reads as what it is where it is caught
    """There is no budget on this unit and window."""

    def __init__(self, unit: Measure, window: Window) -> None:
        super().__init__(unit, window)
        self.unit = unit
        self.window = window


class LimitBelowUse(Exception):  # noqa: N818 - reads as what it is where it is caught
    """The new limit is less than what is spent and reserved already."""

    def __init__(self, unit: Measure, window: Window, used: int) -> None:
        super().__init__(unit, window, used)
        self.unit = unit
        self.window = window
        self.used = used


class BudgetInUse(Exception):  # noqa: N818 - reads as what it is where it is caught
    """Calls that run hold some of the budget; says so in words."""

    def __init__(self, unit: Measure, window: Window, reserved: int) -> None:
        super().__init__(
            f"calls that run now hold {reserved} of the budget on {unit} ({window}); remove it "
            "when they have ended"
        )


class LimitTooLarge(Exception):  # noqa: N818 - reads as what it is where it is caught
    """A limit would grow past what every reader of it holds exactly; says so in words."""

    def __init__(self, unit: Measure, window: Window) -> None:
        super().__init__(f"the limit of {unit} ({window}) would be more than {MAX_INTEGER}")


def list_budgets(
    connection: sa.Connection,
    key_id: int | None,
    team_id: int | None,
    at: int,
    user: int | None = None,
) -> list[Budget]:
    """All budgets of the key, the team and the end user; without one a measure is not bounded."""
    holders = ((BUDGETS.c.key_id, key_id), (BUDGETS.c.team_id, team_id), (BUDGETS.c.team_id, user))
    bounding = sa.or_(*(column == holder for column, holder in holders if holder is not None))
    rows = connection.execute(sa.select(BUDGETS).where(bounding))
    return in_order([as_budget(row, at) for row in rows])


def budgets_of_keys(connection: sa.Connection, at: int) -> dict[int, list[Budget]]:
    """The own budgets of all keys that have some, by the keys' ids."""
    found: dict[int, list[Budget]] = {}
    for row in connection.execute(sa.select(BUDGETS).where(BUDGETS.c.key_id.is_not(None))):
        found.setdefault(row.key_id, []).append(as_budget(row, at))
    return {key_id: in_order(of_key) for key_id, of_key in found.items()}


def in_order(budgets: Sequence[Budget]) -> list[Budget]:
    """Budgets in the order in which they are shown."""
    return sorted(budgets, key=lambda b: (MEASURES.index(b.unit), b.of, b.window))


def as_budget(row: Any, at: int) -> Budget:
    """A row of the table as it stands at a time; a window that has passed counts nothing."""
    of: Literal["key", "team", "user"] = "key" if row.team_id is None else "team"
    over = row.window_start < window_start(row.window, at)
    spent, reserved = (0, 0) if over else (row.spent, row.reserved)
    end = window_end(row.window, max(at, row.window_start))
    return Budget(
        unit=row.unit,
        window=row.window,
        of="user" if row.per_user else of,
        limit=row.limit,
        spent=spent,
        reserved=reserved,
        remaining=row.limit - spent - reserved,
        resets_at=None if end is None else rfc3339(end),
    )


def add_budget(
    connection: sa.Connection,
    *,
    key_id: int | None = None,
    team_id: int | None = None,
    unit: Measure,
    window: Window,
    limit: int,
    at: int,
    per_user: bool = False,
) -> None:
    """Sets a budget of a key, a team or an end user, unless there is one on the unit and window."""
    insert_missing(
        connection,
        BUDGETS,
        # SQLite would use a removed budget's again, of which calls that run hold something.
        id=secrets.randbits(62),
        key_id=key_id,
        team_id=team_id,
        per_user=per_user,
        unit=unit,
        window=window,
        window_start=window_start(window, at),
        limit=limit,
        spent=0,
        reserved=0,
    )


def set_budget(
    connection: sa.Connection,
    *,
    key_id: int | None = None,
    team_id: int | None = None,
    unit: Measure,
    window: Window,
    limit: int,
    at: int,
) -> None:
    """Sets a budget of a key or of a team, or changes its limit; what is spent stays spent.

    Raises:
        LimitBelowUse: more than that is spent and reserved already.
    """
    this_one = this_budget(key_id, team_id, unit, window)
    add_budget(
        connection,
        key_id=key_id,
        team_id=team_id,
        unit=unit,
        window=window,
        limit=limit,
        at=at,
    )
    begin_window(connection, key_id=key_id, team_id=team_id, unit=unit, window=window, at=at)
    changed = connection.execute(
        sa.update(BUDGETS)
        .where(this_one, BUDGETS.c.spent + BUDGETS.c.reserved <= limit)
        .values(limit=limit)
    )
    if changed.rowcount == 0:
        row = connection.execute(sa.select(BUDGETS).where(this_one)).one()
        raise LimitBelowUse(unit, window, row.spent + row.reserved)


def begin_window(
    connection: sa.Connection,
    *,
    key_id: int | None = None,
    team_id: int | None = None,
    unit: Measure,
    window: Window,
    at: int,
) -> None:
    """Begins a budget anew whose window has passed."""
    start = window_start(window, at)
    connection.execute(
        sa.update(BUDGETS)
        .where(this_budget(key_id, team_id, unit, window), BUDGETS.c.window_start < start)
        .values(window_start=start, spent=0, reserved=0)
    )


def remove_budget(
    connection: sa.Connection,
    *,
    key_id: int | None = None,
    team_id: int | None = None,
    unit: Measure,
    window: Window,
    at: int,
) -> None:
    """Removes a budget: the unit is not bounded by it any more.

    Raises:
        NoSuchBudget: there is none.
        BudgetInUse: calls that run hold some of it, and will give back or spend it.
    """
    this_one = this_budget(key_id, team_id, unit, window)
    nothing_held = sa.or_(
        BUDGETS.c.reserved == 0, BUDGETS.c.window_start < window_start(window, at)
    )
    if connection.execute(sa.delete(BUDGETS).where(this_one, nothing_held)).rowcount == 0:
        row = connection.execute(sa.select(BUDGETS).where(this_one)).first()
        raise NoSuchBudget(unit, window) if row is None else BudgetInUse(unit, window, row.reserved)


def top_up(
    connection: sa.Connection,
    *,
    key_id: int | None = None,
    team_id: int | None = None,
    unit: Measure,
    window: Window,
    amount: int,
) -> None:
    """Adds to a budget's limit.

    Raises:
        NoSuchBudget: there is none to add to: the unit is not bounded.
        LimitTooLarge: the limit would be more than `MAX_INTEGER`.
    """
    this_one = this_budget(key_id, team_id, unit, window)
    raised = connection.execute(
        sa.update(BUDGETS)
        .where(this_one, BUDGETS.c.limit <= MAX_INTEGER - amount)
        .values(limit=BUDGETS.c.limit + amount)
    )
    if raised.rowcount == 0:
        if connection.execute(sa.select(BUDGETS.c.limit).where(this_one)).first() is None:
            raise NoSuchBudget(unit, window)
        raise LimitTooLarge(unit, window)


def this_budget(
    key_id: int | None, team_id: int | None, unit: Measure, window: Window
) -> sa.ColumnElement[bool]:
    """The condition on the table that one budget meets."""
    return sa.and_(
        BUDGETS.c.team_id == team_id if key_id is None else BUDGETS.c.key_id == key_id,
        BUDGETS.c.unit == unit,
        BUDGETS.c.window == window,
    )
