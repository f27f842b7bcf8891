"""What tests of deployment files share: the files, and whether what they name exists."""

from __future__ import annotations

import argparse
import runpy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from craft_client.cli import app as craft
from craft_client.network import KEY_FILE_VARIABLE, KEY_VARIABLE, URL_VARIABLE
from craft_server.cli import app as craft_server
from craft_server.settings import SECRETS_VARIABLE, Settings

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
LONG_RUNNING = {"database", "server-cpu", "server-nvidia", "prometheus", "grafana"}
VARIABLES = {f"CRAFT_{name.upper()}" for name in Settings.model_fields} | {
    URL_VARIABLE,
    KEY_VARIABLE,
    KEY_FILE_VARIABLE,
    SECRETS_VARIABLE,
}


def check_variables(names: Iterable[str]) -> None:
    """Each variable of craftbox's is one that the server or the client reads."""
    ours = {name.partition("__")[0] for name in names if name.startswith("CRAFT_")}
    assert ours <= VARIABLES, ours - VARIABLES


def check_command(command: Sequence[str]) -> None:
    """The command and its options exist."""
    options = [word.partition("=")[0] for word in command if word.startswith("--")]
    if command[0] == "python":
        script = ROOT / "examples" / Path(command[1]).name
        shown = _help_of_script(script)
    else:
        app = {"craft": craft, "craft-server": craft_server}[command[0]]
        path = command[1:3] if command[1] in ("keys", "ledger") else command[1:2]
        words = [word for word in path if not word.startswith("-")]
        done = CliRunner().invoke(app, [*words, "--help-all"], env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output
        shown = done.output
    for option in options:
        assert option in shown


def _help_of_script(script: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        shown: list[str] = []

        def print_help(parser: argparse.ArgumentParser, file: Any = None) -> None:
            shown.append(parser.format_help())

        patch.setattr(argparse.ArgumentParser, "print_help", print_help)
        patch.setattr("sys.argv", [str(script), "--help"])
        with pytest.raises(SystemExit):
            runpy.run_path(str(script), run_name="__main__")
        return shown[0]
