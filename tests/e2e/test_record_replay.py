"""A tuning run recorded, and played back by a process that could not load a model if it wanted."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from craft_client.api import Client
from craft_client.exceptions import NotRecorded
from e2e.bounds import check_bounds
from e2e.conftest import Server, StartServer
from e2e.programs import CRAFT_SERVER, run

TUNE = ("--shots", "2", "--seed", "5", "--recipe", "bbt", "--population", "8", "--budget", "28")
WITHOUT_MODELS = """
import sys

class Forbidding:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "open_clip", "timm", "torchvision"}:
            raise ImportError(f"{name} must not be imported")

sys.meta_path.insert(0, Forbidding())
from craft_server.cli import app
app(["replay", *sys.argv[1:]])
"""


@dataclass
class Recorded:
    """A session on a tape, whose server was killed at its end."""

    tape: Path
    run: Path
    tuned: dict[str, Any]
    budgets: list[dict[str, Any]]
    usage: dict[str, Any]
    keys: list[str]


@pytest.fixture(scope="module")
def recorded(
    start_server: StartServer, digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> Recorded:
    folder = tmp_path_factory.mktemp("recorded")
    tape, run = folder / "session.craft", folder / "run"
    server = start_server("--out", tape, command="record")
    key = server.key("--queries", "1000", owner="recorded")
    tuned = server.craft_json(key, "tune", "--data", digits, *TUNE, "--run", run)
    budgets = server.craft_json(key, "budget")["budgets"]
    usage = server.craft_json(key, "usage")
    # What concerns keys must not get onto the tape either.
    admin = server.key("--scope", "admin", owner="operator")
    headers = {"Authorization": f"Bearer {admin}"}
    made = httpx.post(f"{server.url}/v1/admin/keys", json={"owner": "other"}, headers=headers)
    assert made.status_code == 201
    slip = httpx.get(f"{server.url}/v1/adapters/{key}", headers={"Authorization": f"Bearer {key}"})
    assert slip.status_code == 404
    server.process.send_signal(signal.SIGKILL)
    server.process.wait(30)
    return Recorded(tape, run, tuned, budgets, usage, [key, admin, made.json()["key"]])


@pytest.fixture(scope="module")
def replay(recorded: Recorded, start_server: StartServer) -> Server:
    return start_server(recorded.tape, program=(sys.executable, "-c", WITHOUT_MODELS))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_replayed_run_gives_the_identical_adapter_at_the_recorded_price(
    recorded: Recorded, replay: Server, digits: Path, tmp_path: Path
) -> None:
    for number in range(2):  # another key hears the recording from its beginning
        key, run = f"any-key-{number}", tmp_path / str(number)
        tuned = replay.craft_json(key, "tune", "--data", digits, *TUNE, "--run", run)
        assert files_of(run / "adapter") == files_of(recorded.run / "adapter")
        same = ("charged", "history", "revision", "image_set", "accuracy_after")
        assert {name: tuned[name] for name in same} == {name: recorded.tuned[name] for name in same}
        assert replay.craft_json(key, "budget")["budgets"] == recorded.budgets
        assert replay.craft_json(key, "usage") == recorded.usage


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--seed", "6"), "context.seed"),
        (("--shots", "3"), "files"),
        (("--population", "9", "--budget", "11"), "codes"),
        (("--template", "a drawing of a {}."), "templates[0]"),
    ],
    ids=["another seed", "more pictures", "more codes", "another template"],
)
def test_off_the_recorded_path_it_says_what_differs(
    replay: Server, digits: Path, tmp_path: Path, options: tuple[str, ...], named: str
) -> None:
    run = tmp_path / "run"
    done = replay.craft("off", "tune", "--data", digits, *TUNE, *options, "--run", run)
    assert done.returncode == 1
    assert "The recording has no answer to this call" in done.stderr
    assert f"{named}:" in done.stderr


def test_a_replay_bounds_connections_as_a_server_does(replay: Server) -> None:
    check_bounds(replay.url)


def test_an_address_that_was_never_called_is_told(replay: Server) -> None:
    with Client(replay.url, "any") as client, pytest.raises(NotRecorded, match="at all") as caught:
        client.adapters()
    assert caught.value.problem.status == 404
    answer = httpx.get(f"{replay.url}/v1/adapters", headers={"Authorization": "Bearer any"})
    assert answer.headers["content-type"] == "application/problem+json"
    assert json.loads(answer.text)["type"] == "urn:craftbox:problem:not-recorded"


def test_no_key_is_in_the_recording(recorded: Recorded) -> None:
    tape = b"".join(
        path.read_bytes() for path in recorded.tape.parent.glob(recorded.tape.name + "*")
    )
    assert b"is_" in tape
    for key in recorded.keys:
        secret = key.split("_", 2)[2]
        assert key.encode() not in tape
        assert secret.encode() not in tape


def test_what_is_no_recording_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a recording, but long enough to be read as something\n")
    for name in ("text", "missing"):
        done = run(CRAFT_SERVER, ["replay", str(tmp_path / name), "--port", "0"], os.environ)
        assert done.returncode == 1
        assert done.stderr.startswith("Error: ")
        assert "Traceback" not in done.stderr
