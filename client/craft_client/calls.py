"""A call of API v1: its request, and its answer within a bound, typed, or as a typed error."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from craft_client.exceptions import (
    BodyRefused,
    CraftError,
    GatewayFailed,
    ProtocolError,
    problem_error,
)
from craft_client.network import ACCEPTED_CODINGS, URL_VARIABLE, checked_header, without_credentials
from craft_shared import codec, problems
from craft_shared.problems import INVALID_REQUEST, Problem, field_errors, first_error
from craft_shared.strict_json import most_values

JSON_TYPE = "application/json"
IDEMPOTENCY_HEADER = "Idempotency-Key"
REQUEST_ID_HEADER = "X-Request-Id"

# The longest answers in JSON but for lists of adapters: a page of the ledger, a receipt.
MOST_JSON_BYTES = 8 * 2**20
MOST_LIST_BYTES = 32 * 2**20  # every adapter of an owner's
MOST_KEYS_BYTES = 2**18

_KEY = re.compile(r"[\x21-\x7e]{1,200}")

M = TypeVar("M", bound=BaseModel)

# What proxies answer in a server's place, and services that are overloaded (529) for themselves.
# 520 to 530 are Cloudflare's.
GATEWAY_STATUSES = frozenset({429, 500, 502, 503, 504, *range(520, 531)})
PROXY_AUTHENTICATION_REQUIRED = 407
# A value of JSON takes memory of many times the one byte that it may be sent as. Of an answer of
# the largest size one has at least so many bytes.
BYTES_A_VALUE = 64

# Of why there is no answer: a problem names each image of a call at most.
MOST_PROBLEM_BYTES = 4 * 2**20


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
        """Arguments of httpx's `build_request`, under a request id of its own.

        Raises:
            CraftError: the idempotency key or a parameter cannot be sent.
        """
        content_type = JSON_TYPE if self.tensors is None else codec.MEDIA_TYPE
        headers = {"Accept": self.accept or content_type, REQUEST_ID_HEADER: uuid.uuid4().hex}
        if self.method == "POST":
            key = uuid.uuid4().hex if self.idempotency_key is None else self.idempotency_key
            headers[IDEMPOTENCY_HEADER] = checked_header("idempotency_key", key, _KEY)
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
    """A wire message of what somebody has asked for.

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


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CraftError(
            f"{name}: {text!r} cannot be sent to a server, because it is not UTF-8.",
            remedy="Rename it.",
        ) from error


class GrowingAnswer:
    """An answer while it is read, decompressed, in pieces.

    Raises:
        ProtocolError: it comes to more than `most_bytes`, or is in an unknown coding.
    """

    def __init__(self, response: httpx.Response, most_bytes: int) -> None:
        self._streamed = response
        self._most = most_bytes if response.is_success else MOST_PROBLEM_BYTES
        self._content = bytearray()
        codings = response.headers.get_list("Content-Encoding", split_commas=True)
        names = [name for name in map(str.lower, codings) if name not in ("", "identity")]
        if len(names) > 1 or not set(names) <= set(ACCEPTED_CODINGS):
            raise ProtocolError(
                f"The answer of {response.url.host} is in the coding '{', '.join(names)}', which "
                "was not asked for.",
                remedy="Is there a proxy in between? Have it leave answers as they are.",
            )
        stated = response.headers.get("Content-Length", "")
        if stated.isdecimal() and len(stated) < 20 and int(stated) > self._most:
            raise self._too_large()
        self.compressed = bool(names)

    def add(self, piece: bytes) -> None:
        """Raises ProtocolError where the answer grows too large."""
        if len(self._content) + len(piece) > self._most:
            raise self._too_large()
        self._content += piece

    def whole(self) -> httpx.Response:
        """The answer as if it had not been compressed."""
        content = bytes(self._content)
        self._content = bytearray()
        headers = [
            (name, value)
            for name, value in self._streamed.headers.raw  # which need not be ASCII
            if name.lower() not in (b"content-encoding", b"content-length", b"transfer-encoding")
        ]
        return httpx.Response(
            self._streamed.status_code,
            headers=headers,
            content=content,
            request=self._streamed.request,
        )

    def _too_large(self) -> ProtocolError:
        request = self._streamed.request
        return ProtocolError(
            f"The answer {self._streamed.status_code} of {request.method} {request.url.path} comes "
            f"to more than {self._most:,} bytes, which is more than it may.",
            remedy="Is this the address of a craftbox server, and of the same version as the "
            "client?",
        )


