"""Webhooks: whoever runs the server is told when a share of a budget is spent.

A thread sends what the ledger has noted, a notice at a time, to all addresses that the settings
name, signed as Standard Webhooks has it (https://www.standardwebhooks.com). An address that does
not take it is tried again, at growing distances, for three days; before that, every other notice
that is due has been sent to the others. The same notice may arrive twice, always under the same
`webhook-id`. No call waits for any of this.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Sequence
from itertools import compress

import httpx
import structlog
from prometheus_client import Counter

from craft_server.clock import ms_in, now_ms, rfc3339
from craft_server.database import Database, Unavailable
from craft_server.ledger import notices
from craft_server.ledger.notices import Notice
from craft_server.telemetry import REGISTRY
from craft_server.webhooks import signed

_LOOK_SECONDS = 1.0
_TIDY_SECONDS = 3600.0
_PATIENCE_SECONDS = 10.0  # for one address, whatever it does
_CLAIM_SECONDS = 2 * _PATIENCE_SECONDS
_FIRST_WAIT_SECONDS = 5.0
_LONGEST_WAIT_SECONDS = 6 * 3600.0
_GIVEN_UP_SECONDS = 72 * 3600.0

_NOTICES = Counter(
    "craft_notices_total",
    "Notices of spent budgets, by what became of an attempt to send one to an address.",
    ["outcome"],
    registry=REGISTRY,
)

_log = structlog.get_logger()


class Notices:
    """Sends notices until it is closed, and gives up those that nobody took for days.

    Args:
        database: whose notices.
        urls: of who is told; without one nothing is sent.
        secret: that notices are signed with, as `secret_bytes` has it.
    """

    def __init__(self, database: Database, urls: Sequence[str], secret: bytes) -> None:
        self._database = database
        self._urls = {hashlib.sha256(url.encode()).hexdigest()[:16]: url for url in urls}
        self._secret = secret
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._keep()), name="craft-notices", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Ends; what is just being sent may be sent again."""
        self._closing.set()
        self._thread.join(_PATIENCE_SECONDS)

    async def _keep(self) -> None:
        tidied = float("-inf")
        while True:
            try:
                if time.monotonic() - tidied >= _TIDY_SECONDS:
                    self._give_up()
                    tidied = time.monotonic()
                if self._urls:
                    await self._send_due()
            except Unavailable as error:
                _log.error("notices not looked for", error=str(error))
            except Exception as error:
                _log.exception("notices not looked for", error=type(error).__name__)
            if self._closing.wait(_LOOK_SECONDS if self._urls else _TIDY_SECONDS):
                return

    def _give_up(self) -> None:
        at = now_ms()
        with self._database.writing() as connection:
            given_up = notices.tidy(connection, at, before=at - ms_in(_GIVEN_UP_SECONDS))
        if given_up:
            _NOTICES.labels("given_up").inc(given_up)
            _log.error("notices given up", notices=given_up)

    async def _send_due(self) -> None:
        failed: set[str] = set()
        while (notice := self._next()) is not None:
            await self._send(notice, failed)

    def _next(self) -> Notice | None:
        if self._closing.is_set():
            return None
        with self._database.reading() as connection:
            if not notices.any_due(connection, now_ms()):
                return None
        with self._database.writing() as connection:
            until = now_ms() + ms_in(_CLAIM_SECONDS)
            return notices.claim(connection, now_ms(), until=until)

    async def _send(self, notice: Notice, failed: set[str]) -> None:
        """Sends a notice to those that were not told yet, and have not `failed` just before."""
        asked = [one for one in self._urls if one not in notice.told | failed]
        async with httpx.AsyncClient(timeout=_PATIENCE_SECONDS) as client:
            tries = (self._told(client, notice, self._urls[one]) for one in asked)
            took = await asyncio.gather(*tries)
        told = notice.told.union(compress(asked, took))
        failed.update(set(asked) - told)
        # Whoever made another one wait has its turn after it.
        wait = _wait(notice.attempts if asked else notice.attempts - 1)
        at = now_ms()
        with self._database.writing() as connection:
            if told >= self._urls.keys():
                notices.close(connection, notice, at)
            else:
                notices.put_off(connection, notice, told, at + ms_in(wait))

    async def _told(self, client: httpx.AsyncClient, notice: Notice, url: str) -> bool:
        message = {"type": "budget.spent", "timestamp": rfc3339(notice.at), "data": notice.data}
        body = json.dumps(message).encode()
        headers = {
            "Content-Type": "application/json",
            **signed(self._secret, _message_id(notice), int(time.time()), body),
        }
        try:
            async with (
                asyncio.timeout(_PATIENCE_SECONDS),
                # Of the answer nothing counts but its status.
                client.stream("POST", url, content=body, headers=headers) as response,
            ):
                told = response.is_success
                why = f"HTTP {response.status_code}"
        except Exception as error:  # of whatever kind: other addresses are still told
            told, why = False, type(error).__name__
        _NOTICES.labels("sent" if told else "failed").inc()
        if not told:
            # An address may hold a secret anywhere behind the host.
            host = httpx.URL(url).host
            _log.warning("notice not sent", notice=_message_id(notice), host=host, error=why)
        return told


def _message_id(notice: Notice) -> str:
    # The time tells notices of two databases apart that have one receiver.
    return f"notice_{notice.id}_{notice.at}"


def _wait(attempts: int) -> float:
    return min(_FIRST_WAIT_SECONDS * 2.0 ** min(attempts - 1, 20), _LONGEST_WAIT_SECONDS)
