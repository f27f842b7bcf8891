from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from craft_server.cli import _serving_socket, app
from craft_server.database import Database
from craft_server.ledger.keys import authenticate
from craft_server.settings import Settings


@pytest.fixture
def craft_server(store_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs `craft-server` on an empty database of each kind."""
    monkeypatch.setenv("CRAFT_DATABASE_URL", store_url)
    monkeypatch.setenv("CRAFT_DATA_DIR", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(app, [str(part) for part in arguments])


def create(craft_server: Any, *arguments: str) -> dict[str, Any]:
    done = craft_server("keys", "create", "--owner", "me", "--json", *arguments)
    assert done.exit_code == 0, done.output
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def check_error(done: Result, words: str) -> None:
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("Error: ")
    assert words in done.stderr
    assert "Traceback" not in done.output


def test_a_made_key_is_the_last_line_and_works(
    craft_server: Any, store_url: str, tmp_path: Path
) -> None:
    done = craft_server("keys", "create", "--owner", "me", "--queries", 5)
    key = done.stdout.splitlines()[-1]
    database = Database.open(store_url, tmp_path)
    with database.reading() as connection:
        caller = authenticate(connection, key)
    database.close()
    assert caller is not None
    assert caller.owner == "me"


def test_a_key_is_shown_once(craft_server: Any) -> None:
    made = create(craft_server, "--name", "laptop", "--queries", "5", "--texts", "0")
    assert made["budgets"] == {"queries": 5, "texts": 0}
    listed = craft_server("keys", "list", "--json")
    (entry,) = json.loads(listed.stdout)
    assert (entry["prefix"], entry["owner"], entry["name"]) == (made["prefix"], "me", "laptop")
    secret = made["key"].split("_", 2)[2]
    for command in (("keys", "list"), ("budgets", "show", made["prefix"])):
        assert secret not in craft_server(*command).output


def test_a_top_up_adds_to_the_limit(craft_server: Any) -> None:
    prefix = create(craft_server, "--queries", "5", "--images", "1")["prefix"]
    done = craft_server("budgets", "top-up", prefix, "--queries", 3, "--images", 2, "--json")
    assert {budget["unit"]: budget["limit"] for budget in json.loads(done.stdout)} == {
        "queries": 8,
        "images": 3,
    }
    assert "8" in craft_server("budgets", "show", prefix).stdout


def test_a_top_up_of_an_unbounded_unit_is_an_error(craft_server: Any) -> None:
    prefix = create(craft_server, "--queries", "5")["prefix"]
    check_error(
        craft_server("budgets", "top-up", prefix, "--queries", 1, "--texts", 3),
        "no budget on texts",
    )
    (budget,) = json.loads(craft_server("budgets", "show", prefix, "--json").stdout)
    assert budget["limit"] == 5


def test_a_top_up_of_nothing_is_an_error(craft_server: Any) -> None:
    prefix = create(craft_server)["prefix"]
    check_error(craft_server("budgets", "top-up", prefix), "--queries")


def test_a_revoked_key_is_listed_as_such(craft_server: Any) -> None:
    prefix = create(craft_server)["prefix"]
    assert craft_server("keys", "revoke", prefix).exit_code == 0
    (entry,) = json.loads(craft_server("keys", "list", "--json").stdout)
    assert entry["revoked_at"]


@pytest.mark.parametrize(
    "command", [("keys", "revoke"), ("budgets", "show"), ("budgets", "top-up", "--queries", "1")]
)
def test_an_unknown_prefix_is_an_error(craft_server: Any, command: tuple[str, ...]) -> None:
    check_error(craft_server(*command, "abcdefgh"), "no key abcdefgh")


@pytest.mark.parametrize("amount", ["-1", "x", str(10**16)])
def test_a_limit_must_be_a_sane_number(craft_server: Any, amount: str) -> None:
    done = craft_server("keys", "create", "--owner", "me", "--queries", amount)
    assert done.exit_code == 2
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--database-url", "mysql://u:secret@h/d"], "mysql"),
        (["--database-url", "postgresql://u:secret@127.0.0.1:1/d"], "refused"),
        (["--data-dir", "/proc/nowhere"], "/proc/nowhere"),
    ],
)
@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("keys", "list")])
def test_a_database_that_cannot_be_used_is_one_line(
    command: tuple[str, ...], arguments: list[str], words: str
) -> None:
    done = CliRunner().invoke(app, [*command, *arguments])
    check_error(done, words)
    assert "secret" not in done.output


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = CliRunner().invoke(
            app, ["serve", "--port", str(port), "--data-dir", str(tmp_path / "data")]
        )
    check_error(done, f"port {port}")


def test_answers_are_not_held_back_for_an_acknowledgement(tmp_path: Path) -> None:
    async def nodelay(listener: socket.socket) -> int:
        accepted = asyncio.get_running_loop().create_future()
        server = await asyncio.start_server(lambda _, out: accepted.set_result(out), sock=listener)
        _, writer = await asyncio.open_connection(*listener.getsockname())
        answering = await accepted
        option = answering.get_extra_info("socket").getsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY
        )
        for stream in (writer, answering):
            stream.close()
            await stream.wait_closed()
        server.close()
        return option

    with _serving_socket(Settings(data_dir=tmp_path, port=0)) as listener:
        assert asyncio.run(nodelay(listener)) != 0


def test_a_bad_setting_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRAFT_PORT", "70000")
    check_error(CliRunner().invoke(app, ["serve", "--data-dir", str(tmp_path)]), "port")


def test_keys_and_help_do_not_wait_for_torch(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from craft_server.cli import app\n"
        f"app(['keys', 'list', '--data-dir', {str(tmp_path)!r}], standalone_mode=False)\n"
        "assert not {'torch', 'open_clip', 'fastapi'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
