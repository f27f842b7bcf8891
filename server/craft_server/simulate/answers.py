"""What a simulated failure's answer looks like, by who would have given it.

A server's own refusals are problem documents. What a gateway before it answers is its own bare
page, and so is what a server answers that has lost count of what was done: a status after the work
says nothing of the charge. 529 is no status of HTTP; services that overload answer it with JSON of
their own. It knows statuses and bodies; it does not know when they are sent.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from http import HTTPStatus

from craft_server.simulate.profile import Fault
from craft_shared.problems import (
    INTERNAL_ERROR,
    MEDIA_TYPE,
    OVERLOADED,
    RATE_LIMITED,
    Problem,
    ProblemType,
)

_OVERLOADED_STATUS = 529
_OWN: dict[str, ProblemType] = {
    "429": RATE_LIMITED,
    "500": INTERNAL_ERROR,
    "503": OVERLOADED,
}


@dataclass(frozen=True)
class FaultAnswer:
    """An answer in a call's place."""

    status: int
    media_type: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def answer_of(fault: Fault, request_id: str) -> FaultAnswer:
    """The answer of a fault that has a status.

    A server says when a refused call may come again, or that no wait helps: a refusal that names
    no time is therefore a gateway's.
    """
    status = int(fault.kind)
    headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
    kind = _OWN.get(fault.kind)
    knows = kind is INTERNAL_ERROR or fault.retry_after is not None
    if kind is not None and knows and fault.at != "after-work":
        problem = Problem.of(kind, f"simulated fault {fault.kind} {fault.at}")
        named = problem.model_copy(update={"request_id": request_id})
        return FaultAnswer(status, MEDIA_TYPE, named.model_dump_json().encode(), headers)
    if status == _OVERLOADED_STATUS:
        error = {"type": "overloaded_error", "message": "Overloaded"}
        body = json.dumps({"type": "error", "error": error}).encode()
        return FaultAnswer(status, "application/json", body, headers)
    title = f"{status} {HTTPStatus(status).phrase}"
    page = f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>\r\n"
    return FaultAnswer(status, "text/html", page.encode(), headers)
