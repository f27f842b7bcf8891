"""README's words: every command, option and link in it exists."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from craft_client.cli import app as craft
from craft_server.cli import app as craft_server

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
COMMANDS = [
    shlex.split(line, comments=True)
    for line in SHELL.splitlines()
    if line.startswith(("craft ", "craft-server "))
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_and_options_exist(words: list[str]) -> None:
    app = craft if words[0] == "craft" else craft_server
    path = words[1:3] if words[1] == "keys" else words[1:2]
    shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    for option in (word for word in words if word.startswith("--")):
        assert option in shown.output


def test_the_two_first_commands_are_scripts() -> None:
    first, second = [line for line in SHELL.splitlines() if line.startswith("scripts/")]
    assert (ROOT / first).exists()
    assert (ROOT / second).exists()


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(target: str) -> None:
    assert target.startswith("https://") or (ROOT / target).exists()
