"""Everything that can go wrong in the client, one typed exception for each failure.

`CraftError` is the base of all. `ProblemError` is that of what the server refused (RFC 9457), with
a subclass for each problem type; the others are failures of the data, of a limit or of the way to
the server, or mean that a gateway has answered in the server's place.

A problem of a type that this version does not know is a plain `ProblemError`. `str()` of each is a
message fit for a user: what happened, then fields and remedies on lines of their own.
"""

# ruff: noqa: N818 - named after what happened, as the exceptions of httpx are.

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Sequence
from typing import ClassVar

from craft_shared import problems
from craft_shared.printing import printable
from craft_shared.problems import FieldError, Problem, ProblemType

# Of a message; a call has at most a thousand images, of which all may be wrong.
MOST_LINES = 1_100
LONGEST_LINE = 4_000


class CraftError(Exception):
    """Base of all errors that the client raises on purpose.

    `message` says what happened, `errors` which fields, files or classes are wrong, with a remedy
    each, and `remedy` what to do about it as a whole.
    """

    def __init__(
        self, message: str, *, remedy: str = "", errors: Sequence[FieldError] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.errors = tuple(errors)

    @property
    def lines(self) -> list[str]:
        """What happened, then fields and remedies: a line each, whoever wrote it, and printable."""
        fields = (
            f"{error.field}: {error.message.removesuffix('.')}. {error.remedy}".rstrip()
            for error in self.errors
        )
        remedy = [self.remedy] if self.remedy else []
        lines = [printable(line[:LONGEST_LINE]) for line in (self.message, *fields, *remedy)]
        left_out = len(lines) - MOST_LINES
        return lines if left_out <= 0 else [*lines[:MOST_LINES], f"and {left_out:,} lines more."]

    def __str__(self) -> str:
        return "\n  ".join(self.lines)

    def _render_traceback_(self) -> list[str]:
        """What notebooks show in a traceback's place: the line of the cell, and what happened."""
        of_cells = [
            linecache.getline(frame.f_code.co_filename, line).strip()
            for frame, line in traceback.walk_tb(self.__traceback__)
            if frame.f_globals.get("__name__") == "__main__"
        ]
        here = [f"----> {line}" for line in of_cells[-1:] if line]
        return [*here, f"{type(self).__name__}: {self}"]


class MissingKey(CraftError):
    """No API key was given, or one that cannot be a key."""


class MissingPackage(CraftError):
    """An optional package is not installed. Nothing was sent to the server."""


class UnusablePlugin(CraftError):
    """A plug-in is not installed, cannot be loaded, or failed; the message names its package."""


class DataError(CraftError):
    """The data on disk cannot be used. Nothing was sent to the server."""


class InUse(DataError):
    """Another process is at the run directory, file or folder. Nothing was sent to the server."""


class LimitExceeded(CraftError):
    """The call would be larger than the server accepts. It was not sent."""


class BudgetTooSmall(CraftError):
    """A budget of the key or its team does not cover what is asked for. Nothing was charged."""


class ConnectionFailed(CraftError):
    """No connection could be made; the server has not seen the call."""


class AnswerLost(ConnectionFailed):
    """The connection broke after the call was sent; the server may have done and charged it."""


class GatewayFailed(CraftError):
    """A gateway answered in the server's place; the server may have done and charged the call.

    `retry_after` is how many seconds it asks to wait before another try, if it does.
    """

    def __init__(
        self, status: int, host: str, retry_after: float | None = None, request_id: str = ""
    ) -> None:
        super().__init__(
            f"{host} answers {status} without saying why, as a gateway does whose server cannot be "
            "reached or has too much to do.",
            remedy="Try again later. The server may have done the call: 'craft usage' shows what "
            f"was charged.{f' (request {request_id})' if request_id else ''}",
        )
        # The constructor's arguments, so that the exception survives pickling.
        self.args = (status, host, retry_after, request_id)
        self.status = status
        self.retry_after = retry_after


class BodyRefused(CraftError):
    """A gateway before the server refuses a body of `size` bytes; the server has not seen it."""

    def __init__(self, host: str, size: int) -> None:
        super().__init__(
            f"A gateway before {host} refuses a body of {size / 1e6:,.1f} MB (413).",
            remedy="Have its limit raised (nginx: client_max_body_size), or send less at once: set "
            "CRAFT_BODY_BYTES to the bytes that it lets through, such as 1000000.",
        )
        # The constructor's arguments, so that the exception survives pickling.
        self.args = (host, size)
        self.size = size


class ProtocolError(CraftError):
    """The answer is not one that a craftbox server of this version gives."""


_BY_TYPE: dict[str, type[ProblemError]] = {}


class ProblemError(CraftError):
    """The server refused the call and said why (RFC 9457): `problem` is the whole document.

    `retry_after` is how many seconds it asks to wait before another try, if it does.
    """

    kind: ClassVar[ProblemType | None] = None

    def __init_subclass__(cls, kind: ProblemType | None = None) -> None:
        if kind is not None:
            cls.kind = kind
            _BY_TYPE[kind.uri] = cls

    def __init__(self, problem: Problem, retry_after: float | None = None) -> None:
        listed = [f"{error.field}: {error.message}" for error in problem.errors]
        detail = "" if problem.detail in (problem.title, *listed) else problem.detail
        message = ": ".join(part for part in (problem.title, detail) if part)
        has_remedy = any(error.remedy for error in problem.errors)
        super().__init__(
            message, remedy="" if has_remedy else problem.remedy, errors=tuple(problem.errors)
        )
        # The constructor's arguments, so that the exception survives pickling.
        self.args = (problem, retry_after)
        self.problem = problem
        self.retry_after = retry_after

    @property
    def lines(self) -> list[str]:
        """As of `CraftError`, and what the provider's log calls the call."""
        request = self.problem.request_id
        return [*super().lines, *([printable(f"(request {request})")] if request else [])]


class MalformedBody(ProblemError, kind=problems.MALFORMED_BODY):
    """The server cannot read the request's body."""


class Unauthenticated(ProblemError, kind=problems.UNAUTHENTICATED):
    """The API key is missing or not valid."""


class BudgetExhausted(ProblemError, kind=problems.BUDGET_EXHAUSTED):
    """The key's budget does not cover the call; a retry cannot succeed."""


class Forbidden(ProblemError, kind=problems.FORBIDDEN):
    """The API key's scopes do not cover the call."""


class PromptLimitReached(ProblemError, kind=problems.PROMPT_LIMIT_REACHED):
    """The key may not ask so many different prompts about the images; a retry cannot succeed."""


class UserLimitReached(ProblemError, kind=problems.USER_LIMIT_REACHED):
    """The key may not name more end users; a retry cannot succeed."""


class NotFound(ProblemError, kind=problems.NOT_FOUND):
    """There is no such resource."""


class ModelNotFound(NotFound, kind=problems.MODEL_NOT_FOUND):
    """The server hosts no such model."""


class ImageSetNotFound(NotFound, kind=problems.IMAGE_SET_NOT_FOUND):
    """There is no such image set, or it is another owner's."""


class AdapterNotFound(NotFound, kind=problems.ADAPTER_NOT_FOUND):
    """There is no such adapter, or it is another owner's."""


class NotRecorded(ProblemError, kind=problems.NOT_RECORDED):
    """The server replays a recording, which has no answer to this call."""


class MethodNotAllowed(ProblemError, kind=problems.METHOD_NOT_ALLOWED):
    """The resource has no such method."""


class RevisionMismatch(ProblemError, kind=problems.REVISION_MISMATCH):
    """The adapter was tuned on another model or revision."""


class RunInProgress(ProblemError, kind=problems.RUN_IN_PROGRESS):
    """Calls that the receipt would cover are still running."""


class CallInProgress(ProblemError, kind=problems.CALL_IN_PROGRESS):
    """The same call, sent before under the same idempotency key, is still running."""


class RequestTimeout(ProblemError, kind=problems.REQUEST_TIMEOUT):
    """The request did not arrive in time."""


class HeadTooLarge(ProblemError, kind=problems.HEAD_TOO_LARGE):
    """The request's header fields or its address are larger than the server accepts."""


class AnswerGone(ProblemError, kind=problems.ANSWER_GONE):
    """The call was answered before, and its answer cannot be computed anew."""


class BodyTooLarge(ProblemError, kind=problems.BODY_TOO_LARGE):
    """The request's body is larger than the server accepts."""


class UnsupportedMediaType(ProblemError, kind=problems.UNSUPPORTED_MEDIA_TYPE):
    """The server does not read this content type."""


class InvalidRequest(ProblemError, kind=problems.INVALID_REQUEST):
    """A field of the request is not valid; `errors` names it."""


class InvalidImage(ProblemError, kind=problems.INVALID_IMAGE):
    """An image cannot be used; `errors` names it."""


class IdempotencyKeyReused(ProblemError, kind=problems.IDEMPOTENCY_KEY_REUSED):
    """Another call was made under the same idempotency key."""


class RateLimited(ProblemError, kind=problems.RATE_LIMITED):
    """The key has done as much as it may for now; without `retry_after`, no wait helps."""


class InternalError(ProblemError, kind=problems.INTERNAL_ERROR):
    """The server failed; nothing was charged."""


class Overloaded(ProblemError, kind=problems.OVERLOADED):
    """The server cannot do this now: it has too much to do, or its database has failed."""


def problem_error(problem: Problem, retry_after: float | None = None) -> ProblemError:
    """The exception for a problem: the subclass of its type, or `ProblemError` if unknown."""
    return _BY_TYPE.get(problem.type, ProblemError)(problem, retry_after)


def picture_position(field: str) -> int | None:
    """Which image of a call a field such as `images[3]` names; None where it names none."""
    match = re.match(r"images\[(\d+)\]", field)
    return int(match[1]) if match else None
