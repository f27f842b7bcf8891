"""Settings in craft-server.toml, what `config show` says of them, and the program's own options."""

from __future__ import annotations

import inspect
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from craft_server.cli import app, serve
from craft_server.settings import Settings
from craft_server.telemetry import configure_logging


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which commands run, with an empty folder of secrets in it."""
    for name in ("CONFIG", "DATABASE_URL", "DATA_DIR", "MODEL"):
        monkeypatch.delenv(f"CRAFT_{name}", raising=False)
    (tmp_path / "secrets").mkdir()
    monkeypatch.setenv("CRAFT_SECRETS_DIR", str(tmp_path / "secrets"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def shown(*words: str) -> dict[str, Any]:
    done = run("config", "show", "--json", *words)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)["settings"]
    return found


def test_each_place_gives_way_to_those_before_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown()["model"] == {"value": "pocket", "source": "default"}
    (folder / "craft-server.toml").write_text('model = "RN50"\n[limits]\nclasses = 9\n')
    assert shown()["model"] == {"value": "RN50", "source": "craft-server.toml"}
    assert shown()["limits.classes"] == {"value": 9, "source": "craft-server.toml"}
    assert shown()["limits.dim"] == {"value": 4096, "source": "default"}
    (folder / "secrets/craft_model").write_text("RN101")
    assert shown()["model"] == {"value": "RN101", "source": str(folder / "secrets")}
    monkeypatch.setenv("CRAFT_MODEL", "ViT-B-32")
    monkeypatch.setenv("CRAFT_LIMITS__CLASSES", "8")
    assert shown()["model"] == {"value": "ViT-B-32", "source": "environment"}
    assert shown()["limits.classes"] == {"value": 8, "source": "environment"}
    assert shown("--model", "ViT-B-16")["model"] == {"value": "ViT-B-16", "source": "option"}


def test_the_file_is_what_servers_use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "elsewhere.toml").write_text("port = 4321\n[limits]\nclasses = 9\n")
    monkeypatch.setenv("CRAFT_CONFIG", "elsewhere.toml")
    settings = Settings()
    assert (settings.port, settings.limits.classes, settings.limits.dim) == (4321, 9, 4096)


def test_no_password_is_shown(folder: Path) -> None:
    (folder / "craft-server.toml").write_text(
        'database_url = "postgresql://craft@db/craft?password=hunter2"\n'
        'rate_limits_url = "redis://:hunter2@redis/0"\ndatabase_password = "hunter2"\n'
    )
    for words in (("--json",), ()):
        done = CliRunner().invoke(app, ["config", "show", *words], env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output
        assert "hunter2" not in done.output
        assert "redis://:********@redis/0" in done.stdout


@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o600, False)])
def test_a_password_that_others_may_read_is_warned_of(
    folder: Path, mode: int, warned: bool
) -> None:
    file = folder / "craft-server.toml"
    file.write_text('rate_limits_url = "redis://:hunter2@redis/0"')
    file.chmod(mode)
    done = run("keys", "list")
    assert done.exit_code == 0
    assert ("chmod 600 craft-server.toml" in done.stderr) == warned
    assert run("--quiet", "keys", "list").stderr == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", "there is no setting 'prot'; did you mean 'port'?"),
        ("[limits]\nclases = 1", "there is no setting 'limits.clases'; did you mean"),
        ("port = 70000", "setting port: "),
        ("port =", "'craft-server.toml' cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_wrong_usage(folder: Path, text: str, words: str) -> None:
    (folder / "craft-server.toml").write_text(text)
    done = run("keys", "list")
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_a_file_that_is_named_must_be_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRAFT_CONFIG", "none.toml")
    done = run("serve")
    assert done.exit_code == 2
    assert done.stderr == "Error: CRAFT_CONFIG: there is no file 'none.toml'\n"


# --- options that are written once ----------------------------------------------------------------


def test_serve_and_record_take_the_same_options() -> None:
    of_serve = inspect.signature(serve.serve).parameters
    of_record = dict(inspect.signature(serve.record).parameters)
    del of_record["out"]
    assert list(of_record) == list(of_serve)
    assert set(of_serve) <= set(Settings.model_fields)


def test_a_recording_is_made_by_one_process(folder: Path) -> None:
    done = run("record", "--out", "tape", "--workers", "2")
    assert done.exit_code == 2
    assert "--workers" in done.stderr
    assert not (folder / "tape").exists()


# --- quiet, and JSON where it was missing ---------------------------------------------------------


def test_quiet_prints_a_new_key_alone(folder: Path) -> None:
    done = run("--quiet", "keys", "create", "--owner", "me")
    assert done.stdout.startswith("craft_")
    assert done.stdout.count("\n") == 1
    assert len(run("keys", "create", "--owner", "me").stdout.splitlines()) == 2


def test_one_document_is_printed_where_a_script_asks_for_it(folder: Path) -> None:
    made = json.loads(run("keys", "create", "--owner", "me", "--key-file", "k", "--json").stdout)
    assert (made["key_file"], made["made"], made["owner"]) == ("k", True, "me")
    assert "key" not in made
    again = json.loads(run("keys", "create", "--owner", "me", "--key-file", "k", "--json").stdout)
    assert again == {"key_file": "k", "made": False}
    revoked = json.loads(run("keys", "revoke", made["prefixes"][0], "--json").stdout)
    assert revoked["revoked_at"]
    copied = json.loads(run("ledger", "backup", "copy", "--json").stdout)
    assert copied["bytes"] == Path("copy").stat().st_size
    back = json.loads(run("ledger", "restore", "copy", "--data-dir", "new", "--json").stdout)
    assert back["released"] == 0


def test_the_log_has_no_lines_below_its_level(capsys: pytest.CaptureFixture[str]) -> None:
    import structlog

    try:
        configure_logging("warning")
        structlog.get_logger().info("call")
        structlog.get_logger().warning("late")
    finally:
        structlog.reset_defaults()
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "late"
    assert logging.getLevelNamesMapping()["WARNING"] == logging.WARNING


def test_addresses_of_notices_are_shown_without_what_may_be_secret(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRAFT_NOTICE_URLS", "https://ops.example/hook/T0?token=hush")
    monkeypatch.setenv("CRAFT_NOTICE_SECRET", f"whsec_{'AAAA' * 8}")
    assert shown()["notice_urls"]["value"] == ["https://ops.example"]
