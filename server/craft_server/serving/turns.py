"""Calls take turns on the event loop: in each of its rounds one begins.

To find a call's route and its key takes about a millisecond, in which nothing else is served. Calls
that arrive by the hundred would take theirs in a row; so each waits for a round of its own, in
which the loop looks after every other connection, too. The same holds for what follows the end of a
body, or of a connection. The next turn is that of the address that has had the fewest while others
waited, so that who sends hundreds waits for himself; probes have turns of their own. The loop takes
one new connection a round, so that while they arrive by the hundred calls begin in few of its
rounds.

As many calls wait as there are connections, so that none waits without end.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from functools import wraps

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# For how long arriving connections may hold up the next turn.
_HELD_UP_SECONDS = 0.03
_PROBES = frozenset(("/livez", "/readyz"))


class Turns:
    """Who may go on in which round of the running loop.

    `crowded` says whether connections arrive by the hundred.
    """

    def __init__(self, crowded: Callable[[], bool]) -> None:
        self._crowded = crowded
        self._until = 0.0
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._had: Counter[str] = Counter()
        self._taken = False

    async def take(self, address: str) -> None:
        """Waits for a turn; at once where nobody else had this round's."""
        loop = asyncio.get_running_loop()
        wait = self._taken or self._crowded()
        if not self._taken:
            self._taken = True
            self._end_round(loop)
        if wait:
            turn = loop.create_future()
            self._waiting.setdefault(address, deque()).append(turn)
            await turn

    def _end_round(self, loop: asyncio.AbstractEventLoop) -> None:
        self._until = loop.time() + _HELD_UP_SECONDS
        loop.call_soon(self._next, loop)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._crowded() and loop.time() < self._until:
            loop.call_soon(self._next, loop)
            return
        while self._waiting:
            address = min(self._waiting, key=self._had.__getitem__)
            turn = self._waiting[address].popleft()
            self._had[address] += 1
            if not self._waiting[address]:
                del self._waiting[address]
            if not turn.done():  # or it was cancelled
                turn.set_result(None)
                self._end_round(loop)
                return
        self._had.clear()
        self._taken = False


class InTurn:
    """An application whose calls take turns; `crowded` as for `Turns`."""

    def __init__(self, app: ASGIApp, crowded: Callable[[], bool]) -> None:
        self._app = app
        self._calls, self._probes = Turns(crowded), Turns(lambda: False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        turns = self._probes if scope["path"] in _PROBES else self._calls
        address = scope["client"][0] if scope["client"] else ""

        @wraps(receive)
        async def receive_in_turn() -> Message:
            message = await receive()
            if not message.get("more_body", False):  # all of it, or a client that has hung up
                await turns.take(address)
            return message

        await turns.take(address)
        await self._app(scope, receive_in_turn, send)
