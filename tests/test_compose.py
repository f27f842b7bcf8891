"""docker-compose.yml, without a Docker engine: what it runs and sets exists."""

import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from craft_server.cli import app
from craft_server.settings import Settings

ROOT = Path(__file__).parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_every_setting_of_the_server_is_one_that_it_reads() -> None:
    names = COMPOSE["services"]["server"]["environment"]
    fields = {f"CRAFT_{name.upper()}" for name in Settings.model_fields}
    assert set(names) <= fields


def test_the_images_command_is_a_real_one() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    command = yaml.safe_load(next(line for line in lines if line.startswith("CMD"))[3:])
    help_text = CliRunner().invoke(app, [*command[1:2], "--help"], env={"COLUMNS": "200"}).output
    assert all(word in help_text for word in command if word.startswith("--"))


def test_volumes_and_dependencies_are_declared() -> None:
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            assert volume.split(":")[0] in COMPOSE["volumes"]
        assert set(service.get("depends_on", {})) <= set(COMPOSE["services"])


def test_nothing_is_published_beyond_this_machine() -> None:
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("name", ["install", "lint", "test", "quickstart"])
def test_scripts_are_executable(name: str) -> None:
    assert shutil.which(name, path=str(ROOT / "scripts"))
    assert shlex.split((ROOT / "scripts" / name).read_text().splitlines()[0])[-1] == "bash"
