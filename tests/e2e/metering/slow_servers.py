"""Starts slow servers (`e2e.metering.slow_server`), one after another or beside each other."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from craft_server.clock import now_ms
from craft_server.database import Database
from craft_server.ledger.budgets import set_budget
from craft_server.ledger.keys import Rates, create_key, find_key
from e2e.programs import Program
from quickstart import free_port
from waiting import until

PATIENCE_SECONDS = 60
OWNER = "owner-of-keys"


@dataclass
class SlowServers:
    """Servers on one database.

    Attributes:
        folder: of the database and of the servers' log.
        port: that they listen on unless told otherwise.
        started: their processes.
    """

    folder: Path
    port: int = field(default_factory=free_port)
    started: list[Program] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def start(self, *, port: int | None = None, **environment: str) -> Program:
        """Starts a server and waits until it is ready."""
        port = port or self.port
        env = {**os.environ, "CRAFT_DATA_DIR": str(self.folder), "CRAFT_PORT": str(port)}
        process = Program(
            "e2e.metering.slow_server:run",
            ["serve"],
            env={**env, **environment},
            stdout=self.log,
            stderr=self.log,
        )
        self.started.append(process)
        until(lambda: process.poll() is not None or self.status("/readyz", port) == 200)
        assert process.poll() is None, self.log.read_text()
        return process

    def status(self, path: str, port: int | None = None) -> int | None:
        """What a single attempt without a kept connection is answered; None if nothing."""
        try:
            url = f"http://127.0.0.1:{port or self.port}{path}"
            return httpx.get(url, trust_env=False).status_code
        except httpx.TransportError:
            return None

    def database(self) -> Database:
        return Database.open(None, self.folder)

    def key(
        self,
        *,
        queries: int | None = None,
        scopes: list[str] | None = None,
        rates: Rates = Rates(),  # noqa: B008 - frozen
    ) -> str:
        """The secret of a new key."""
        database = self.database()
        with database.writing() as connection:
            at = now_ms()
            more: dict[str, Any] = {} if scopes is None else {"scopes": scopes}
            secret = create_key(connection, owner=OWNER, rates=rates, at=at, **more)
            if queries is not None:
                key_id = find_key(connection, secret.split("_")[1]).key_id
                set_budget(
                    connection,
                    key_id=key_id,
                    unit="queries",
                    window="lifetime",
                    limit=queries,
                    at=at,
                )
        database.close()
        return secret

    def end(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()
