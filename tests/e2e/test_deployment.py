"""What docker-compose.yml runs, run by hand: its environments and commands, addresses replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from deployed import COMPOSE, ROOT
from server.conftest import new_postgresql  # noqa: F401

from .conftest import BIN, Server, StartServer

SERVICES: dict[str, Any] = COMPOSE["services"]


@dataclass
class Deployment:
    """The compose file's services as processes.

    Attributes:
        server: the running server.
        volumes: by the path at which containers mount them, where they are here.
        environment: of a service, by its name.
    """

    server: Server
    volumes: dict[str, str]
    environment: Callable[[str], dict[str, str]]

    def run(self, service: str) -> subprocess.CompletedProcess[str]:
        """Runs a one-shot service to its end."""
        program, *words = (self.here(word) for word in SERVICES[service]["command"])
        command = [sys.executable if program == "python" else str(BIN / program), *words]
        env = {**self.environment(service), "COLUMNS": "200"}
        return subprocess.run(command, env=env, capture_output=True, text=True)

    def here(self, text: str) -> str:
        """A word of a command or an environment, with the containers' paths replaced."""
        for there, path in self.volumes.items():
            text = text.replace(there, path)
        return text


@pytest.fixture(scope="module")
def deployment(
    start_server: StartServer,
    new_postgresql: Callable[[], str],  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Deployment:
    folder = tmp_path_factory.mktemp("deployed")
    paths = ("/keys/client", "/keys/metrics", "/work", "/pictures", "/data", "/run/secrets")
    volumes = {path: str(folder / path.strip("/").replace("/", "-")) for path in paths}
    volumes["/examples"] = str(ROOT / "examples")
    for path in paths:
        Path(volumes[path]).mkdir()
    secrets = Path(volumes["/run/secrets"])
    (secrets / "craft_database_password").write_text("of-the-file\n")
    database = urlsplit(new_postgresql())
    address = ""

    def environment(service: str) -> dict[str, str]:
        given = {name: str(value) for name, value in SERVICES[service]["environment"].items()}
        replaced = {name: deployed.here(value) for name, value in given.items()}
        if "CRAFT_DATABASE_URL" in replaced:
            there, here = (
                "craft@database/craft",
                f"{database.netloc}{database.path}?{database.query}",
            )
            assert there in replaced["CRAFT_DATABASE_URL"]
            replaced["CRAFT_DATABASE_URL"] = replaced["CRAFT_DATABASE_URL"].replace(there, here)
            replaced["CRAFT_SECRETS_DIR"] = str(secrets)
        if "CRAFT_URL" in replaced:
            assert replaced["CRAFT_URL"] == "http://server:8000"
            replaced["CRAFT_URL"] = address
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CRAFT_")}
        return {**kept, **replaced}

    deployed = Deployment(None, volumes, environment)  # type: ignore[arg-type] # not used here
    program, serve, *options = SERVICES["server-cpu"]["command"]
    assert options == ["--host", "0.0.0.0", "--port", "8000"]
    deployed.server = start_server(
        "--host", "127.0.0.1", program=(BIN / program, serve), **environment("server-cpu")
    )
    address = deployed.server.url
    return deployed


@pytest.fixture(scope="module")
def tuned(deployment: Deployment) -> subprocess.CompletedProcess[str]:
    """The one-shot client's run, after the one-shot that makes its key."""
    made = deployment.run("client-key")
    assert made.returncode == 0, made.stderr
    return deployment.run("client")


def client_key(deployment: Deployment) -> str:
    return (Path(deployment.volumes["/keys/client"]) / "key").read_text()


def test_the_client_tunes_and_publishes(
    deployment: Deployment, tuned: subprocess.CompletedProcess[str]
) -> None:
    assert tuned.returncode == 0, tuned.stdout + tuned.stderr
    with httpx.Client(
        base_url=deployment.server.url,
        headers={"Authorization": f"Bearer {client_key(deployment)}"},
    ) as client:
        (adapter,) = client.get("/v1/adapters").json()["adapters"]
        assert adapter["name"] == "compose"
        usage = client.get("/v1/usage").json()
    assert usage["total"]["queries"] > 0


def test_the_adapter_is_served(
    deployment: Deployment, tuned: subprocess.CompletedProcess[str]
) -> None:
    picture = next((Path(deployment.volumes["/work"]) / "digits/test/three").glob("*.png"))
    answer = deployment.server.craft_json(
        client_key(deployment), "predict", picture, "--adapter", "compose"
    )
    assert "three" in json.dumps(answer)


def test_started_again_the_one_shots_do_nothing(
    deployment: Deployment, tuned: subprocess.CompletedProcess[str]
) -> None:
    key = client_key(deployment)
    again = deployment.run("client-key")
    assert again.returncode == 0
    assert client_key(deployment) == key
    done = deployment.run("client")
    assert done.returncode == 0
    assert "Published already" in done.stdout


def test_the_password_of_the_file_is_in_nothing_that_is_printed(deployment: Deployment) -> None:
    assert "of-the-file" not in (deployment.server.folder / "server.log").read_text()


def test_the_key_that_is_made_for_prometheus_opens_metrics(deployment: Deployment) -> None:
    made = deployment.run("metrics-key")
    assert made.returncode == 0, made.stderr
    key = (Path(deployment.volumes["/keys/metrics"]) / "key").read_text()
    headers = {"Authorization": f"Bearer {key}"}
    answer = httpx.get(f"{deployment.server.url}/metrics", headers=headers)
    assert answer.status_code == 200
    assert "craft_engine_alive 1.0" in answer.text
