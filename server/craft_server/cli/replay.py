"""`craft-server replay`: serves a recording, for which no model, torch or database is needed."""

from __future__ import annotations

from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated

import typer

from craft_server.cli.options import Host, Port, examples, settings_of
from craft_server.cli.output import print_lines
from craft_server.serving.failures import told
from craft_server.serving.listening import (
    CannotListen,
    announce,
    end_on_sigterm,
    listening,
    run,
)


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False, help="A recording.")],
    host: Host = None,
    port: Port = None,
) -> None:
    """Serve what 'craft-server record' has recorded, without a model. Any key is accepted.

    A call that was not recorded is answered with the problem 'not-recorded', which says how it
    differs from the one that comes nearest. Another key hears the recording from its beginning.
    """
    settings = settings_of(host=host, port=port)
    from craft_server.logs import configure_logging
    from craft_server.recording import Tape, TapeError
    from craft_server.recording.player import Player, player_app

    configure_logging(settings.log_level)
    with (
        told(TapeError, CannotListen),
        closing(Tape.play(file)) as tape,
        listening(settings) as listener,
        suppress(KeyboardInterrupt),
    ):
        end_on_sigterm()
        player = Player(tape)
        print_lines([f"Replaying '{file}': {player.answers} answers"])
        announce(listener)
        run(player_app(player, settings), settings, listener)


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""
    app.command(
        epilog=examples(
            "craft-server replay session.craft", "craft-server replay session.craft --port 9000"
        ),
        rich_help_panel=panel,
    )(replay)
