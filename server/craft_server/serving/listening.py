"""A process that serves: its model, its address, its end, and what it says of them."""

from __future__ import annotations

import gc
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from craft_shared.printing import print_lines

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI
    from starlette.types import ASGIApp

    from craft_server.engine import Engine, HostedModel
    from craft_server.settings import Settings


GRACE_SECONDS = 30


@contextmanager
def exit_on(*kinds: type[Exception]) -> Iterator[None]:
    """Ends the process with one line on stderr and exit code 1 where one of these is raised."""
    try:
        yield
    except kinds as error:
        print_lines([f"Error: {' '.join(str(error).split())}"], err=True)
        raise SystemExit(1) from error


class CannotListen(Exception):  # noqa: N818 - reads as what it is where it is caught
    """The address cannot be taken; the message says why."""


@contextmanager
def listening(settings: Settings) -> Iterator[socket.socket]:
    """Takes the address before anything slow is done, so that a taken one is reported at once.

    Raises:
        CannotListen: it is taken, or none of this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )[0]
        # asyncio sets TCP_NODELAY only on sockets that name their protocol; without it, answers to
        # clients that keep their connection wait 40 ms for an acknowledgement.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise CannotListen(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror}"
        ) from error
    with closing(listener):
        yield listener


def end_on_sigterm() -> None:
    """Lets SIGTERM end the process in good order, until uvicorn takes over and after it stopped."""
    signal.signal(signal.SIGTERM, _stop)


def keep_what_is_loaded() -> None:
    """Spares what is there by now, and stays, from being looked through as possible garbage.

    A full collection would take half a second of it, in which the process answers nobody.
    """
    gc.freeze()


def announce(listener: socket.socket, root_path: str, more: str = "") -> None:
    """Says where the process listens, and below which path a proxy offers it."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print_lines([f"Listening on http://{shown}:{port}{root_path}{more}"])


def server_config(
    application: ASGIApp, settings: Settings, *, grace_seconds: int = GRACE_SECONDS
) -> uvicorn.Config:
    """How an application is served: in turn, bounded connections, no protocol besides HTTP/1.1.

    After the end calls that were accepted are answered, for up to `grace_seconds`.
    """
    import uvicorn
    from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

    from craft_server.root_path import RootPathMiddleware
    from craft_server.serving.connections import bounded
    from craft_server.serving.turns import InTurn

    protocol = bounded(settings)
    in_turn = InTurn(application, protocol.registry.crowded)
    # uvicorn has types of its own for what starlette's say, too.
    proxied: Any = ProxyHeadersMiddleware(in_turn, protocol.registry.trusted)  # type: ignore[arg-type]
    return uvicorn.Config(
        RootPathMiddleware(proxied, settings.root_path, proxied.trusted_hosts.__contains__),
        proxy_headers=False,  # which `proxied` does
        http=protocol,
        ws="none",
        timeout_keep_alive=settings.keep_alive_seconds,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=grace_seconds,
    )


def run(
    application: ASGIApp,
    settings: Settings,
    listener: socket.socket,
    *,
    drain_seconds: float = 0,
    on_stop: Callable[[], None] | None = None,
    engine: HostedModel | None = None,
) -> None:
    """Serves an application until the process is to stop.

    Then calls that were accepted are answered, for up to `GRACE_SECONDS`. For `drain_seconds` after
    SIGTERM calls are accepted; a second signal, or Ctrl+C, ends that. `on_stop` is called at once
    by the signal's handler; from then on the application's answers end their connections. Where an
    engine ends by itself the process stops at once, with exit code 1, to be started again.
    """
    import uvicorn

    class DrainingServer(uvicorn.Server):
        """Goes on for a while after the signal that ends it."""

        accepts_until: float | None = None

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            first = self.accepts_until is None
            longer = drain_seconds if first and sig == signal.SIGTERM else 0
            self.accepts_until = time.monotonic() + longer
            if on_stop is not None:
                on_stop()
            super().handle_exit(sig, frame)

        async def on_tick(self, counter: int) -> bool:
            stop = await super().on_tick(counter)
            return stop and time.monotonic() >= (self.accepts_until or 0)

    config = server_config(application, settings)
    keep_what_is_loaded()
    server = DrainingServer(config)
    if engine is None:
        server.run(sockets=[listener])
    else:
        with ended_by(engine, server):
            server.run(sockets=[listener])


@contextmanager
def ended_by(engine: HostedModel, server: uvicorn.Server) -> Iterator[None]:
    """Stops a server that runs in the block once its engine has ended by itself.

    Then the process ends with exit code 1.
    """
    dead = threading.Event()

    def stop() -> None:
        dead.set()
        server.should_exit = True

    engine.when_dead(stop)
    yield
    if dead.is_set():
        raise SystemExit(1)


def run_draining(
    application: FastAPI, settings: Settings, listener: socket.socket, engine: HostedModel
) -> None:
    """`run` for the server's application, which drains for as long as the settings say."""
    run(
        application,
        settings,
        listener,
        drain_seconds=settings.drain_seconds,
        on_stop=application.state.services.drain.begin,
        engine=engine,
    )


def _stop(_signal: int, _frame: object) -> NoReturn:
    raise SystemExit(0)


def engine_of(settings: Settings) -> Engine:
    """The model, loaded.

    Raises:
        ModelLoadError: it cannot be loaded.
    """
    from craft_server.engine import Engine, ModelSpec

    spec = ModelSpec(
        name=settings.model,
        pretrained=settings.pretrained,
        device=settings.device,
        precision=settings.precision,
    )
    return Engine.load(spec, text_features_bytes=settings.texts_cache_bytes)


def introduce(model: HostedModel) -> None:
    """Says which model it is, and whether its answers mean anything."""
    if model.random_weights:
        print_lines(
            [
                f"WARNING: RANDOM WEIGHTS. Model {model.name} has learned nothing and its "
                "predictions mean nothing: this is for tests. Name real weights with --pretrained."
            ],
            err=True,
        )
    print_lines([f"Model {model.name}, revision {model.revision}"])
