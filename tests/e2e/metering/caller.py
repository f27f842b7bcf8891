"""A client of the stub servers: one key, one idempotency key a call, sent again until answered."""

from __future__ import annotations

import http.client
import json
import os
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from e2e.metering.stub_server import score_of

PATIENCE_SECONDS = 60
# The counts that the tests are meant to have take minutes: `CRAFT_TEST_FULL=1`.
FULL = bool(os.environ.get("CRAFT_TEST_FULL"))
PAUSE_SECONDS = 0.02
# A PNG of one pixel.
PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBg"
    "AAAABQABpfZFQAAAAABJRU5ErkJggg=="
)


@dataclass
class Answer:
    """An answer that reached the client whole."""

    status: int
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Caller:
    """A connection that calls with one key; not for several threads.

    Attributes:
        port: of the server, or of what stands before it.
        key: the API key.
        model: that the server hosts.
        user: the end user whom each call names.
        retries: calls that were sent again, over all calls.
    """

    port: int
    key: str
    model: str = "stub"
    user: str | None = None
    retries: int = 0
    _connection: http.client.HTTPConnection | None = field(default=None, repr=False)

    def get(self, path: str) -> dict[str, Any]:
        return self._until_answered("GET", path, None, {}).body

    def predict(
        self, prompts: int = 1, *, idempotency_key: str | None = None, kill_at: str | None = None
    ) -> Answer:
        """One prediction, which must be this call's own; answered 200 or 402.

        Args:
            prompts: how many queries to ask for.
            idempotency_key: None makes one.
            kill_at: where the first attempt ends the server.
        """
        key = idempotency_key or uuid.uuid4().hex
        templates = [f"{key} {number} {{}}" for number in range(prompts)]
        request = {
            "model": self.model,
            "classes": ["cat", "dog"],
            "templates": templates,
            "images": [PICTURE],
        }
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        if self.user is not None:
            headers["Craft-User"] = self.user
        body = json.dumps(request).encode()
        answer = self._until_answered("POST", "/v1/predictions", body, headers, kill_at)
        if answer.status == 200:
            expected = [[[score_of(template)] * 2] for template in templates]
            assert answer.body["log_probs"] == expected, "this is another call's answer"
        else:
            assert answer.status == 402, answer
        return answer

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _until_answered(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
        kill_at: str | None = None,
    ) -> Answer:
        more = {} if kill_at is None else {"Stub-Kill": kill_at}
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                answer = self._once(method, path, body, {**headers, **more})
                if answer.status not in (409, 503):
                    return answer
                last: object = answer
            except (OSError, http.client.HTTPException) as error:
                self.close()
                last = error
            assert time.monotonic() < deadline, f"not answered in {PATIENCE_SECONDS} s: {last!r}"
            more = {}
            self.retries += 1
            if not isinstance(last, ConnectionResetError | http.client.HTTPException):
                time.sleep(PAUSE_SECONDS)

    def _once(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        authorization = {"Authorization": f"Bearer {self.key}"}
        self._connection.request(method, path, body, {**headers, **authorization})
        response = self._connection.getresponse()
        if response.length is None:  # http.client takes an end within the headers for their end
            raise http.client.IncompleteRead(b"")
        content = response.read()
        if response.status >= 500 and response.getheader("Content-Type", "").startswith("text/"):
            raise http.client.HTTPException(f"a gateway answered {response.status}")
        return Answer(response.status, dict(response.getheaders()), json.loads(content))
