"""A craft-server of a benchmark's own, and the craft command that asks it, as users run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from quickstart import free_port, wait_until_ready

BIN = Path(sys.executable).parent
UNITS = ("queries", "predictions", "images", "texts", "requests")


@contextmanager
def serving(model: str, folder: Path) -> Iterator[dict[str, str]]:
    """A craft-server process; gives the environment in which `craft` finds it."""
    with server_process(model, folder) as (env, _):
        yield env


@contextmanager
def server_process(model: str, folder: Path) -> Iterator[tuple[dict[str, str], int]]:
    """As `serving`, and the process's id."""
    port = free_port()
    env = {**os.environ, "CRAFT_DATA_DIR": str(folder), "CRAFT_URL": f"http://127.0.0.1:{port}"}
    key = command(env, "craft-server", "keys", "create", "--owner", "benchmark")
    env["CRAFT_API_KEY"] = key["key"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [BIN / "craft-server", "serve", "--model", model, "--port", str(port)],
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until_ready(env["CRAFT_URL"], server)
        yield env, server.pid
    finally:
        server.terminate()
        server.wait(60)


def command(env: dict[str, str], name: str, *arguments: object) -> dict[str, Any]:
    """Runs a command with --json and returns its document with the seconds that it took."""
    started = time.monotonic()
    done = subprocess.run(
        [BIN / name, *map(str, arguments), "--json"],
        env=env,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    document: dict[str, Any] = json.loads(done.stdout)
    return {**document, "seconds": time.monotonic() - started}
