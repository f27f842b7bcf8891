"""What all pages share: templates, whose values are escaped; files; the menu; numbers and times.

Each address in a template begins with `{{ root }}`, the path below which a proxy offers the server.

Styles, scripts and the icon are a fixed list of files, named by their content: no part of an
address is ever used as a path, and browsers may keep them for good. Those of Swagger
UI, which shows the API's description, are an installed package's: nothing is loaded from another
site.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined

from craft_server.api.services import Services
from craft_server.console import sessions
from craft_server.console.sessions import Session
from craft_server.problems import ProblemError
from craft_server.root_path import root_path
from craft_shared.printing import printable
from craft_shared.problems import NOT_FOUND
from craft_shared.units import UNITS, Units

router = APIRouter(include_in_schema=False)

_LARGEST_IN_FIGURES = 1e9
# Digits, or as `number` writes them: 1,5 is neither 15 nor one and a half.
WHOLE_NUMBER = r"[0-9]+|[0-9]{1,3}(,[0-9]{3})+"
_ONE: dict[str, str] = {**{unit: unit.removesuffix("s") for unit in UNITS}, "queries": "query"}
# `craft` ends a run's name with 32 of them.
_UNIQUE = re.compile(r"-([0-9a-f]{6})[0-9a-f]{26}$", re.ASCII)
_MEDIA_TYPES = {
    "console.css": "text/css",
    "console.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "docs.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
}


@dataclass(frozen=True)
class MenuEntry:
    """A link of the menu; `scope` is what a key needs to see it, if anything."""

    title: str
    address: str
    scope: str | None = None


_MENU = (
    MenuEntry("Overview", "/"),
    MenuEntry("Usage", "/console/usage"),
    MenuEntry("Runs", "/console/runs", "predict"),
    MenuEntry("Adapters", "/console/adapters", "predict"),
    MenuEntry("Try", "/console/try", "predict"),
    MenuEntry("Keys", "/console/admin/keys", "admin"),
)


@dataclass(frozen=True)
class Asset:
    """A file as it is served; `address` holds a part of its content's SHA-256."""

    content: bytes
    media_type: str
    address: str


def _load(name: str, media_type: str) -> Asset:
    package = "fastapi_offline" if name.startswith("swagger-ui") else "craft_server.console"
    content = (files(package) / "static" / name).read_bytes()
    version = hashlib.sha256(content).hexdigest()[:16]
    return Asset(content, media_type, f"/console/static/{name}?v={version}")


ASSETS = {name: _load(name, media_type) for name, media_type in _MEDIA_TYPES.items()}


@router.get("/console/static/{name}")
async def get_asset(name: str) -> Response:
    """One of the files."""
    asset = ASSETS.get(name)
    if asset is None:
        raise ProblemError(NOT_FOUND, "there is no such file")
    return Response(
        asset.content,
        media_type=asset.media_type,
        headers={"Cache-Control": "public, max-age=31536000, immutable"},
    )


async def page(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """A page of who is signed in; it shows, once, what the last form did."""
    services: Services = request.app.state.services
    session = _session_of(request)
    if session is not None and session.notice:
        await services.database.write(sessions.set_notice, session, "")
    return render(request, template, status=status, **values)


def render(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """A page as it is: nothing is read or written for it."""
    session = _session_of(request)
    scopes = frozenset[str]() if session is None else session.caller.scopes
    entries = [] if session is None else _MENU
    text = _ENVIRONMENT.get_template(template).render(
        session=session,
        menu=[entry for entry in entries if entry.scope in (None, *scopes)],
        here=request.url.path,
        root=root_path(request),
        **values,
    )
    return HTMLResponse(text, status_code=status)


def redirect(address: str) -> Response:
    """Sends the browser to another page of the console, which it then gets.

    The address is without the root path, which `ConsoleMiddleware` adds.
    """
    return RedirectResponse(address, status_code=303)


def number(value: float | int) -> str:
    """12345 as 12,345; a share keeps two digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def money(micros: int) -> str:
    """Millionths of the provider's currency as an amount of it, exact, of two digits or more."""
    whole, part = f"{Decimal(micros).scaleb(-6):,.6f}".split(".")
    return f"{whole}.{part[:2]}{part[2:].rstrip('0')}"


def measure(value: int, unit: str) -> str:
    """An amount of a measure in figures."""
    return money(value) if unit == "cost_micros" else number(value)


def counted(units: Units) -> str:
    """What was or will be charged, in words: `1 query, 40 predictions, 1 request`."""
    parts = [
        f"{number(amount)} {unit if amount != 1 else _ONE[unit]}"
        for unit, amount in units
        if amount
    ]
    return ", ".join(parts) or "nothing"


def unit_name(unit: str) -> str:
    """What a measure is called on a page."""
    return "cost" if unit == "cost_micros" else unit


def short(run: str) -> str:
    """A run's name with less of the digits that make it like no other."""
    return _UNIQUE.sub(r"-\1…", run)


def percent(value: float | None) -> str:
    """An accuracy, or that there is none."""
    return "–" if value is None else f"{value:.1f} %"  # noqa: RUF001 - a dash in a cell


def loss(value: float | None) -> str:
    """A loss, or that there is none; by its power of ten where figures would fill the page."""
    if value is None:
        return "–"  # noqa: RUF001 - a dash in a cell
    return f"{value:.4f}" if abs(value) < _LARGEST_IN_FIGURES else f"{value:.4g}"


def moment(text: str | None) -> str:
    """An RFC 3339 time in words, to the minute."""
    if text is None:
        return "never"
    at = datetime.fromisoformat(text).astimezone(UTC)
    return f"{at.day} {at:%b %Y, %H:%M} UTC"


def calendar(text: str) -> str:
    """A day, a month or a year in words: of 2026-11-30, 2026-11 or 2026."""
    if len(text) == len("2026"):
        return text
    if len(text) == len("2026-11"):
        return f"{date.fromisoformat(f'{text}-01'):%B %Y}"
    day = date.fromisoformat(text)
    return f"{day.day} {day:%b}"


def _session_of(request: Request) -> Session | None:
    session: Session | None = getattr(request.state, "console_session", None)
    return session


def _seen(value: Any) -> Any:
    """A value as a page holds it: of names that were stored long ago, nothing turns the line."""
    return printable(value) if type(value) is str else value


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("craft_server.console", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_seen,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(
        assets={name: asset.address for name, asset in ASSETS.items()},
        version=version("craftbox"),
        whole_number=WHOLE_NUMBER,
    )
    filters = (
        *(number, counted, money, measure, unit_name),
        *(percent, loss, short, moment, calendar),
    )
    made.filters.update({function.__name__: function for function in filters})
    return made


_ENVIRONMENT = _environment()
