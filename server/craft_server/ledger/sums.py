"""What lines come to: by team, owner, key, end user, model, adapter, call, month or day (UTC).

They are those that are settled: a call that still runs has charged nothing yet. Each counts on the
day on which it was reserved. The lines of a period are found by an index, and no others are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from craft_server.clock import DAY_MS, rfc3339
from craft_server.ledger.account import SUMS
from craft_server.ledger.keys import newest_prefix
from craft_server.ledger.selection import Selection, of_lines
from craft_server.ledger.tables import API_KEYS, CHARGES, TEAMS
from craft_shared.units import MEASURES, Measure

# What sums may be of.
BY = ("team", "owner", "key", "user", "model", "adapter", "call", "month", "day")


@dataclass(frozen=True)
class Sum:
    """What all lines come to that have these things in common; a text is empty where none is."""

    of: Mapping[str, str]
    amounts: Mapping[Measure, int]


# Written out, because PostgreSQL takes two parameters for two different expressions.
_DAY = (CHARGES.c.at // sa.literal_column(str(DAY_MS))).label("day")
_KEY = CHARGES.c.key_id
# Of each thing what lines have in common that have it in common, and how it is written.
_THINGS: Mapping[str, tuple[sa.ColumnElement[Any], Callable[[Any], str]]] = {
    "team": (_KEY, lambda row: row.team or ""),  # the key's
    "owner": (_KEY, lambda row: row.owner),
    "key": (_KEY, lambda row: row.prefix),  # the newest
    "name": (_KEY, lambda row: row.name),
    "user": (CHARGES.c.end_user, lambda row: row.end_user or ""),
    "model": (CHARGES.c.model, lambda row: row.model),
    # Whatever the version.
    "adapter": (CHARGES.c.adapter, lambda row: (row.adapter or "").rpartition("@")[0]),
    "call": (CHARGES.c.call, lambda row: row.call),
    "month": (_DAY, lambda row: rfc3339(row.day * DAY_MS)[:7]),
    "day": (_DAY, lambda row: rfc3339(row.day * DAY_MS)[:10]),
}


def charged(connection: sa.Connection, selection: Selection, by: Collection[str]) -> list[Sum]:
    """The sums of a selection by these things, or the `name` of a key; some may be in parts.

    Raises:
        UnknownKey: no key has the prefix.
        UnknownTeam: no team has the name.
    """
    alike = tuple(dict.fromkeys(_THINGS[thing][0] for thing in by))
    sums = (
        sa.select(*alike, *SUMS)
        .where(CHARGES.c.state == "settled", *of_lines(connection, selection))
        .group_by(*alike)
        .subquery("sums")
    )
    query = sa.select(sums)
    if _KEY in alike:
        query = (
            query.add_columns(
                API_KEYS.c.owner,
                API_KEYS.c.name,
                TEAMS.c.name.label("team"),
                newest_prefix(sums.c.key_id).label("prefix"),
            )
            .join(API_KEYS, API_KEYS.c.id == sums.c.key_id)
            .outerjoin(TEAMS, TEAMS.c.id == API_KEYS.c.team_id)
        )
    return [
        Sum(
            of={thing: _THINGS[thing][1](row) for thing in by},
            amounts={measure: row._mapping[measure] for measure in MEASURES},
        )
        for row in connection.execute(query)
    ]


def summed(sums: Iterable[Sum], by: Sequence[str]) -> list[dict[str, Any]]:
    """Of each combination of what they are summed `by`, in order: each unit, and the cost."""
    found: dict[tuple[str, ...], Counter[str]] = {}
    for one in sums:
        alike = tuple(one.of[thing] for thing in by)
        found.setdefault(alike, Counter()).update(one.amounts)
    return [
        {**dict(zip(by, alike, strict=True)), **{measure: total[measure] for measure in MEASURES}}
        for alike, total in sorted(found.items())
    ]
