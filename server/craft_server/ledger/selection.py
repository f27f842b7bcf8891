"""Which lines of the ledger are meant: whose, of what, and from when."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from craft_server.ledger.keys import find_key, find_team
from craft_server.ledger.tables import API_KEYS, CHARGES


@dataclass(frozen=True)
class Selection:
    """Lines of one key, of a team's keys or of all, reserved from `since` until `until`.

    A key's lines are its team's, whichever team it was in when they were charged. An adapter is
    OWNER/NAME, which is all its versions, or OWNER/NAME@VERSION.
    """

    prefix: str | None = None
    team: str | None = None
    model: str | None = None
    adapter: str | None = None
    since: int | None = None
    until: int | None = None


def of_lines(connection: sa.Connection, selection: Selection) -> list[sa.ColumnElement[bool]]:
    """What the selection says of a line; what it says of time and key, an index finds.

    Raises:
        UnknownKey: no key has the prefix.
        UnknownTeam: no team has the name.
    """
    wanted = [CHARGES.c.at >= (selection.since or 0)]
    if selection.until is not None:
        wanted.append(CHARGES.c.at < selection.until)
    if selection.prefix is not None:
        wanted.append(CHARGES.c.key_id == find_key(connection, selection.prefix).key_id)
    if selection.team is not None:
        team_id = find_team(connection, selection.team)
        of_key = sa.select(API_KEYS.c.team_id).where(API_KEYS.c.id == CHARGES.c.key_id)
        wanted.append(of_key.correlate(CHARGES).scalar_subquery() == team_id)
    if selection.model is not None:
        wanted.append(CHARGES.c.model == selection.model)
    if (adapter := selection.adapter) is not None:
        beginning = sa.func.substr(CHARGES.c.adapter, 1, len(adapter) + 1)
        wanted.append(sa.or_(CHARGES.c.adapter == adapter, beginning == f"{adapter}@"))
    return wanted
