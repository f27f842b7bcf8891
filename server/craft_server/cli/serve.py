"""`craft-server serve`: hosts a model until it is told to stop."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from craft_server.cli.ledger import database_of
from craft_server.cli.options import DatabaseUrl, DataDir, settings_of
from craft_server.cli.output import fail
from craft_server.database import Database
from craft_server.ledger.keys import list_keys
from craft_server.settings import Settings

if TYPE_CHECKING:
    from craft_server.engine import Engine
    from craft_server.simulate import Profile

GRACE_SECONDS = 30


def serve(
    model: Annotated[
        str | None, typer.Option(help="pocket, or one of open_clip's (default pocket).")
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="open_clip's name of the weights, or a checkpoint's path.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, fastest, float32, float16 or bfloat16.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on (default 127.0.0.1).")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="TCP port (default 8000; 0: a free one).")
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="Behave like this provider: a shipped profile's name, or a TOML file "
            "(docs/profiles.md)."
        ),
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Host a model. Each option is also an environment variable, such as CRAFT_MODEL."""
    settings = settings_of(
        model=model,
        pretrained=pretrained,
        device=device,
        precision=precision,
        host=host,
        port=port,
        profile=profile,
        data_dir=data_dir,
        database_url=database_url,
    )
    _run(settings)


def _run(settings: Settings) -> None:
    profile = _profile_of(settings)
    with _serving_socket(settings) as listener, database_of(settings) as database:
        # Until uvicorn takes over, and once more after it has stopped.
        signal.signal(signal.SIGTERM, _stop)
        # The model's libraries take seconds to import, which only this command should wait for.
        import uvicorn

        from craft_server.app import create_app
        from craft_server.engine import Engine, ModelLoadError, ModelSpec
        from craft_server.logs import configure_logging
        from craft_server.receipts import ReceiptKeyError

        configure_logging()
        spec = ModelSpec(
            name=settings.model,
            pretrained=settings.pretrained,
            device=settings.device,
            precision=settings.precision,
        )
        try:
            engine = Engine.load(spec, text_features_bytes=settings.texts_cache_bytes)
        except ModelLoadError as error:
            fail(str(error))
        with closing(engine), suppress(KeyboardInterrupt):
            try:
                application = create_app(settings, engine, database)
            except ReceiptKeyError as error:
                fail(str(error))
            _announce(database, settings, listener, engine)
            if profile is not None:
                _announce_profile(profile)
            config = uvicorn.Config(
                application,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
            uvicorn.Server(config).run(sockets=[listener])


def _announce(
    database: Database, settings: Settings, listener: socket.socket, engine: Engine
) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    if engine.random_weights:
        typer.echo(
            f"WARNING: RANDOM WEIGHTS. Model {engine.name} has learned nothing and its predictions "
            "mean nothing: this is for tests. Name real weights with --pretrained.",
            err=True,
        )
    typer.echo(f"Model {engine.name}, revision {engine.revision}")
    typer.echo(f"Listening on http://{shown}:{port} (description at /docs)")
    with database.reading() as connection:
        has_keys = bool(list_keys(connection))
    if not has_keys:
        where = "--database-url ..." if settings.database_url else f"--data-dir {settings.data_dir}"
        typer.echo(f"There is no key yet. Make one: craft-server keys create --owner me {where}")
    sys.stdout.flush()


def _profile_of(settings: Settings) -> Profile | None:
    """Read before the model is loaded, so that a mistake in it is told at once."""
    from craft_server.simulate import ProfileError, load_profile

    try:
        return None if settings.profile is None else load_profile(settings.profile)
    except ProfileError as error:
        fail(f"--profile: {error}")


def _announce_profile(profile: Profile) -> None:
    typer.echo(
        f"SIMULATED PROVIDER: profile {profile.name}, version {profile.version}, {profile.digest}"
    )
    sys.stdout.flush()


@contextmanager
def _serving_socket(settings: Settings) -> Iterator[socket.socket]:
    """Takes the address before the model is loaded, so that a taken one is told at once."""
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
        fail(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}")
    with closing(listener):
        yield listener


def _stop(_signal: int, _frame: object) -> NoReturn:
    raise SystemExit(0)