def read_json(kind: type[M], response: httpx.Response, most_bytes: int = MOST_JSON_BYTES) -> M:
    """The document of a JSON answer.

    Raises:
        ProtocolError: it is not one.
    """
    check_content_type(response, JSON_TYPE)
    _check_values(response, most_bytes)
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as error:
        raise _unexpected(response, first_error(error)) from error


def _check_values(response: httpx.Response, most_bytes: int) -> None:
    """Raises ProtocolError where JSON has so many values that no answer has them."""
    most = most_bytes // BYTES_A_VALUE
    if most_values(response.content) > most:
        raise _unexpected(response, f"it has more than {most:,} values")


def read_tensors(kind: type[M], response: httpx.Response) -> tuple[M, codec.Tensors]:
    """The document and the tensors of an answer.

    Raises:
        ProtocolError: it is not one of tensors.
    """
    check_content_type(response, codec.MEDIA_TYPE)
    try:
        document, tensors = codec.decode(response.content)
        return kind.model_validate(document), tensors
    except ValidationError as error:
        raise _unexpected(response, first_error(error)) from error
    except codec.CodecError as error:
        raise _unexpected(response, str(error)) from error


def error_of(response: httpx.Response) -> CraftError:
    """The exception for an answer that is no success."""
    retry_after = _seconds(response.headers.get("Retry-After"))
    if _content_type(response) == problems.MEDIA_TYPE:
        try:
            _check_values(response, MOST_JSON_BYTES)
            problem = Problem.model_validate_json(response.content)
        except ProtocolError as error:
            return error
        except ValidationError as error:
            return _unexpected(response, first_error(error))
        return problem_error(problem, retry_after)
    status, host = response.status_code, response.url.host
    if status == problems.BODY_TOO_LARGE.status:
        return BodyRefused(host, int(response.request.headers.get("Content-Length", 0)))
    if status in GATEWAY_STATUSES:
        return GatewayFailed(status, host, retry_after, request_id(response.request))
    if status == PROXY_AUTHENTICATION_REQUIRED:
        return ProtocolError(
            f"The proxy before {host} wants to know who asks (407).",
            remedy="A proxy's user and password stand in its address: HTTPS_PROXY or HTTP_PROXY.",
        )
    if response.is_redirect:
        return _redirected(response)
    return _unexpected(response, "it is an error without a problem document")


def _redirected(response: httpx.Response) -> ProtocolError:
    """Where a call is to go instead; it does not, since the key would go there too."""
    asked, path = response.request.url, response.request.url.path
    location = response.headers.get("Location", "")
    try:
        goal = asked.join(location)
    except (httpx.InvalidURL, ValueError):
        goal = asked
    address = f"{goal.scheme}://{goal.netloc.decode('ascii', 'replace')}"
    there = without_credentials(address) + goal.path.removesuffix(path)
    if goal.host == asked.host and goal.scheme == "https" and goal.path.endswith(path):
        remedy = f"Name that address with --url or {URL_VARIABLE}: {there}"
    else:
        remedy = (
            f"Name the server's own address with --url or {URL_VARIABLE}. The API key was not sent "
            "to the other one."
        )
    shown = without_credentials(location)
    return ProtocolError(f"{asked} is redirected to {shown}.", remedy=remedy)


def check_content_type(response: httpx.Response, wanted: str) -> None:
    """Raises ProtocolError unless the answer is of that type."""
    found = _content_type(response)
    if found != wanted:
        raise _unexpected(response, f"its content type is '{found}', not '{wanted}'")


def _content_type(response: httpx.Response) -> str:
    header: str = response.headers.get("Content-Type", "")
    return header.partition(";")[0].strip().lower()


def _unexpected(response: httpx.Response, why: str) -> ProtocolError:
    remedy = "Is this the address of a craftbox server, and of the same version as the client?"
    if _content_type(response) in ("text/html", "application/xhtml+xml"):
        remedy = (
            "It is a web page: another site may have this address, or the network may want a "
            f"sign-in first. Open http://{response.url.host}/ in a browser."
        )
    return ProtocolError(
        f"The answer {response.status_code} of {response.request.method} {response.url} is not one "
        f"that a craftbox server of this version gives: {why}.",
        remedy=f"{remedy} (request {request_id(response.request)})",
    )


def _seconds(retry_after: str | None) -> float | None:
    """The header's seconds or date (RFC 9110, section 10.2.3) as seconds from now."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return max(0.0, (date - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None
