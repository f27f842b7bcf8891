"""Reading answers of API v1: each within its bound, as a typed answer or a typed error."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from craft_client.calls import JSON_TYPE, MOST_JSON_BYTES, request_id
from craft_client.exceptions import (
    BodyRefused,
    CraftError,
    GatewayFailed,
    ProtocolError,
    problem_error,
)
from craft_client.network import ACCEPTED_CODINGS, URL_VARIABLE, without_credentials
from craft_shared import codec, problems
from craft_shared.problems import Problem, first_error
from craft_shared.strict_json import most_values

# What proxies answer in a server's place, and services that are overloaded (529) for themselves.
# 520 to 530 are Cloudflare's.
GATEWAY_STATUSES = frozenset({429, 500, 502, 503, 504, *range(520, 531)})
PROXY_AUTHENTICATION_REQUIRED = 407
# A value of JSON takes memory of many times the one byte that it may be sent as. Of an answer of
# the largest size one has at least so many bytes.
BYTES_A_VALUE = 64

# Of why there is no answer: a problem names each image of a call at most.
MOST_PROBLEM_BYTES = 4 * 2**20

_Answer = TypeVar("_Answer", bound=BaseModel)


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


def read_json(
    kind: type[_Answer], response: httpx.Response, most_bytes: int = MOST_JSON_BYTES
) -> _Answer:
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


def read_tensors(kind: type[_Answer], response: httpx.Response) -> tuple[_Answer, codec.Tensors]:
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
