"""The cookie that holds a session's token.

Scripts cannot read it, other sites' pages cannot send it, and over TLS neither can a page that was
not encrypted set or read it (`__Host-`). It does not know what the token is for.

Source: RFC 6265bis, sections 4.1.3.2 (`__Host-`) and 5.6.7 (`SameSite`).
"""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import Response

_NAME = "craft_session"


def read_token(request: Request) -> str | None:
    """The token that the browser shows."""
    return request.cookies.get(_name(request))


def set_token(request: Request, response: Response, token: str, *, seconds: int) -> None:
    """Hands the browser a token to keep for so long."""
    response.set_cookie(
        _name(request),
        token,
        max_age=seconds,
        path="/",
        secure=_is_encrypted(request),
        httponly=True,
        samesite="strict",
    )


def forget_token(request: Request, response: Response) -> None:
    """Makes the browser forget its token."""
    response.delete_cookie(
        _name(request),
        path="/",
        secure=_is_encrypted(request),
        httponly=True,
        samesite="strict",
    )


def _name(request: Request) -> str:
    return f"__Host-{_NAME}" if _is_encrypted(request) else _NAME


def _is_encrypted(request: Request) -> bool:
    return request.url.scheme == "https"
