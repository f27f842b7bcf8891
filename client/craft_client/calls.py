"""What is sent: a call of API v1, before anything of it has gone out.

It knows how a call becomes a request, and the headers that all calls carry; it does not know what
sends the request, nor what is answered.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote

import httpx

from craft_client.exceptions import CraftError
from craft_shared import codec

JSON_TYPE = "application/json"
IDEMPOTENCY_HEADER = "Idempotency-Key"
RUN_HEADER = "Craft-Run"
REQUEST_ID_HEADER = "X-Request-Id"

_KEY = re.compile(r"[\x21-\x7e]{1,200}")
_RUN = re.compile(r"[A-Za-z0-9_.][\x20-\x7e]{0,254}")

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """A call.

    Attributes:
        method: of HTTP.
        path: below the server's address.
        query: the parameters.
        json: the body, where it is JSON.
        tensors: the body, where it is safetensors.
        accept: the answer's type; the body's when None.
        idempotency_key: of a POST; a new one when None.
        again: whether it may be sent again where that may help.
    """

    method: str
    path: str
    query: Mapping[str, str | list[str]] | None = None
    json: bytes | None = None
    tensors: bytes | None = None
    accept: str | None = None
    idempotency_key: str | None = None
    again: bool = True

    def request(self) -> dict[str, Any]:
        """Arguments of httpx's `build_request`; each time for a new request of a name of its own.

        Raises:
            CraftError: the idempotency key cannot be sent.
        """
        content_type = JSON_TYPE if self.tensors is None else codec.MEDIA_TYPE
        headers = {"Accept": self.accept or content_type, REQUEST_ID_HEADER: uuid.uuid4().hex}
        if self.method == "POST":
            key = uuid.uuid4().hex if self.idempotency_key is None else self.idempotency_key
            headers[IDEMPOTENCY_HEADER] = _checked_header("idempotency_key", key, _KEY)
        body = self.json if self.tensors is None else self.tensors
        if body is not None:
            headers["Content-Type"] = content_type
        return {
            "method": self.method,
            "url": self.path,
            "params": self.query,
            "content": body,
            "headers": headers,
        }


# What a client does: it yields calls, is sent the successful answer of each (or thrown the
# failure), and returns what all of them came to. Whoever sends the calls may do so as it likes.
Operation: TypeAlias = Generator[Call, httpx.Response, T]


def path(*parts: str) -> str:
    """An address below /v1 in which a name cannot be read as anything but a name."""
    return "/v1/" + "/".join(quote(part, safe="@") for part in parts)


def request_id(request: httpx.Request) -> str:
    """What the server's log calls the call, however often it is sent."""
    name: str = request.headers[REQUEST_ID_HEADER]
    return name


def checked_run(run: str) -> str:
    """A run's name, which is to be a header.

    Raises:
        CraftError: it cannot be one.
    """
    return _checked_header("run", run, _RUN)


def _checked_header(name: str, value: str, form: re.Pattern[str]) -> str:
    if form.fullmatch(value) is None:
        raise CraftError(
            f"{name}: {value!r} cannot be sent to a server.",
            remedy="Give a short name of ASCII characters that begins with a letter or digit.",
        )
    return value
