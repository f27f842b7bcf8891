"""What every call may use, made once by `craft_server.app.create_app`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from craft_server.adapters.registry import ServableAdapter
from craft_server.byte_cache import ByteCache
from craft_server.database import Database
from craft_server.engine import HostedModel
from craft_server.image_sets import Features
from craft_server.lease import Lease
from craft_server.rate_limits import RateLimits
from craft_server.receipts import Receipts
from craft_server.settings import Settings
from craft_server.simulate.provider import Provider


class Drain:
    """Whether the server is about to stop: it still serves, but says that it is not ready."""

    def __init__(self) -> None:
        self.begun = False

    def begin(self) -> None:
        """Begins it for good. A signal's handler may call this."""
        self.begun = True


class InFlight:
    """Counts calls on the event loop and lets one wait until there is none."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Counts a call for the length of the block."""
        self._count += 1
        self._none.clear()
        try:
            yield
        finally:
            self._count -= 1
            if self._count == 0:
                self._none.set()

    async def none(self) -> None:
        """Waits until no call is in flight."""
        await self._none.wait()


@dataclass(frozen=True)
class Services:
    """The parts of one server."""

    settings: Settings
    engine: HostedModel
    database: Database
    lease: Lease
    rate_limits: RateLimits
    receipts: Receipts
    in_flight: InFlight
    drain: Drain
    noise_secret: bytes  # from which noise in answers is drawn
    # Both are used on the event loop.
    features: ByteCache[tuple[str, int], Features]  # of image sets, by id and count
    adapters: ByteCache[int, ServableAdapter]  # by their row's id
    provider: Provider  # that is simulated, or one that does nothing

    @property
    def revision(self) -> str:
        """The hosted model's revision, as clients see it."""
        return self.provider.revision(self.engine.revision)


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


WithServices = Annotated[Services, Depends(_services)]
