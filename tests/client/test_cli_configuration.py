"""Settings of `craft`: from options, the environment, craft.toml, the user's file, defaults."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from craft_client import Client, network
from craft_client.cli import app, configuration

from .wire_server import KEY, WireServer

SECRET = "craft_abcd1234_abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which commands run, with no setting anywhere."""
    for name in configuration.NAMES:
        monkeypatch.delenv(configuration.variable(name), raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write(file: Path, text: str, mode: int = 0o600) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)


def shown(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["config", "show", "--json", *arguments])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)["settings"]
    return found


def test_each_place_gives_way_to_those_before_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown()["url"] == {"value": network.DEFAULT_URL, "source": "default"}
    user = configuration.user_file()
    write(user, 'url = "http://user"')
    assert shown()["url"] == {"value": "http://user", "source": str(user)}
    monkeypatch.setenv("CRAFT_URL", "http://environment")
    assert shown()["url"] == {"value": "http://environment", "source": "environment"}
    assert shown("--url", "http://o")["url"] == {"value": "http://o", "source": "option"}


def test_the_variables_are_those_that_the_client_reads() -> None:
    variables = {configuration.variable(name) for name in configuration.NAMES}
    assert variables == {
        network.URL_VARIABLE,
        network.KEY_VARIABLE,
        network.KEY_FILE_VARIABLE,
    }


def test_the_key_is_masked_wherever_it_comes_from(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = configuration.user_file()
    write(user, f'api_key = "{SECRET}"')
    assert shown()["api_key"] == {"value": "craft_abcd1234_********", "source": str(user)}
    monkeypatch.setenv("CRAFT_API_KEY", "something else")
    done = CliRunner().invoke(app, ["config", "show"])
    assert "********" in done.stdout
    assert "something" not in done.output


def test_a_key_file_of_a_nearer_place_comes_before_a_key(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(configuration.user_file(), f'api_key = "{SECRET}"')
    monkeypatch.setenv("CRAFT_API_KEY_FILE", "/key")
    assert "api_key" not in shown()
    assert shown()["api_key_file"] == {"value": "/key", "source": "environment"}


def test_commands_use_the_files(project: Path, wire_server: WireServer) -> None:
    user = configuration.user_file()
    write(user, f'url = "{wire_server.url}"\napi_key_file = "key"')
    write(user.parent / "key", f"{KEY}\n")
    done = CliRunner().invoke(app, ["models", "--json"])
    assert done.exit_code == 0, done.stderr
    assert done.stderr == ""
    assert wire_server.seen[-1].headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("of_users", ["environment", "user's file"])
@pytest.mark.parametrize("command", [["models"], ["usage"], ["tune", "--data", "."]])
def test_a_folder_decides_neither_where_a_key_goes_nor_which(
    project: Path,
    wire_server: WireServer,
    monkeypatch: pytest.MonkeyPatch,
    of_users: str,
    command: list[str],
) -> None:
    with WireServer().listening() as others:
        text = f'url = "{others.url}"\napi_key = "{SECRET}"\napi_key_file = "key"'
        write(project / "craft.toml", text)
        write(project / "key", SECRET)
        if of_users == "environment":
            monkeypatch.setenv("CRAFT_URL", wire_server.url)
            monkeypatch.setenv("CRAFT_API_KEY", KEY)
        else:
            write(configuration.user_file(), f'url = "{wire_server.url}"\napi_key = "{KEY}"')
        done = CliRunner().invoke(app, command)
        assert others.seen == []
    assert {seen.headers["Authorization"] for seen in wire_server.seen} <= {f"Bearer {KEY}"}
    if command[0] != "tune":  # there are no pictures, and so no call
        assert wire_server.seen
        assert "Left out: url, api_key, api_key_file of 'craft.toml'" in done.stderr
    assert SECRET not in done.output


def test_what_a_folder_may_not_name_is_left_out_and_shown_so(project: Path) -> None:
    write(project / "craft.toml", 'url = "http://theirs"')
    assert shown()["url"] == {"value": network.DEFAULT_URL, "source": "default"}
    done = CliRunner().invoke(app, ["config", "show"])
    assert "Left out: url of 'craft.toml' in this folder." in done.stderr


@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o600, False)])
def test_a_key_that_others_may_read_is_warned_of(
    project: Path, wire_server: WireServer, mode: int, warned: bool
) -> None:
    user = configuration.user_file()
    write(user, f'url = "{wire_server.url}"\napi_key = "{KEY}"', mode)
    done = CliRunner().invoke(app, ["models"])
    assert done.exit_code == 0
    assert (f"Remedy: chmod 600 {user}" in done.stderr) == warned


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('urll = "http://x"', "there is no setting 'urll'.\n  Did you mean 'url'?"),
        ("colour = 1", "Settings are url, api_key, api_key_file."),
        ("url = 1", 'url is not a text, in "quotes".'),
        ("url =", "'craft.toml' cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_wrong_usage(project: Path, text: str, words: str) -> None:
    write(project / "craft.toml", text)
    done = CliRunner().invoke(app, ["models"])
    assert done.exit_code == 2
    assert done.stdout == ""
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_file_that_is_not_there_is_told(project: Path) -> None:
    user = configuration.user_file()
    write(user, 'api_key_file = "none"')
    done = CliRunner().invoke(app, ["models"])
    assert done.exit_code == 1
    assert f"cannot be read from '{user.parent / 'none'}'" in done.stderr
    assert f"api_key_file in '{user}'" in done.stderr


def test_python_programs_do_not_read_the_files(project: Path) -> None:
    write(project / "craft.toml", f'api_key = "{SECRET}"')
    code = "from craft_client import Client; Client()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MissingKey" in done.stderr


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_of_settings_and_keys_may_be_windows(
    project: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    (project / "key").write_bytes(f"{SECRET}\r\n".encode(encoding))
    text = 'url = "http://project"\r\napi_key_file = "key"\r\n'
    configuration.user_file().parent.mkdir(parents=True)
    configuration.user_file().write_bytes(
        text.replace('"key"', f'"{project}/key"').encode(encoding)
    )
    found = configuration.load()
    assert found["url"].value == "http://project"
    assert (configuration.api_key(found) or "").strip() == SECRET
    monkeypatch.setenv("CRAFT_API_KEY_FILE", "key")
    with Client() as client:
        assert client.base_url


def test_a_file_of_settings_that_is_no_text_is_named(project: Path) -> None:
    (project / "craft.toml").write_bytes('url = "http://café"'.encode("latin-1"))
    with pytest.raises(
        configuration.ConfigurationError, match=r"craft.toml' cannot be read.*UTF-8"
    ):
        configuration.load()
