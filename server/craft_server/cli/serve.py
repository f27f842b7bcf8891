"""`craft-server serve` and `record`: host a model until told to stop."""

from __future__ import annotations

import socket
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from craft_server.cli.ledger import database_of
from craft_server.cli.listening import announce, end_on_sigterm, listening, run
from craft_server.cli.options import DatabaseUrl, DataDir, Host, Port, settings_of
from craft_server.cli.output import fail
from craft_server.database import Database
from craft_server.ledger.keys import list_keys
from craft_server.settings import Settings
from craft_shared.plugins import PluginError

if TYPE_CHECKING:
    from craft_server.recording import Tape
    from craft_server.simulate import Profile

_Model = Annotated[str | None, typer.Option(help="pocket, or one of open_clip's (default pocket).")]
_Pretrained = Annotated[
    str | None, typer.Option(help="open_clip's name of the weights, or a checkpoint's path.")
]
_Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
_Precision = Annotated[
    str | None, typer.Option(help="auto, fastest, float32, float16 or bfloat16.")
]
_Workers = Annotated[
    int | None,
    typer.Option(
        help="Processes that speak HTTP (default 1); with 2 or more, the model has one of its own."
    ),
]
_Profile = Annotated[
    str | None,
    typer.Option(
        help="Behave like this provider: a shipped profile's name, or a TOML file "
        "(docs/profiles.md)."
    ),
]


def serve(
    model: _Model = None,
    pretrained: _Pretrained = None,
    device: _Device = None,
    precision: _Precision = None,
    host: Host = None,
    port: Port = None,
    workers: _Workers = None,
    profile: _Profile = None,
    output_policy: Annotated[
        str | None,
        typer.Option(help="A plug-in that narrows what keys see (docs/plugins.md)."),
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
        workers=workers,
        profile=profile,
        output_policy=output_policy,
        data_dir=data_dir,
        database_url=database_url,
    )
    _check_output_policy(settings)
    if settings.workers > 1:
        _host_together(settings)
    else:
        _host(settings, None)


def record(
    out: Annotated[
        Path,
        typer.Option(
            "--out", dir_okay=False, help="The recording; what there is already is added to."
        ),
    ],
    model: _Model = None,
    pretrained: _Pretrained = None,
    device: _Device = None,
    precision: _Precision = None,
    host: Host = None,
    port: Port = None,
    profile: _Profile = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Host a model, and keep what clients ask and are answered in a file.

    'craft-server replay' serves the file without a model. No key is ever in it, nor any picture.
    """
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
    _check_output_policy(settings)
    from craft_server.recording import Tape, TapeError

    try:
        tape = Tape.record(out)
    except TapeError as error:
        fail(f"--out: {error}")
    with closing(tape):
        _host(settings, tape)


def _host(settings: Settings, tape: Tape | None) -> None:
    profile = _profile_of(settings)
    with listening(settings) as listener, database_of(settings) as database:
        end_on_sigterm()
        # The model's libraries take seconds to import, which only these commands should wait for.
        from craft_server.app import create_app
        from craft_server.cli.model import engine_of, introduce
        from craft_server.cli.tracing import traced
        from craft_server.logs import configure_logging
        from craft_server.receipts import ReceiptKeyError

        configure_logging()
        with traced(), closing(engine_of(settings)) as engine, suppress(KeyboardInterrupt):
            try:
                application = create_app(settings, engine, database, tape)
            except ReceiptKeyError as error:
                fail(str(error))
            introduce(engine)
            _announce(database, settings, listener, profile)
            run(
                application,
                listener,
                drain_seconds=settings.drain_seconds,
                on_stop=application.state.services.drain.begin,
            )


def _host_together(settings: Settings) -> None:
    """Like `_host`, with some processes that speak HTTP and one that has the model."""
    if settings.profile is not None:
        fail("--profile: a simulated provider is one process; leave --workers out")
    with listening(settings) as listener, database_of(settings) as database:
        from craft_server.logs import configure_logging
        from craft_server.processes.host import host

        configure_logging()
        if settings.rate_limits_url is None:
            typer.echo(
                f"Keys' limits a minute are counted by each of the {settings.workers} processes "
                "for itself: name a Redis with CRAFT_RATE_LIMITS_URL to have them exact.",
                err=True,
            )
        host(settings, listener, lambda: _announce(database, settings, listener, None))


def _check_output_policy(settings: Settings) -> None:
    """Before the model is loaded, so that a plug-in that is missing or broken is told at once."""
    from craft_server.output_policies import output_policy

    try:
        output_policy(settings.output_policy)
    except PluginError as error:
        fail(f"--output-policy: {error}")


def _profile_of(settings: Settings) -> Profile | None:
    """Read before the model is loaded, so that a mistake in it is told at once."""
    from craft_server.simulate import ProfileError, load_profile

    try:
        return None if settings.profile is None else load_profile(settings.profile)
    except ProfileError as error:
        fail(f"--profile: {error}")


def _announce(
    database: Database, settings: Settings, listener: socket.socket, profile: Profile | None
) -> None:
    if profile is not None:
        typer.echo(
            f"SIMULATED PROVIDER: profile {profile.name}, version {profile.version}, "
            f"{profile.digest}"
        )
    announce(listener, " (console at /, description at /docs)")
    with database.reading() as connection:
        has_keys = bool(list_keys(connection))
    if not has_keys:
        where = "--database-url ..." if settings.database_url else f"--data-dir {settings.data_dir}"
        typer.echo(f"There is no key yet. Make one: craft-server keys create --owner me {where}")
    sys.stdout.flush()
