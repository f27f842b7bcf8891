"""Other models than pocket, as an operator starts them."""

import os
import subprocess
from pathlib import Path

import httpx

from e2e.conftest import BIN, StartServer
from quickstart import free_port


def test_rn50_without_weights_starts_and_says_so_loudly(start_server: StartServer) -> None:
    server = start_server("--model", "RN50")
    assert "RANDOM WEIGHTS" in (server.folder / "server.log").read_text()
    key = server.key()
    cards = httpx.get(f"{server.url}/v1/models", headers={"Authorization": f"Bearer {key}"}).json()
    assert [card["name"] for card in cards["models"]] == ["RN50"]
    server.process.terminate()


def test_weights_that_cannot_be_had_are_one_clear_line(tmp_path: Path) -> None:
    env = {
        **os.environ,
        "CRAFT_DATA_DIR": str(tmp_path / "data"),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "empty-cache"),
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path),
    }
    command = [BIN / "craft-server", "serve", "--model", "RN50", "--pretrained", "openai"]
    done = subprocess.run(
        [*command, "--port", str(free_port())], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1
    assert "RN50" in errors[0]
    assert "openai" in errors[0]
