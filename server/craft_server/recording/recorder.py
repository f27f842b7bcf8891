"""Writes what a server answers to a recording, before it is sent.

Left out is what another session could not use or must not have: whatever concerns keys
(`/v1/admin`, refused keys), acknowledgements of answers, answers that ask to come again, the
server's failures, and anything in which a key is written.
"""

from __future__ import annotations

import asyncio

import structlog
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from craft_server.api.middleware import Middleware
from craft_server.ledger.keys import shows_secret
from craft_server.recording.tape import Answer, CallContent, Tape, TapeError
from craft_shared.problems import OVERLOADED, Problem

IDEMPOTENCY_KEY_HEADER = "idempotency-key"
ANSWERS_PATH = "/v1/answers/"
_PREFIX = "/v1/"
_LEFT_OUT = ("/v1/admin/", ANSWERS_PATH)
_OF_KEYS = (401, 403)
_FAILURES_FROM = 500
RETRY_AFTER_SECONDS = "5"

_log = structlog.get_logger()


class RecorderMiddleware(Middleware):
    """Holds each answer back until it is on the tape."""

    def __init__(self, app: ASGIApp, *, tape: Tape) -> None:
        super().__init__(app)
        self._tape = tape

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if not path.startswith(_PREFIX) or path.startswith(_LEFT_OUT):
            await self._app(scope, receive, send)
            return
        asked: list[bytes] = []
        whole = False
        answered: list[Message] = []

        async def receive_noting() -> Message:
            nonlocal whole
            message = await receive()
            if message["type"] == "http.request":
                asked.append(message.get("body", b""))
                whole = not message.get("more_body", False)
            return message

        async def send_recorded(message: Message) -> None:
            answered.append(message)
            if message["type"] == "http.response.start" or message.get("more_body", False):
                return
            try:
                if whole or scope["method"] not in ("POST", "PUT", "PATCH"):
                    await self._record(scope, b"".join(asked), answered)
            except TapeError as error:
                # The answer is stored under the call's idempotency key, if it has one.
                _log.error("answer not recorded", error=str(error))
                await _not_recorded(scope)(scope, receive, send)
            else:
                for held in answered:
                    await send(held)
            answered.clear()

        await self._app(scope, receive_noting, send_recorded)

    async def _record(self, scope: Scope, body: bytes, answered: list[Message]) -> None:
        start, *parts = answered
        headers = Headers(raw=start["headers"])
        status: int = start["status"]
        if status in _OF_KEYS or status >= _FAILURES_FROM or "retry-after" in headers:
            return
        question = CallContent.of(scope, body)
        answer = Answer(
            status,
            headers.get("content-type", ""),
            b"".join(part.get("body", b"") for part in parts),
        )
        if shows_secret(question.json.encode()) or shows_secret(answer.body):
            _log.warning("call not recorded: a key is written in it")
            return
        key = Headers(scope=scope).get(IDEMPOTENCY_KEY_HEADER)
        await asyncio.to_thread(self._tape.append, question, answer, key)


def _not_recorded(scope: Scope) -> Response:
    # A replay imports this module, and neither the API nor the model's libraries with it.
    from craft_server.api.errors import problem_response

    detail = "the server cannot write its recording now; the call was not answered"
    return problem_response(
        Request(scope), Problem.of(OVERLOADED, detail), {"Retry-After": RETRY_AFTER_SECONDS}
    )
