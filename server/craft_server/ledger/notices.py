"""Notices: that a share of a budget is spent, kept until all who want to know were told.

A settlement that brings a key's or a team's budget to one of the shares writes the notice in its
own transaction (`crossing`), so that there is one exactly if the charge is. Whoever sends it claims
it for a while first: nobody else sends it meanwhile, and if the sender dies, it is sent again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from craft_server.clock import rfc3339, window_end
from craft_server.ledger.keys import newest_prefix
from craft_server.ledger.tables import API_KEYS, BUDGETS, NOTICES, TEAMS
from craft_server.statements import Asked, Statement

_KEPT_MS = 30 * 86_400_000  # after it was sent

_COPIED = ("key_id", "team_id", "unit", "window", "window_start", "limit", "spent")


@dataclass(frozen=True)
class Notice:
    """A notice that is to be sent."""

    id: int  # of its row
    at: int  # when the share was spent
    attempts: int  # to send it, this one included
    told: frozenset[str]  # digests of the addresses that were told already
    data: Mapping[str, Any]  # what it tells


def crossings(
    percents: Collection[int], spent: Iterable[Mapping[str, int]], at: int
) -> list[Asked]:
    """Statements that write a notice of each share which is reached by what was just `spent`.

    Each has the id of a budget, the start of its window, and how much of it that was. A limit that
    is changed does not reach a share by itself.
    """
    spending = [
        {"budget": one["budget"], "start": one["start"], "spend": one["spend"], "spent_at": at}
        for one in spent
        if one["spend"]
    ]
    return [(_crossing(tuple(percents)), spending)] if percents and spending else []


@lru_cache
def _crossing(percents: tuple[int, ...]) -> Statement:
    each: Iterator[sa.Select[Any]] = (
        sa.select(sa.literal_column(str(one)).label("percent")) for one in percents
    )
    shares = sa.union_all(*each).subquery("shares")
    share = BUDGETS.c.limit * shares.c.percent
    hundred: sa.ColumnElement[int] = sa.literal_column("100")
    spend, at, budget, start = (
        sa.bindparam(name, type_=sa.BigInteger) for name in ("spend", "spent_at", "budget", "start")
    )
    reached = (
        sa.select(at, at, BUDGETS.c.id, shares.c.percent, *(BUDGETS.c[name] for name in _COPIED))
        .select_from(sa.join(BUDGETS, shares, sa.true()))
        .where(
            BUDGETS.c.id == budget,
            BUDGETS.c.window_start == start,
            ~BUDGETS.c.per_user,
            BUDGETS.c.spent * hundred >= share,
            (BUDGETS.c.spent - spend) * hundred < share,
        )
    )
    columns = ["at", "next_at", "budget_id", "percent", *_COPIED]
    return Statement(sa.insert(NOTICES).from_select(columns, reached))


def any_due(connection: sa.Connection, at: int) -> bool:
    """Whether a notice is to be sent."""
    return connection.execute(_due(at)).first() is not None


def claim(connection: sa.Connection, at: int, *, until: int) -> Notice | None:
    """A notice that is to be sent, by nobody else until then; None where there is none."""
    found: int | None = connection.execute(_due(at).with_for_update(skip_locked=True)).scalar()
    if found is None:
        return None
    row = connection.execute(
        sa.update(NOTICES)
        .where(NOTICES.c.id == found)
        .values(next_at=until, attempts=NOTICES.c.attempts + 1)
        .returning(NOTICES)
    ).one()
    told = frozenset(json.loads(row.told))
    return Notice(row.id, row.at, row.attempts, told, _data(connection, row))


def put_off(connection: sa.Connection, notice: Notice, told: Collection[str], until: int) -> None:
    """Some were not told: they are to be told then."""
    connection.execute(
        sa.update(NOTICES)
        .where(NOTICES.c.id == notice.id, NOTICES.c.closed_at.is_(None))
        .values(told=json.dumps(sorted(told)), next_at=until)
    )


def close(connection: sa.Connection, notice: Notice, at: int) -> None:
    """Nobody is to be told any more."""
    connection.execute(sa.update(NOTICES).where(NOTICES.c.id == notice.id).values(closed_at=at))


def tidy(connection: sa.Connection, at: int, *, before: int) -> int:
    """Notices that were closed long ago go; closes open ones from `before`, and says how many.

    So none stays open where nobody sends any more.
    """
    connection.execute(sa.delete(NOTICES).where(NOTICES.c.closed_at < at - _KEPT_MS))
    given_up = connection.execute(
        sa.update(NOTICES)
        .where(NOTICES.c.closed_at.is_(None), NOTICES.c.at < before)
        .values(closed_at=at)
    )
    return given_up.rowcount


def _due(at: int) -> sa.Select[Any]:
    return (
        sa.select(NOTICES.c.id)
        .where(NOTICES.c.closed_at.is_(None), NOTICES.c.next_at <= at)
        .order_by(NOTICES.c.next_at)
        .limit(1)
    )


def _data(connection: sa.Connection, row: Any) -> dict[str, Any]:
    key = connection.execute(
        sa.select(
            API_KEYS.c.owner, API_KEYS.c.name, newest_prefix(API_KEYS.c.id).label("prefix")
        ).where(API_KEYS.c.id == row.key_id)
    ).one_or_none()
    team = connection.execute(sa.select(TEAMS.c.name).where(TEAMS.c.id == row.team_id)).scalar()
    end = window_end(row.window, row.window_start)
    return {
        "percent": row.percent,
        "unit": row.unit,
        "window": row.window,
        "limit": row.limit,
        "spent": row.spent,
        "resets_at": None if end is None else rfc3339(end),
        "key": None if key is None else key.prefix,
        "owner": None if key is None else key.owner,
        "name": None if key is None else key.name,
        "team": team,
    }
