"""The ledger written out: every line that charges something, as CSV or JSON Lines; and their sums.

Lines come in pages, each of which examines so many lines and no more, so that a ledger of any
length needs the same memory and no page takes longer than the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from craft_server.clock import rfc3339
from craft_server.ledger.account import DAY_MS, SUMS
from craft_server.ledger.keys import find_key, find_team, list_keys, newest_prefix
from craft_server.ledger.tables import API_KEYS, CHARGES, TEAMS, TOTALS
from craft_shared.printing import printable
from craft_shared.text_files import line_of
from craft_shared.units import MEASURES
from craft_shared.wire import UsageLine

Format = Literal["csv", "jsonl"]

_LINES_A_PAGE = 500
_EXAMINED_A_PAGE = 5000


@dataclass(frozen=True)
class Selection:
    """Which lines: of one key, of a team's keys or of all, reserved from `since` until `until`.

    A key's lines are its team's, whichever team it was in when they were charged.
    """

    prefix: str | None = None
    team: str | None = None
    since: int | None = None
    until: int | None = None


_LINES = (
    sa.select(
        CHARGES,
        API_KEYS.c.owner,
        TEAMS.c.name.label("team"),
        newest_prefix(CHARGES.c.key_id).label("prefix"),
    )
    .join(API_KEYS, API_KEYS.c.id == CHARGES.c.key_id)
    .outerjoin(TEAMS, TEAMS.c.id == API_KEYS.c.team_id)
)


@dataclass(frozen=True)
class Page:
    """Some lines, in order; none does not mean that no more follow."""

    lines: list[UsageLine]  # of the page
    next_after: int | None  # where the next page begins; None after the last one


def page(connection: sa.Connection, selection: Selection, *, after: int = 0) -> Page:
    """The page that begins after what the page before has named; 0 begins the first one.

    Raises:
        UnknownKey: no key has the prefix.
        UnknownTeam: no team has the name.
    """
    # A key's lines are numbered from 1 in the order of their ids.
    of_key: sa.ColumnElement[bool]
    if selection.prefix is None:
        place, of_key = CHARGES.c.id, sa.true()
        newest = sa.select(sa.func.max(CHARGES.c.id))
    else:
        key_id = find_key(connection, selection.prefix).key_id
        place, of_key = CHARGES.c.line, CHARGES.c.key_id == key_id
        newest = sa.select(TOTALS.c.lines).where(TOTALS.c.key_id == key_id)
    last: int = connection.execute(newest).scalar() or 0
    until = after + _EXAMINED_A_PAGE
    query = (
        _LINES.where(of_key, place > after, place <= until, *_within(connection, selection))
        .order_by(place)
        .limit(_LINES_A_PAGE)
    )
    rows = connection.execute(query).all()
    if len(rows) == _LINES_A_PAGE:
        until = rows[-1]._mapping[place]
    return Page([_line(row) for row in rows], until if until < last else None)


def lines(connection: sa.Connection, selection: Selection) -> Iterator[UsageLine]:
    """All lines, page by page.

    Raises:
        UnknownKey: no key has the prefix.
        UnknownTeam: no team has the name.
    """
    after: int | None = 0
    while after is not None:
        found = page(connection, selection, after=after)
        yield from found.lines
        after = found.next_after


def sums(
    connection: sa.Connection, selection: Selection, by: Sequence[str]
) -> list[dict[str, Any]]:
    """What lines come to: of each combination of what they are summed `by`, each unit and the cost.

    They are summed by any of team, owner, key, user, model, call, month and day.

    Months and days are those in which calls were reserved (UTC).

    Raises:
        UnknownKey: no key has the prefix.
        UnknownTeam: no team has the name.
    """
    day = (CHARGES.c.at // sa.literal_column(str(DAY_MS))).label("day")
    of = [CHARGES.c.key_id, CHARGES.c.model, CHARGES.c.call, day]
    if "user" in by:
        of.append(CHARGES.c.end_user)
    query = sa.select(*of, *SUMS).where(*_within(connection, selection)).group_by(*of)
    if selection.prefix is not None:
        query = query.where(CHARGES.c.key_id == find_key(connection, selection.prefix).key_id)
    entries = {entry.key_id: entry for entry in list_keys(connection)}
    found: dict[tuple[str, ...], Counter[str]] = {}
    for row in connection.execute(query):
        entry, date = entries[row.key_id], rfc3339(row.day * DAY_MS)
        named = {
            "team": entry.team or "",
            "owner": entry.owner,
            "key": entry.prefixes[0],
            "user": row._mapping.get("end_user") or "",
            "model": row.model,
            "call": row.call,
            "month": date[:7],
            "day": date[:10],
        }
        total = found.setdefault(tuple(named[one] for one in by), Counter())
        total.update({measure: row._mapping[measure] for measure in MEASURES})
    return [
        {**dict(zip(by, place, strict=True)), **{measure: total[measure] for measure in MEASURES}}
        for place, total in sorted(found.items())
    ]


def header(form: Format) -> str:
    """What stands before the first line."""
    return line_of(UsageLine.model_fields) if form == "csv" else ""


def text(line: UsageLine, form: Format) -> str:
    """One line with its line break."""
    if form == "csv":
        cells = line.model_dump().values()
        return line_of(printable(cell) if isinstance(cell, str) else cell for cell in cells)
    return line.model_dump_json() + "\n"


def _within(connection: sa.Connection, selection: Selection) -> list[sa.ColumnElement[bool]]:
    """Lines of the selection, whatever key they are of."""
    within = [CHARGES.c.state != "refunded"]
    if selection.team is not None:
        of_team = API_KEYS.c.team_id == find_team(connection, selection.team)
        within.append(CHARGES.c.key_id.in_(sa.select(API_KEYS.c.id).where(of_team)))
    if selection.since is not None:
        within.append(CHARGES.c.at >= selection.since)
    if selection.until is not None:
        within.append(CHARGES.c.at < selection.until)
    return within


def _line(row: sa.Row[tuple[Any, ...]]) -> UsageLine:
    return UsageLine(
        id=row.id,
        line=row.line,
        at=rfc3339(row.at),
        closed_at=None if row.closed_at is None else rfc3339(row.closed_at),
        key_id=row.key_id,
        key=row.prefix,
        owner=row.owner,
        team=row.team,
        call=row.call,
        run=row.run,
        model=row.model,
        revision=row.revision,
        state=row.state,
        **{measure: row._mapping[measure] for measure in MEASURES},
        adapter=row.adapter,
        user=row.end_user,
    )
