"""Forms that a browser sends: where they came from, how large they may be, what is in them.

A form must hold its session's token, which no other site can read, and must not say that another
site sent it. Fields and files are bounded in number and, before they are read, in bytes.

Sources: OWASP, "Cross-Site Request Forgery Prevention"; W3C Fetch Metadata (`Sec-Fetch-Site`).
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError
from sqlalchemy import Connection
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect

from craft_server.api.idempotency import Call
from craft_server.api.metering import remember
from craft_server.api.middleware import FILE_BYTES
from craft_server.api.services import WithServices
from craft_server.console.access import WithSession
from craft_server.console.rendering import WHOLE_NUMBER, redirect
from craft_server.console.sessions import Session
from craft_server.ledger import calls
from craft_server.ledger.calls import Attempt
from craft_server.problems import ProblemError, field_errors, invalid_field, invalid_request
from craft_shared.problems import MALFORMED_BODY, ProblemType

TOKEN_FIELD = "form_token"  # noqa: S105 - a field's name
ONCE_FIELD = "once"
# Where a request's state holds what shows its form again, with what is wrong in words and a status.
FORM_PAGE = "form_page"
FormPage = Callable[[str, int], Response]
_WHOLE_NUMBER = re.compile(WHOLE_NUMBER, re.ASCII)
_MOST_DIGITS = 18  # what a database holds
_ONCE = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_MOST_FIELDS = 40
_MOST_FIELD_BYTES = 16 * 1024

# Never sent as a document, only shown as a page.
FOREIGN_FORM = ProblemType(
    "foreign-form",
    403,
    "This form cannot be accepted",
    "Open the page again and fill in its form once more.",
)

M = TypeVar("M", bound=BaseModel)


class DoneBefore(Exception):  # noqa: N818 - reads as what it is where it is caught
    """This very form was sent before; nothing was done again."""


@asynccontextmanager
async def read_form(request: Request) -> AsyncIterator[FormData]:
    """The form that the browser sends, if it did not come from another site.

    Raises:
        ProblemError: another site sent it, it is too large, or the browser went away.
    """
    _check_origin(request)
    try:
        async with request.form(
            max_files=1, max_fields=_MOST_FIELDS, max_part_size=_MOST_FIELD_BYTES
        ) as form:
            yield form
    except ClientDisconnect as error:
        raise ProblemError(MALFORMED_BODY, "the form ended before it was complete") from error


def _form(*, file: bool) -> Callable[..., AsyncIterator[FormData]]:
    """A dependency on a form of the session's own pages, with room for an image or without."""

    async def read(
        request: Request, session: WithSession, services: WithServices
    ) -> AsyncIterator[FormData]:
        if file:
            setattr(request.state, FILE_BYTES, services.settings.limits.image_bytes)
        async with read_form(request) as form:
            shown = text_of(form, TOKEN_FIELD)
            if not hmac.compare_digest(shown.encode(), session.form_token.encode()):
                raise ProblemError(FOREIGN_FORM, "it does not belong to this session")
            yield form

    return read


WithForm = Annotated[FormData, Depends(_form(file=False))]
WithFileForm = Annotated[FormData, Depends(_form(file=True))]


def text_of(form: FormData, name: str) -> str:
    """A field's text without spaces around it; empty where there is none."""
    value = form.get(name)
    return value.strip() if isinstance(value, str) else ""


async def file_of(form: FormData, name: str) -> bytes:
    """A field's file; empty where none was chosen."""
    value = form.get(name)
    return await value.read() if isinstance(value, UploadFile) else b""


def amount_of(form: FormData, name: str) -> int:
    """A field's whole number.

    Raises:
        ProblemError: it is none.
    """
    text = text_of(form, name)
    digits = text.replace(",", "")
    if _WHOLE_NUMBER.fullmatch(text) is None or len(digits) > _MOST_DIGITS:
        raise invalid_field(
            name, "this is not a whole number", "Write digits, such as 1000000 or 1,000,000."
        )
    return int(digits)


def message_of(model: type[M], fields: Mapping[str, object]) -> M:
    """A wire message made of fields; those that hold no text are left out.

    Raises:
        ProblemError: `invalid-request` with all that is wrong.
    """
    try:
        return model.model_validate({name: value for name, value in fields.items() if value != ""})
    except ValidationError as error:
        raise invalid_request(field_errors(error.errors(), model)) from error


def new_once() -> str:
    """What a form holds so that it is done once, however often it is sent."""
    return secrets.token_urlsafe(16)


def do_once(
    connection: Connection,
    request: Request,
    session: Session,
    form: FormData,
    action: Callable[[Connection], None],
) -> None:
    """Runs `action` unless this very form was sent before, which the ledger remembers.

    Raises:
        DoneBefore: it was; the action was not run.
        ProblemError: the form does not say which it is.
    """
    once = text_of(form, ONCE_FIELD)
    if _ONCE.fullmatch(once) is None:
        raise ProblemError(FOREIGN_FORM, "it lacks what tells it from others")
    key = f"console-{once}"
    attempt = Attempt(key, "console", repeatable=False)
    if calls.look_up(connection, session.caller.key_id, key, attempt.fingerprint) is not None:
        raise DoneBefore
    action(connection)
    call = Call(request, request.app.state.services, session.caller, attempt)
    remember(connection, call, redirect("/"))


def _check_origin(request: Request) -> None:
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise ProblemError(FOREIGN_FORM, "another site sent it")
    origin = request.headers.get("origin")
    # Only the host: behind a proxy that ends TLS, the server need not know the scheme.
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host", ""):
        raise ProblemError(FOREIGN_FORM, "another site sent it")
