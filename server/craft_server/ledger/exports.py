"""The ledger written out: every line that charges something, as CSV or JSON Lines.

Lines come in pages, each of which begins where the one before has ended, so that a ledger of any
length needs the same memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from craft_server.clock import rfc3339
from craft_server.ledger.keys import newest_prefix
from craft_server.ledger.selection import Selection, of_lines
from craft_server.ledger.tables import API_KEYS, CHARGES, TEAMS
from craft_shared.printing import printable
from craft_shared.text_files import line_of
from craft_shared.units import MEASURES
from craft_shared.wire import UsageLine

Format = Literal["csv", "jsonl"]

LINES_A_PAGE = 500
COLUMNS = tuple(UsageLine.model_fields)


@dataclass(frozen=True)
class Place:
    """Where a line stands: by its time, and among those of one time by its number.

    Of one key's lines it is the key's own number, so that a place tells nothing of others' calls.
    """

    at: int
    number: int


@dataclass(frozen=True)
class Page:
    """Some lines, in order."""

    lines: list[UsageLine]  # of the page
    next_after: Place | None  # where the next page begins; None after the last one


_LINES = (
    sa.select(
        CHARGES,
        API_KEYS.c.owner,
        TEAMS.c.name.label("team"),
        newest_prefix(CHARGES.c.key_id).label("prefix"),
    )
    .join(API_KEYS, API_KEYS.c.id == CHARGES.c.key_id)
    .outerjoin(TEAMS, TEAMS.c.id == API_KEYS.c.team_id)
    .where(CHARGES.c.state != "refunded")
)


def page(
    connection: sa.Connection,
    selection: Selection,
    *,
    after: Place | None = None,
    limit: int | None = None,
    newest_first: bool = False,
) -> Page:
    """Up to `limit` lines after a place, or `LINES_A_PAGE`; the oldest first, unless told else.

    Raises:
        UnknownKey: no key has the prefix.
        UnknownTeam: no team has the name.
    """
    limit = limit or LINES_A_PAGE
    place = (CHARGES.c.at, CHARGES.c.id if selection.prefix is None else CHARGES.c.line)
    query = _LINES.where(*of_lines(connection, selection))
    if after is not None:
        here, last = sa.tuple_(*place), sa.tuple_(sa.literal(after.at), sa.literal(after.number))
        # By the time alone, too, which is what an index finds.
        query = (
            query.where(here < last, CHARGES.c.at <= after.at)
            if newest_first
            else query.where(here > last, CHARGES.c.at >= after.at)
        )
    order = [column.desc() if newest_first else column for column in place]
    rows = connection.execute(query.order_by(*order).limit(limit + 1)).all()
    lines = [_line(row) for row in rows[:limit]]
    if len(rows) <= limit:
        return Page(lines, None)
    return Page(lines, Place(*(rows[limit - 1]._mapping[column] for column in place)))


def lines(connection: sa.Connection, selection: Selection) -> Iterator[UsageLine]:
    """All lines, page by page.

    Raises:
        UnknownKey: no key has the prefix.
        UnknownTeam: no team has the name.
    """
    found = page(connection, selection)
    yield from found.lines
    while found.next_after is not None:
        found = page(connection, selection, after=found.next_after)
        yield from found.lines


def header(form: Format, columns: Sequence[str] = COLUMNS) -> str:
    """What stands before the first line."""
    return line_of(columns) if form == "csv" else ""


def text(line: UsageLine, form: Format, columns: Sequence[str] = COLUMNS) -> str:
    """One line with its line break."""
    if form == "csv":
        return csv_line(getattr(line, column) for column in columns)
    return line.model_dump_json() + "\n"


def csv_line(cells: Iterable[object]) -> str:
    """A row of CSV whose texts others wrote."""
    return line_of(printable(cell) if isinstance(cell, str) else cell for cell in cells)


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
