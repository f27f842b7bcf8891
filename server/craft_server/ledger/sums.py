"""What lines come to: by team, owner, key, end user, model, adapter, call, month or day (UTC).

They are those that are settled: a call that still runs has charged nothing yet. Each counts on the
day on which it was reserved. The lines of a period are found by an index, and no others are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from craft_server.clock import DAY_MS, rfc3339
from craft_server.ledger.account import SUMS
from craft_server.ledger.keys import newest_prefix
from craft_server.ledger.selection import Selection, of_keys, of_lines
from craft_server.ledger.tables import API_KEYS, CHARGES, TEAMS
from craft_shared.units import MEASURES, Measure

# What sums may be of.
BY = ("team", "owner", "key", "user", "model", "adapter", "call", "month", "day")


@dataclass(frozen=True)
class Sum:
    """What all lines come to that have these things in common; a text is empty where none is."""

    team: str  # name of the key's
    owner: str  # of the key
    key: str  # newest prefix
    name: str  # of the key
    user: str  # an end user of the key, where they are told apart
    model: str
    adapter: str  # OWNER/NAME, whatever the version
    call: str  # the kind
    day: str  # 2026-11-30
    amounts: Mapping[Measure, int]

    @property
    def month(self) -> str:
        """Such as 2026-11."""
        return self.day[:7]


# Written out, because PostgreSQL takes two parameters for two different expressions.
_DAY = (CHARGES.c.at // sa.literal_column(str(DAY_MS))).label("day")
_ALIKE = (CHARGES.c.key_id, CHARGES.c.model, CHARGES.c.adapter, CHARGES.c.call, _DAY)


def charged(
    connection: sa.Connection, selection: Selection, *, per_user: bool = False
) -> list[Sum]:
    """The sums of a selection, as fine as there are any; `per_user` tells end users apart, too.

    Raises:
        UnknownKey: no key has the prefix.
        UnknownTeam: no team has the name.
    """
    alike = (*_ALIKE, CHARGES.c.end_user) if per_user else _ALIKE
    sums = (
        sa.select(*alike, *SUMS)
        .where(CHARGES.c.state == "settled", *of_lines(connection, selection))
        .group_by(*alike)
        .subquery("sums")
    )
    query = (
        sa.select(
            sums,
            API_KEYS.c.owner,
            API_KEYS.c.name,
            TEAMS.c.name.label("team"),
            newest_prefix(sums.c.key_id).label("prefix"),
        )
        .join(API_KEYS, API_KEYS.c.id == sums.c.key_id)
        .outerjoin(TEAMS, TEAMS.c.id == API_KEYS.c.team_id)
        .where(*of_keys(connection, selection))
    )
    return [
        Sum(
            team=row.team or "",
            owner=row.owner,
            key=row.prefix,
            name=row.name,
            user=row._mapping.get("end_user") or "",
            model=row.model,
            adapter=(row.adapter or "").rpartition("@")[0],
            call=row.call,
            day=rfc3339(row.day * DAY_MS)[:10],
            amounts={measure: row._mapping[measure] for measure in MEASURES},
        )
        for row in connection.execute(query)
    ]


def summed(sums: Iterable[Sum], by: Sequence[str]) -> list[dict[str, Any]]:
    """Of each combination of what they are summed `by`, in order: each unit, and the cost."""
    found: dict[tuple[str, ...], Counter[str]] = {}
    for one in sums:
        alike = tuple(getattr(one, name) for name in by)
        found.setdefault(alike, Counter()).update(one.amounts)
    return [
        {**dict(zip(by, alike, strict=True)), **{measure: total[measure] for measure in MEASURES}}
        for alike, total in sorted(found.items())
    ]
