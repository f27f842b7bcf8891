"""The client in a virtual environment of its own, against a server in another."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.conftest import Server

ROOT = Path(__file__).parents[2]
SERVER_ONLY = ("open_clip", "fastapi", "sqlalchemy", "torch", "alembic", "uvicorn", "timm")


@pytest.fixture(scope="module")
def client_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("client") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    installed = subprocess.run(
        [folder / "bin/pip", "install", "--quiet", f"{ROOT}[client]"],
        capture_output=True,
        text=True,
    )
    assert installed.returncode == 0, installed.stderr
    return folder


def test_nothing_of_the_servers_comes_along(client_venv: Path) -> None:
    code = (
        "import importlib.util as u, json;"
        f"print(json.dumps([n for n in {SERVER_ONLY!r} if u.find_spec(n)]))"
    )
    found = subprocess.run(
        [client_venv / "bin/python", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert json.loads(found.stdout) == []


def test_it_tunes_against_a_server_elsewhere(
    client_venv: Path, server: Server, digits: Path, tmp_path: Path
) -> None:
    env = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "CRAFT_URL": server.url,
        "CRAFT_API_KEY": server.key("--queries", "100", owner="alone"),
    }
    command = [client_venv / "bin/craft", "tune", "--data", digits, "--shots", "2"]
    command += ["--budget", "72", "--run", tmp_path / "run", "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["charged"]["queries"] == 72
    assert (tmp_path / "run/adapter/adapter.safetensors").exists()
