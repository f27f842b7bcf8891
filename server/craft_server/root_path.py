"""The path below which a proxy offers the server, such as `/craft`, and all its addresses are.

The settings name it, or a proxy that is trusted does, in `X-Forwarded-Prefix`. It is taken off an
address before anything looks at that, if the proxy has not done so; only what is sent to browsers
and clients has it. What could be anything but a path on this host is not believed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

# What addresses of the server's own begin with: one of them could be taken for the other.
OWN = ("console", "docs", "livez", "metrics", "openapi.json", "readyz", "v1")

_STATE = "root_path"
_HEADER = b"x-forwarded-prefix"
_LONGEST = 200
_PATH = re.compile(r"(/(?!\.{1,2}(/|\Z))[A-Za-z0-9._~-]+)*", re.ASCII)


def checked(text: str) -> str:
    """A root path without a slash at its end; empty for that of the host.

    Raises:
        ValueError: it is none.
    """
    path = text.removesuffix("/")
    if len(path) > _LONGEST or _PATH.fullmatch(path) is None:
        raise ValueError(
            "write a path such as /craft, of letters, digits, '.', '_', '~' and '-' between slashes"
        )
    if own := set(path.split("/")) & {*OWN}:
        raise ValueError(f"'{min(own)}' is in the server's own addresses; choose another word")
    return path


RootPath = Annotated[str, AfterValidator(checked)]


def root_path(request: Request) -> str:
    """What the address of a call began with before it came here."""
    path: str = getattr(request.state, _STATE, "")
    return path


class RootPathMiddleware:
    """Takes the root path off addresses, and keeps it for what is answered.

    A path that was `given` counts; without one, what a peer names whom one `trusts`. So it has to
    be around what replaces a peer's address by that of the client behind it.
    """

    def __init__(
        self, app: ASGIApp, given: str, trusts: Callable[[str], bool] = lambda _: False
    ) -> None:
        self._app = app
        self._given = given
        self._trusts = trusts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "http" and (root := self._given or self._named(scope)):
            scope.setdefault("state", {})[_STATE] = root
            if f"{scope['path']}/".startswith(f"{root}/"):
                scope["path"] = scope["path"][len(root) :] or "/"
        await self._app(scope, receive, send)

    def _named(self, scope: Scope) -> str:
        values = [value for name, value in scope["headers"] if name == _HEADER]
        if len(values) != 1 or not (scope["client"] and self._trusts(scope["client"][0])):
            return ""
        try:
            return checked(values[0].decode("latin-1"))
        except ValueError:
            return ""
