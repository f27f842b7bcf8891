"""What was charged in a month or a year: sums, every charge, monthly statements; each as CSV, too.

A key sees its own; with the scope `admin` it sees all keys' and may choose a team or a key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from sqlalchemy import Connection

from craft_server.api.downloads import download
from craft_server.api.services import WithServices
from craft_server.clock import DAY_MS, Period, now_ms, rfc3339
from craft_server.console.access import WithSession
from craft_server.console.rendering import page
from craft_server.console.spending import shown_measures, spent_over, table
from craft_server.ledger import account, exports, monthly, sums
from craft_server.ledger.exports import COLUMNS, Place, csv_line
from craft_server.ledger.selection import Selection
from craft_server.problems import ProblemError, invalid_field
from craft_shared.problems import NOT_FOUND
from craft_shared.units import MEASURES, UNITS

router = APIRouter(prefix="/console/usage", include_in_schema=False)

_CHARGES_A_PAGE = 50
_ROWS = 100
_PLACE = re.compile(r"([0-9]{1,18})-([0-9]{1,18})", re.ASCII)
# Numbers that count the lines and the keys of all are nobody's to see.
_COLUMNS = [column for column in COLUMNS if column not in ("id", "key_id")]
_CHOICES = ("team", "key", "model", "adapter")
_OF_KEYS = ("owner", "name", "team")

# No database takes a NUL.
_Text = Annotated[str, Query(max_length=300, pattern=r"^[^\x00]*$")]


@dataclass(frozen=True)
class Asked:
    """What a page is of; what is empty was not chosen."""

    by: int  # the id of the key that asks
    period: Period
    before: str | None  # the period of the same kind before it; None where nothing was charged yet
    after: str | None  # the one after it; None where it has not begun
    own: str  # the key that alone is seen; empty where all are
    team: str
    key: str
    model: str
    adapter: str

    @property
    def choices(self) -> dict[str, str]:
        """What was chosen beside the period."""
        return {name: value for name in _CHOICES if (value := getattr(self, name))}

    def query(self, **changes: str) -> str:
        """Of the address of a page like this one, but for the changes."""
        asked = {"period": self.period.name, **self.choices, **changes}
        return urlencode({name: value for name, value in asked.items() if value})

    def selection(self) -> Selection:
        """The lines that it is of."""
        return Selection(
            prefix=self.own or self.key or None,
            team=self.team or None,
            model=self.model or None,
            adapter=self.adapter or None,
            since=self.period.since,
            until=self.period.until,
        )


async def _asked(
    services: WithServices,
    session: WithSession,
    period: _Text = "",
    team: _Text = "",
    key: _Text = "",
    model: _Text = "",
    adapter: _Text = "",
) -> Asked:
    at = now_ms()
    try:
        of = Period.named(period.strip()) if period else Period.month_at(at)
    except ValueError as error:
        raise invalid_field("period", str(error), "Write a month such as 2026-11.") from error
    caller = session.caller
    own = "" if "admin" in caller.scopes else caller.prefix
    first = await services.database.read(account.first_at, caller.key_id if own else None)
    before, after = of.neighbours
    return Asked(
        by=caller.key_id,
        period=of,
        before=None if first is None or first >= of.since else before,
        after=None if of.until > at else after,
        own=own,
        team="" if own else team.strip(),
        key="" if own else key.strip(),
        model=model.strip(),
        adapter=adapter.strip(),
    )


WithAsked = Annotated[Asked, Depends(_asked)]


@router.get("")
async def show(request: Request, services: WithServices, asked: WithAsked) -> Response:
    """Sums of the period, over time and by what they are of."""
    values = await services.database.read_long(asked.by, _read, asked)
    return await page(request, "usage.html.jinja", asked=asked, **values)


@router.get("/sums.csv")
async def get_sums(
    services: WithServices, asked: WithAsked, by: Annotated[list[str], Query()]
) -> Response:
    """The sums as CSV, by anything that `craft-server usage sum` knows."""
    of = list(dict.fromkeys(by))
    if unknown := [name for name in of if name not in sums.BY]:
        raise invalid_field(
            "by", f"nothing is summed by {unknown[0]!r}", f"Write {', '.join(sums.BY)}."
        )
    text = await services.database.read_long(asked.by, _sums_as_csv, asked.selection(), of)
    return _file(text, f"usage-{asked.period.name}-by-{'-'.join(of)}")


def _sums_as_csv(connection: Connection, selection: Selection, by: list[str]) -> str:
    """Written where it is read: of many end users it takes seconds, in which others are served."""
    found = sums.charged(connection, selection, by)
    rows = [[*by, *MEASURES], *(row.values() for row in sums.summed(found, by))]
    return "".join(map(csv_line, rows))


@router.get("/charges")
async def show_charges(
    request: Request, services: WithServices, asked: WithAsked, after: _Text = ""
) -> Response:
    """Every charge, the newest first, some at a time."""
    found = await services.database.read_long(
        asked.by,
        exports.page,
        asked.selection(),
        after=_place(after) if after else None,
        limit=_CHARGES_A_PAGE,
        newest_first=True,
    )
    place = found.next_after
    return await page(
        request,
        "charges.html.jinja",
        asked=asked,
        charges=found.lines,
        measures=shown_measures(any(line.cost_micros for line in found.lines)),
        after=after,
        next_after=None if place is None else f"{place.at}-{place.number}",
    )


@router.get("/charges.csv")
async def get_charges(services: WithServices, asked: WithAsked) -> Response:
    """Every charge as CSV, the oldest first."""
    response = await download(services, asked.by, asked.selection(), "csv", _COLUMNS)
    return _named(response, f"charges-{asked.period.name}")


@router.get("/statement")
async def show_statement(request: Request, services: WithServices, asked: WithAsked) -> Response:
    """The statement of a month, of the team or the key, or of all keys."""
    found = await services.database.read_long(asked.by, _statement, asked)
    return await page(request, "statement.html.jinja", asked=asked, found=found, units=UNITS)


@router.get("/statement.csv")
async def get_statement(services: WithServices, asked: WithAsked) -> Response:
    """The statement as CSV."""
    found = await services.database.read_long(asked.by, _statement, asked)
    text = "".join(map(csv_line, monthly.rows(found)))
    return _file(text, f"statement-{asked.period.name}")


def _read(connection: Connection, asked: Asked) -> dict[str, Any]:
    time = "day" if asked.period.is_month else "month"
    chosen = found = sums.charged(connection, asked.selection(), (*_CHOICES, *_OF_KEYS, time))
    if asked.choices:
        # Whatever was chosen, so that something else can be.
        of_all = replace(asked, team="", key="", model="", adapter="")
        found = sums.charged(connection, of_all.selection(), _CHOICES)
    times = _times(asked.period)
    spent = spent_over(chosen, time, times)
    tables = [table(chosen, name, most=_ROWS) for name in ("model", "adapter")]
    if not asked.own:
        of_keys = table(chosen, "key", _OF_KEYS, most=_ROWS)
        tables = [table(chosen, "team", most=_ROWS), of_keys, *tables]
    return {
        "spent": spent,
        "times": times,
        "tables": [*tables, table(chosen, time, most=_ROWS)],
        "measures": [one.measure for one in spent],
        "options": {
            name: sorted({one.of[name] for one in found} - {""})
            for name in (_CHOICES[2:] if asked.own else _CHOICES)
        },
    }


def _times(period: Period) -> list[str]:
    """The days of a month, the months of a year."""
    if not period.is_month:
        return [f"{period.name}-{month:02}" for month in range(1, 13)]
    return [rfc3339(at)[:10] for at in range(period.since, period.until, DAY_MS)]


def _statement(connection: Connection, asked: Asked) -> monthly.Statement:
    if not asked.period.is_month:
        raise ProblemError(NOT_FOUND, "statements are of months")
    prefix, team = asked.own or asked.key or None, asked.team or None
    return monthly.statement(connection, asked.period, team=team, prefix=prefix)


def _place(text: str) -> Place:
    found = _PLACE.fullmatch(text)
    if found is None:
        raise invalid_field("after", "it is no place in a list", "Leave it out.")
    return Place(int(found[1]), int(found[2]))


def _file(text: str, name: str) -> Response:
    return _named(Response(text, media_type="text/csv"), name)


def _named(response: Response, name: str) -> Response:
    response.headers["Content-Disposition"] = f'attachment; filename="{name}.csv"'
    return response
