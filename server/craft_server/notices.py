"""Webhooks: whoever runs the server is told when a share of a budget is spent.

A thread sends what the ledger has noted, a notice at a time, to every address that the settings
name, signed as Standard Webhooks has it (https://www.standardwebhooks.com). An address that does
not take it is tried again, at growing distances, for three days. The same notice may arrive twice,
always under the same `webhook-id`. No call waits for any of this.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Sequence

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
_PATIENCE_SECONDS = 10.0  # for one address
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
    """Sends notices until it is closed.

    Args:
        database: whose notices.
        urls: of who is told; without one nothing is done.
        secret: that notices are signed with, as `secret_bytes` has it.
    """

    def __init__(self, database: Database, urls: Sequence[str], secret: bytes) -> None:
        self._database = database
        self._urls = {hashlib.sha256(url.encode()).hexdigest()[:16]: url for url in urls}
        self._secret = secret
        self._claim_seconds = 30 + 2 * _PATIENCE_SECONDS * len(urls)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="craft-notices", daemon=True)
        if urls:
            self._thread.start()

    def close(self) -> None:
        """Ends; what is just being sent may be sent again."""
        self._closing.set()
        if self._urls:
            self._thread.join(_PATIENCE_SECONDS)

    def _keep(self) -> None:
        with httpx.Client(timeout=_PATIENCE_SECONDS) as client:
            while not self._closing.wait(_LOOK_SECONDS):
                try:
                    self._send_due(client)
                except Unavailable as error:
                    _log.error("notices not looked for", error=str(error))
                except Exception as error:
                    _log.exception("notices not looked for", error=type(error).__name__)

    def _send_due(self, client: httpx.Client) -> None:
        while not self._closing.is_set():
            with self._database.reading() as connection:
                if not notices.any_due(connection, now_ms()):
                    return
            with self._database.writing() as connection:
                until = now_ms() + ms_in(self._claim_seconds)
                notice = notices.claim(connection, now_ms(), until=until)
            if notice is None:  # another process was faster
                return
            self._send(client, notice)

    def _send(self, client: httpx.Client, notice: Notice) -> None:
        told = set(notice.told)
        for digest, url in self._urls.items():
            if digest not in told and self._told(client, notice, url):
                told.add(digest)
        at = now_ms()
        given_up = at - notice.at > ms_in(_GIVEN_UP_SECONDS)
        with self._database.writing() as connection:
            if told >= self._urls.keys() or given_up:
                notices.close(connection, notice, at)
            else:
                notices.put_off(connection, notice, told, at + ms_in(_wait(notice.attempts)))
        if given_up and not told >= self._urls.keys():
            _NOTICES.labels("given_up").inc()
            _log.error("notice given up", notice=_message_id(notice), attempts=notice.attempts)

    def _told(self, client: httpx.Client, notice: Notice, url: str) -> bool:
        message = {"type": "budget.spent", "timestamp": rfc3339(notice.at), "data": notice.data}
        body = json.dumps(message).encode()
        headers = {
            "Content-Type": "application/json",
            **signed(self._secret, _message_id(notice), int(time.time()), body),
        }
        try:
            # Of the answer nothing counts but its status.
            with client.stream("POST", url, content=body, headers=headers) as response:
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
