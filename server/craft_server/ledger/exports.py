"""The ledger written out: every line that charges something, as CSV or JSON Lines.

Lines come one by one from the database, so that a ledger of any length needs the same memory. It
does not know where they go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from craft_server.clock import rfc3339
from craft_server.ledger.keys import find_key, list_keys
from craft_server.ledger.tables import CHARGES
from craft_shared.printing import printable
from craft_shared.text_files import line_of
from craft_shared.units import MEASURES
from craft_shared.wire import UsageLine

Format = Literal["csv", "jsonl"]

_ROWS_AT_ONCE = 500


@dataclass(frozen=True)
class Selection:
    """Which lines: of one key or of all, reserved at `since` or later and before `until`."""

    prefix: str | None = None
    since: int | None = None
    until: int | None = None


def lines(
    connection: sa.Connection, selection: Selection, *, after: int = 0, limit: int | None = None
) -> Iterator[UsageLine]:
    """The lines with an id above `after`, at most `limit`, in the order of ids.

    Raises:
        UnknownKey: no key has the prefix.
    """
    keys = {entry.key_id: entry for entry in list_keys(connection)}
    query = (
        sa.select(CHARGES)
        .where(CHARGES.c.state != "refunded", CHARGES.c.id > after)
        .order_by(CHARGES.c.id)
        .limit(limit)
    )
    if selection.prefix is not None:
        query = query.where(CHARGES.c.key_id == find_key(connection, selection.prefix).key_id)
    if selection.since is not None:
        query = query.where(CHARGES.c.at >= selection.since)
    if selection.until is not None:
        query = query.where(CHARGES.c.at < selection.until)
    for row in connection.execute(query, execution_options={"yield_per": _ROWS_AT_ONCE}):
        # A key that was made since its list was read.
        key = keys.get(row.key_id) or next(
            entry for entry in list_keys(connection) if entry.key_id == row.key_id
        )
        yield UsageLine(
            id=row.id,
            line=row.line,
            at=rfc3339(row.at),
            closed_at=None if row.closed_at is None else rfc3339(row.closed_at),
            key_id=row.key_id,
            key=key.prefixes[0],
            owner=key.owner,
            team=key.team,
            call=row.call,
            run=row.run,
            model=row.model,
            revision=row.revision,
            state=row.state,
            **{measure: row._mapping[measure] for measure in MEASURES},
        )


def header(form: Format) -> str:
    """What stands before the first line."""
    return line_of(UsageLine.model_fields) if form == "csv" else ""


def text(line: UsageLine, form: Format) -> str:
    """One line with its line break."""
    if form == "csv":
        cells = line.model_dump().values()
        return line_of(printable(cell) if isinstance(cell, str) else cell for cell in cells)
    return line.model_dump_json() + "\n"
