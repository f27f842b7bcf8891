"""Serves a recording without a model: each question is answered as it was, in order, then again.

Whatever key a client shows, it is accepted, and stands for a session of its own: another key hears
the recording from its beginning.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from cachetools import LRUCache
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from craft_server.api.middleware import (
    BodyGate,
    BodyGateMiddleware,
    CallMiddleware,
    CompressionMiddleware,
)
from craft_server.problems import ProblemError
from craft_server.recording.recorder import ANSWERS_PATH, IDEMPOTENCY_KEY_HEADER
from craft_server.recording.tape import Answer, CallContent, Tape
from craft_server.settings import Settings
from craft_shared.problems import MEDIA_TYPE, NOT_RECORDED, FieldError

_HEALTH = ("/livez", "/readyz")
_MOST_SESSIONS = 10_000
_MOST_COMPARED = 500
_MOST_TOLD = 5


@dataclass
class _Session:
    """How far one key has come: the answers it had to each question, and under each call's key."""

    had: dict[str, int] = field(default_factory=dict)
    calls: dict[tuple[str, str], int] = field(default_factory=dict)


class Player:
    """An ASGI application that plays a tape."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._order = tape.order()
        self._sessions: LRUCache[str, _Session] = LRUCache(_MOST_SESSIONS)

    @property
    def answers(self) -> int:
        """How many there are."""
        return sum(len(numbers) for numbers in self._order.values())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            raise NotImplementedError(f"a recording has no {scope['type']}")
        response = await self._response(Request(scope, receive))
        await response(scope, receive, send)

    async def _response(self, request: Request) -> Response:
        path = request.url.path
        if path in _HEALTH:
            return JSONResponse({"status": "ok"})
        if request.method == "DELETE" and path.startswith(ANSWERS_PATH):
            return Response(status_code=204)
        try:
            question = CallContent.of(request.scope, await request.body())
            answer = await self._answer(request, question)
        except ProblemError as error:
            named = error.problem.model_copy(update={"request_id": request.state.request_id})
            return Response(named.model_dump_json(), error.problem.status, media_type=MEDIA_TYPE)
        headers = {"Content-Type": answer.media_type} if answer.media_type else {}
        return Response(answer.body, answer.status, headers)

    async def _answer(self, request: Request, question: CallContent) -> Answer:
        digest = question.digest
        numbers = self._order.get(digest)
        if numbers is None:
            raise await asyncio.to_thread(self._not_recorded, question)
        session = self._sessions.setdefault(request.headers.get("authorization", ""), _Session())
        call = request.headers.get(IDEMPOTENCY_KEY_HEADER)
        number = session.calls.get((call, digest)) if call is not None else None
        if number is None:
            at = session.had.get(digest, 0)
            session.had[digest] = at + 1
            number = numbers[min(at, len(numbers) - 1)]
            if call is not None:
                session.calls[call, digest] = number
        return await asyncio.to_thread(self._tape.answer, number)

    def _not_recorded(self, question: CallContent) -> ProblemError:
        call = f"{question.method} {question.path}"
        others = self._tape.questions(question.method, question.path, most=_MOST_COMPARED)
        nearest = min((question.differences(other) for other in others), key=len, default=None)
        if nearest is None:
            return ProblemError(NOT_RECORDED, f"the recording has no {call} at all")
        fields = [
            FieldError(field=where, message=what, remedy="Ask as it was asked when recorded.")
            for where, what in nearest[:_MOST_TOLD]
        ]
        words = "; ".join(f"{error.field}: {error.message}" for error in fields)
        more = f" (and {len(nearest) - len(fields)} more)" if len(nearest) > len(fields) else ""
        return ProblemError(
            NOT_RECORDED, f"the {call} that comes nearest differs in {words}{more}", fields
        )


def player_app(player: Player, settings: Settings) -> ASGIApp:
    """The player as a server: with names of calls, log lines and a bound on bodies."""
    gate = BodyGate(settings.most_bodies_bytes)
    app = BodyGateMiddleware(player, limits=settings.limits, gate=gate)
    return CallMiddleware(CompressionMiddleware(app))
