"""The client in a virtual environment of its own, against a server and a client in another."""

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
        [folder / "bin/pip", "install", "--quiet", "--no-compile", f"{ROOT}[client]"],
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
    command += ["--run", tmp_path / "run", "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["charged"]["queries"] == 1
    assert (tmp_path / "run/adapter/adapter.safetensors").exists()


LOCAL = """
import json, sys
from pathlib import Path
import numpy as np
from craft_client.api import Client
from craft_shared.adapter import Adapter
from craft_shared.wire import PredictionRequest

adapter, files = Adapter.load(Path(sys.argv[1])), sys.argv[2:]
with Client() as client:
    question = PredictionRequest(
        model=adapter.config.model,
        classes=adapter.config.scored,
        templates=adapter.config.templates,
        context=adapter.config.context,
    )
    images = [open(file, "rb").read() for file in files]
    codes = adapter.codes if adapter.config.codes else None
    log_probs = client.predict(question, codes=codes, images=images).log_probs
print(json.dumps(np.exp(adapter.head(log_probs)).tolist()))
"""


def test_another_client_predicts_by_name_what_the_tuner_predicts_locally(
    client_venv: Path, server: Server, digits: Path, tmp_path: Path
) -> None:
    """Two keys of two owners, in two virtual environments; the second has seen no picture."""
    env = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "CRAFT_URL": server.url,
        "CRAFT_API_KEY": server.key(owner="tuner elsewhere"),
    }

    def tuner(*arguments: str | Path) -> str:
        done = subprocess.run(
            [client_venv / "bin" / arguments[0], *arguments[1:]],
            env=env,
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    tuner("craft", "tune", "--data", digits, "--shots", "4", "--run", "run")
    tuner("craft", "publish", "run", "--name", "figures", "--alias", "stable")
    files = sorted((digits / "test").rglob("*.png"))[:12]
    local = json.loads(tuner("python", "-c", LOCAL, "run/adapter", *files))
    assert (tmp_path / "run/adapter/receipt.jws").exists()

    other = server.key(owner="somebody else")
    reference = "tuner elsewhere/figures@stable"
    refused = server.craft(other, "predict", *files, "--adapter", reference)
    assert refused.returncode != 0
    assert "There is no such adapter" in refused.stderr
    tuner("craft", "share", "figures", "--with-key", other.split("_")[1])
    found = server.craft_json(other, "predict", *files, "--adapter", reference, "--top", "10")
    classes = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())["classes"]
    for picture, expected in zip(found["images"], local, strict=True):
        served = {best["class"]: best["probability"] for best in picture["classes"]}
        for name, probability in zip(classes, expected, strict=True):
            assert abs(served[name] - probability) < 1e-4
    assert found["charged"]["images"] == 12
