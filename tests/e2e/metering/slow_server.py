"""`craft-server`, whose engine answers a stub's scores after a moment, so that calls are under way.

Everything else is the product: its command line, signals, socket, ledger and end.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from craft_server.cli import app
from craft_server.serving import listening
from e2e.metering.stub_server import StubEngine

WORK_SECONDS = float(os.environ.get("SLOW_SERVER_WORK_SECONDS", "0.05"))


class SlowEngine(StubEngine):
    """Takes its time over each call, side by side with others."""

    async def encode_prompts(self, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(WORK_SECONDS)
        return await super().encode_prompts(*args, **kwargs)

    def close(self) -> None:
        """It holds nothing."""


def run() -> None:
    listening.engine_of = lambda _settings: SlowEngine()
    app()
