"""The API's description against a running server: schemathesis with all of its checks, in a process
of its own, over a socket. Short here; ten minutes a key by scripts/contract (CRAFT_TEST_FULL=1)."""

import json
import os
import subprocess
from pathlib import Path

import httpx
import pytest

from e2e.conftest import BIN, Server, StartServer, start_server  # noqa: F401
from server.conftest import migrated_sqlite  # noqa: F401

HERE = Path(__file__).parent
FULL = bool(os.environ.get("CRAFT_TEST_FULL"))
SCOPES = {
    "an administrator's key": ["--scope", "predict", "--scope", "publish", "--scope", "admin"],
    "a plain key": [],
}
PHASES = {"calls": "examples,coverage,fuzzing"}
# An administrator's key may do what a plain one may, and is answered by the same code.
OPTIONS: dict[str, tuple[str, ...]] = {
    "an administrator's key": ("--max-time", "25"),
    "a plain key": ("--max-time", "8", "--include-path-regex", "^/v1/admin"),
}
if FULL:
    # A few seconds of them reach hardly any link between calls.
    PHASES["sequences of calls"] = "stateful"
    OPTIONS = dict.fromkeys(SCOPES, ("--max-time", "300"))


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> Server:  # noqa: F811
    return start_server("--model", "pocket")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", SCOPES)
@pytest.mark.parametrize("what", PHASES)
def test_every_answer_is_as_the_description_says(
    kind: str, what: str, server: Server, tmp_path: Path
) -> None:
    key = server.key(*SCOPES[kind])
    hosted = httpx.get(f"{server.url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    revision = hosted.json()["models"][0]["revision"]
    report = tmp_path / "report.json"
    command = [BIN / "st", "--config-file", HERE / "schemathesis.toml", "run"]
    command += [f"{server.url}/openapi.json", "--no-color", "--phases", PHASES[what]]
    command += [*OPTIONS[kind], "--report", "json", "--report-json-path", report]
    if not FULL:
        command += ["--no-shrink", "--generation-deterministic"]
    done = subprocess.run(
        command,
        env={**os.environ, "CRAFT_API_KEY": key, "CONTRACT_REVISION": revision},
        capture_output=True,
        text=True,
        cwd=HERE,
    )
    print(kind, what, done.stdout, sep="\n")
    assert done.returncode == 0, done.stderr
    operations = json.loads(report.read_text())["operations"]
    assert operations["tested"] == operations["selected"] or what == "sequences of calls"
    assert "Traceback" not in (server.folder / "server.log").read_text()
