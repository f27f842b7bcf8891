"""The application: engine, database, API and console put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version

import structlog
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from craft_server.api import (
    account,
    adapters,
    admin,
    errors,
    health,
    image_sets,
    openapi,
    predictions,
    run_reports,
)
from craft_server.api.auth import RateLimitHeadersMiddleware
from craft_server.api.cors import CorsMiddleware
from craft_server.api.errors import UnhandledErrorsMiddleware
from craft_server.api.middleware import (
    BodyGate,
    BodyGateMiddleware,
    CallMiddleware,
    CompressionMiddleware,
    HangUpMiddleware,
    operation_of,
)
from craft_server.api.services import Drain, InFlight, Services
from craft_server.byte_cache import ByteCache
from craft_server.clock import run_at
from craft_server.console.install import ConsoleMiddleware
from craft_server.console.install import install as install_console
from craft_server.database import Database
from craft_server.engine import HostedModel
from craft_server.lease import Lease
from craft_server.ledger.prices import set_prices
from craft_server.noise import read_secret
from craft_server.notices import Notices
from craft_server.rate_limits import RateLimits
from craft_server.receipts import Receipts, Signer, key_file
from craft_server.recording.recorder import RecorderMiddleware
from craft_server.recording.tape import Tape
from craft_server.settings import Settings
from craft_server.simulate.profile import load_profile
from craft_server.simulate.provider import Provider, ProviderMiddleware
from craft_shared import tracing

_log = structlog.get_logger()

REFUND_SECONDS = 10
# In the order in which the API's description lists their calls.
_ROUTERS = [
    health.router,
    image_sets.router,
    predictions.router,
    account.router,
    adapters.router,
    predictions.adapters_router,
    run_reports.router,
    admin.router,
]


def create_app(
    settings: Settings,
    engine: HostedModel,
    database: Database | None = None,
    tape: Tape | None = None,
) -> FastAPI:
    """The server as an ASGI application.

    The engine and the tape stay the caller's to close; the database is closed with the application.
    Without `database` it opens the one that the settings name.

    Raises:
        DatabaseError: the database cannot be used.
        NoNoticeSecret: notices are to be sent, and cannot be signed.
        ProfileError: the profile of the provider to simulate cannot be used.
        ReceiptKeyError: the key that signs receipts cannot be used.
    """
    notice_key = settings.notice_key
    provider = Provider(None if settings.profile is None else load_profile(settings.profile))
    signer = Signer.open(key_file(settings), make=settings.receipt_key_file is None)
    if database is None:
        database = Database.open(settings.database_url, settings.data_dir)
        if database.mended:
            files = [str(path) for path in database.mended]
            _log.warning("others could read files; they cannot any more", files=files)
    if provider.profile is not None:
        run_at(provider.profile.clock.speed)
        with database.writing() as connection:
            set_prices(connection, engine.name, provider.profile.prices)
    with database.reading() as connection:
        noise_secret = read_secret(connection)
    services = Services(
        settings=settings,
        engine=engine,
        database=database,
        lease=Lease(
            database,
            seconds=settings.lease_seconds,
            answers_bytes=settings.answers_bytes,
            answers_hours=settings.answers_hours,
        ),
        rate_limits=RateLimits(settings.rate_limits_url),
        receipts=Receipts(database, signer, issuer=settings.receipt_issuer),
        in_flight=InFlight(),
        drain=Drain(),
        noise_secret=noise_secret,
        features=ByteCache(settings.features_cache_bytes),
        adapters=ByteCache(settings.adapters_cache_bytes),
        provider=provider,
    )

    notices = Notices(database, settings.notice_urls, notice_key)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        # Calls that the server's end cut off still have to be refunded.
        with suppress(TimeoutError):
            await asyncio.wait_for(services.in_flight.none(), REFUND_SECONDS)
        await asyncio.to_thread(notices.close)
        await asyncio.to_thread(services.lease.close)
        services.database.close()
        run_at(1)

    app = FastAPI(
        title="craftbox",
        version=version("craftbox"),
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        lifespan=lifespan,
        # Newer versions of FastAPI make spans themselves; see `_trace`.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.services = services
    for router in _ROUTERS:
        app.include_router(router)
    errors.install(app)
    openapi.install(app, _ROUTERS)
    install_console(app)
    # The last one added is the outermost: every log line and answer has the call's id.
    app.add_middleware(HangUpMiddleware)
    app.add_middleware(UnhandledErrorsMiddleware)
    app.add_middleware(RateLimitHeadersMiddleware)
    bodies = BodyGate(settings.most_bodies_bytes)
    app.add_middleware(BodyGateMiddleware, limits=settings.limits, gate=bodies)
    if tape is not None:
        app.add_middleware(RecorderMiddleware, tape=tape)
    app.add_middleware(CompressionMiddleware)
    app.add_middleware(ConsoleMiddleware)
    if provider.profile is not None:
        app.add_middleware(ProviderMiddleware, provider=provider)
    if settings.cors_origins:
        app.add_middleware(CorsMiddleware, origins=settings.cors_origins)
    if tracing.wanted():
        _trace(app)
    app.add_middleware(CallMiddleware, closing=lambda: services.drain.begun)
    return app


def _trace(app: FastAPI) -> None:
    """Makes a span of each call, named after its operation."""
    from opentelemetry import trace
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    def details(scope: Scope) -> tuple[str, dict[str, str]]:
        return scope["method"], {tracing.REQUEST_ID: scope["state"]["request_id"]}

    def naming(inner: ASGIApp) -> ASGIApp:
        async def named(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_named(message: Message) -> None:
                if message["type"] == "http.response.start":
                    trace.get_current_span().update_name(operation_of(scope))
                await send(message)

            await inner(scope, receive, send_named)

        return named

    app.add_middleware(naming)
    app.add_middleware(
        OpenTelemetryMiddleware, default_span_details=details, exclude_spans=["receive", "send"]
    )
