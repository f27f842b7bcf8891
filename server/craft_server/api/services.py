"""What every call may use, made once by `craft_server.app.create_app`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from craft_server.adapters import ServableAdapter
from craft_server.api.drain import Drain
from craft_server.api.in_flight import InFlight
from craft_server.byte_cache import ByteCache
from craft_server.database import Database
from craft_server.engine import HostedModel
from craft_server.image_sets import Features
from craft_server.lease import Lease
from craft_server.rate_limits import RateLimits
from craft_server.receipts import Receipts
from craft_server.settings import Settings
from craft_server.simulate import Provider


@dataclass(frozen=True)
class Services:
    """The parts of one server.

    Attributes:
        settings: of the operator.
        engine: the hosted model.
        database: of ledger, image sets and adapters.
        lease: of this process, in the ledger.
        rate_limits: of all keys.
        receipts: signed with this server's key.
        in_flight: calls whose reservation is open.
        drain: whether the server is about to stop.
        features: image sets' features by id and count, bounded in bytes; used on the event loop.
        noise_secret: from which noise in answers is drawn.
        adapters: parsed adapters by their row's id, bounded in bytes; used on the event loop.
        provider: whose behaviour is simulated; one that does nothing as a rule.
    """

    settings: Settings
    engine: HostedModel
    database: Database
    lease: Lease
    rate_limits: RateLimits
    receipts: Receipts
    in_flight: InFlight
    drain: Drain
    noise_secret: bytes
    features: ByteCache[tuple[str, int], Features]
    adapters: ByteCache[int, ServableAdapter]
    provider: Provider

    @property
    def revision(self) -> str:
        """The hosted model's revision, as clients are told."""
        return self.provider.revision(self.engine.revision)


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


WithServices = Annotated[Services, Depends(_services)]
