"""`craft-server serve`, `record` and `replay`: serve until SIGTERM or Ctrl-C."""

from __future__ import annotations

import socket
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from craft_server.cli import options
from craft_server.cli.ledger import database_of
from craft_server.cli.options import settings_of
from craft_server.cli.output import fail, misuse, print_lines, warn
from craft_server.serving.listening import (
    CannotListen,
    announce,
    end_on_sigterm,
    exit_on,
    listening,
    run,
    run_draining,
)
from craft_shared.commands import Typer, examples

if TYPE_CHECKING:
    from craft_server.database import Database
    from craft_server.recording.tape import Tape
    from craft_server.settings import Settings
    from craft_server.simulate.profile import Profile as ProviderProfile

app = Typer()
_PANEL = "Host a model"


@app.command(
    epilog=examples(
        "craft-server serve --model pocket",
        "craft-server serve --model ViT-B-32 --pretrained openai --port 9000",
        "craft-server serve --profile flaky",
    ),
    rich_help_panel=_PANEL,
    first=("model", "pretrained", "device", "port", "data_dir"),
)
def serve(
    model: options.Model = None,
    pretrained: options.Pretrained = None,
    device: options.Device = None,
    precision: options.Precision = None,
    profile: options.Profile = None,
    host: options.Host = None,
    port: options.Port = None,
    root_path: options.RootPath = None,
    workers: options.Workers = None,
    log_level: options.LogLevel = None,
    data_dir: options.DataDir = None,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Host a model until the process is stopped.

    Each option is also an environment variable, such as CRAFT_MODEL, and a line of
    craft-server.toml: craft-server config show tells which counts.
    """
    settings = _settings_to_host(**locals())
    if settings.workers > 1:
        _host_together(settings)
    else:
        _host(settings, None)


@app.command(
    epilog=examples("craft-server record --out session.craft"),
    rich_help_panel=_PANEL,
    first=("out", "model", "pretrained", "device", "port"),
)
def record(
    out: Annotated[
        Path,
        typer.Option("--out", dir_okay=False, help="The recording. An existing file is extended."),
    ],
    model: options.Model = None,
    pretrained: options.Pretrained = None,
    device: options.Device = None,
    precision: options.Precision = None,
    profile: options.Profile = None,
    host: options.Host = None,
    port: options.Port = None,
    root_path: options.RootPath = None,
    workers: options.Workers = None,
    log_level: options.LogLevel = None,
    data_dir: options.DataDir = None,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Host a model, and record clients' calls and their answers in a file.

    'craft-server replay' serves the file without a model. No key is ever in it, nor any picture.
    """
    given = {name: value for name, value in locals().items() if name != "out"}
    settings = _settings_to_host(**given)
    from craft_server.recording.tape import Tape, TapeError

    if settings.workers > 1:
        misuse("--workers: one process makes a recording; leave it out")
    try:
        tape = Tape.record(out)
    except TapeError as error:
        fail(f"--out: {error}")
    if tape.mended:
        warn(f"others could read '{out}'; they cannot any more")
    with closing(tape):
        _host(settings, tape)


@app.command(
    epilog=examples(
        "craft-server replay session.craft", "craft-server replay session.craft --port 9000"
    ),
    rich_help_panel=_PANEL,
    first=("host", "port"),
)
def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False, help="A recording.")],
    host: options.Host = None,
    port: options.Port = None,
    root_path: options.RootPath = None,
) -> None:
    """Serve what 'craft-server record' has recorded, without a model. Any key is accepted.

    A call that was not recorded is answered with the problem 'not-recorded', which says how it
    differs from the one that comes nearest. Another key hears the recording from its beginning.
    """
    settings = settings_of(host=host, port=port, root_path=root_path)
    from craft_server.recording.player import Player, player_app
    from craft_server.recording.tape import Tape, TapeError
    from craft_server.telemetry import configure_logging

    configure_logging(settings.log_level)
    with (
        exit_on(TapeError, CannotListen),
        closing(Tape.play(file)) as tape,
        listening(settings) as listener,
        suppress(KeyboardInterrupt),
    ):
        end_on_sigterm()
        player = Player(tape)
        print_lines([f"Replaying '{file}': {player.answers} answers"])
        announce(listener, settings.root_path)
        run(player_app(player, settings), settings, listener)


def _settings_to_host(**given: Any) -> Settings:
    """Looked at whole before the model is loaded, so that a mistake is reported at once."""
    from craft_server.settings import NoNoticeSecret

    settings = settings_of(**given)
    try:
        _ = settings.notice_key
    except NoNoticeSecret as error:
        misuse(f"setting {error}")
    return settings


def _host(settings: Settings, tape: Tape | None) -> None:
    from craft_shared.tracing import TracingUnavailable, tracing

    profile = _profile_of(settings)
    with (
        exit_on(CannotListen, TracingUnavailable),
        tracing("craft-server", database=True),
        listening(settings) as listener,
        database_of(settings) as database,
    ):
        end_on_sigterm()
        # The model's libraries take seconds to import, which only these commands should wait for.
        from craft_server.app import create_app
        from craft_server.engine import ModelLoadError
        from craft_server.receipts import ReceiptKeyError
        from craft_server.serving.listening import engine_of, introduce
        from craft_server.telemetry import configure_logging

        configure_logging(settings.log_level)
        with (
            exit_on(ModelLoadError, ReceiptKeyError),
            closing(engine_of(settings)) as engine,
            suppress(KeyboardInterrupt),
        ):
            application = create_app(settings, engine, database, tape)
            introduce(engine)
            _announce(database, settings, listener, profile)
            run_draining(application, settings, listener, engine)


def _host_together(settings: Settings) -> None:
    """Like `_host`, with some processes that speak HTTP and one that has the model."""
    if settings.profile is not None:
        misuse("--profile: a simulated provider is one process; leave --workers out")
    with (
        exit_on(CannotListen),
        listening(settings) as listener,
        database_of(settings) as database,
    ):
        from craft_server.processes.supervisor import host
        from craft_server.telemetry import configure_logging

        configure_logging(settings.log_level)
        if settings.rate_limits_url is None:
            print_lines(
                [
                    f"Keys' limits a minute are counted by each of the {settings.workers} "
                    "processes for itself: name a Redis with CRAFT_RATE_LIMITS_URL to have them "
                    "exact."
                ],
                err=True,
            )
        host(settings, listener, lambda: _announce(database, settings, listener, None))


def _profile_of(settings: Settings) -> ProviderProfile | None:
    """Read before the model is loaded, so that a mistake in it is reported at once."""
    from craft_server.simulate.profile import ProfileError, load_profile

    try:
        return None if settings.profile is None else load_profile(settings.profile)
    except ProfileError as error:
        fail(f"--profile: {error}")


def _announce(
    database: Database, settings: Settings, listener: socket.socket, profile: ProviderProfile | None
) -> None:
    from craft_server.ledger.keys import any_key

    if profile is not None:
        print_lines(
            [
                f"SIMULATED PROVIDER: profile {profile.name}, version {profile.version}, "
                f"{profile.digest}"
            ]
        )
    root = settings.root_path
    announce(listener, root, f" (console at {root}/, description at {root}/docs)")
    with database.reading() as connection:
        has_keys = any_key(connection)
    if not has_keys:
        where = "--database-url ..." if settings.database_url else f"--data-dir {settings.data_dir}"
        print_lines([f"There is no key yet. Make one: craft-server keys create --owner me {where}"])
