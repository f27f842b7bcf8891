"""A call of API v1 as a request, and the headers that all calls carry."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from craft_client.exceptions import CraftError, problem_error
from craft_shared import codec
from craft_shared.problems import INVALID_REQUEST, Problem, field_errors

JSON_TYPE = "application/json"
IDEMPOTENCY_HEADER = "Idempotency-Key"
RUN_HEADER = "Craft-Run"
REQUEST_ID_HEADER = "X-Request-Id"

# The longest answers in JSON but for lists of adapters: a page of the ledger, a receipt.
MOST_JSON_BYTES = 8 * 2**20
MOST_LIST_BYTES = 32 * 2**20  # every adapter of an owner's
MOST_KEYS_BYTES = 2**18

_KEY = re.compile(r"[\x21-\x7e]{1,200}")
_RUN = re.compile(r"[A-Za-z0-9_.][\x20-\x7e]{0,254}")

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Call:
    """A call."""

    method: str
    path: str  # below the server's address
    query: Mapping[str, str | list[str]] | None = None
    json: bytes | None = None  # the body, where it is JSON
    tensors: bytes | None = None  # the body, where it is safetensors
    accept: str | None = None  # the answer's type; the body's when None
    idempotency_key: str | None = None  # of a POST; a new one when None
    again: bool = True  # whether it may be sent again where that may help
    most_bytes: int = MOST_JSON_BYTES  # that its answer may come to, however it travels

    def request(self) -> dict[str, Any]:
        """Arguments of httpx's `build_request`; each time for a new request of a name of its own.

        Raises:
            CraftError: the idempotency key or a parameter cannot be sent.
        """
        content_type = JSON_TYPE if self.tensors is None else codec.MEDIA_TYPE
        headers = {"Accept": self.accept or content_type, REQUEST_ID_HEADER: uuid.uuid4().hex}
        if self.method == "POST":
            key = uuid.uuid4().hex if self.idempotency_key is None else self.idempotency_key
            headers[IDEMPOTENCY_HEADER] = _checked_header("idempotency_key", key, _KEY)
        for name, value in (self.query or {}).items():
            for text in [value] if isinstance(value, str) else value:
                _check_text(name, text)
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


def message(model: type[M], /, **fields: Any) -> M:
    """A wire message of what somebody has asked for: the one place that makes them.

    Raises:
        InvalidRequest: the server would refuse it; nothing was sent.
        CraftError: a field is no text that can be sent.
    """
    for name, value in fields.items():
        if isinstance(value, str):
            _check_text(name, value)
    try:
        return model(**fields)
    except ValidationError as error:
        detail = "nothing was sent"
        raise problem_error(Problem.of(INVALID_REQUEST, detail, field_errors(error))) from error


def path(*parts: str) -> str:
    """An address below /v1 in which a name cannot be read as anything but a name.

    Raises:
        CraftError: a name is no text that can be sent.
    """
    for part in parts:
        _check_text("name", part)
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


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CraftError(
            f"{name}: {text!r} cannot be sent to a server, because it is not UTF-8.",
            remedy="Rename it.",
        ) from error


def _checked_header(name: str, value: str, form: re.Pattern[str]) -> str:
    if form.fullmatch(value) is None:
        raise CraftError(
            f"{name}: {value!r} cannot be sent to a server.",
            remedy="Give a short name of ASCII characters that begins with a letter or digit.",
        )
    return value
