"""`craft-server`, whose engine answers a stub's scores after a moment, so that calls are under way.

Everything else is the product: its command line, signals, socket, ledger and end.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from craft_server.byte_cache import ByteCache
from craft_server.cli import app, serve
from e2e.metering.stub_server import StubEngine

WORK_SECONDS = float(os.environ.get("SLOW_SERVER_WORK_SECONDS", "0.05"))


class SlowEngine(StubEngine):
    """Takes its time over each call, side by side with others."""

    waiting = 0
    busy_seconds: ClassVar[dict[str, float]] = {}
    text_features: ByteCache[Any, Any] = ByteCache(0)

    async def encode_prompts(self, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(WORK_SECONDS)
        return await super().encode_prompts(*args, **kwargs)


@contextmanager
def _slow_engine(_settings: Any) -> Iterator[SlowEngine]:
    yield SlowEngine()


if __name__ == "__main__":
    serve._engine = _slow_engine  # type: ignore[assignment]
    app()
