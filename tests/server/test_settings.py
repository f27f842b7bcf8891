"""Settings from options, the environment and files of secrets."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from typer.testing import CliRunner

from craft_server.cli import app
from craft_server.settings import Settings, SettingsFileError

URL = "postgresql+psycopg://craft@database/craft"


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of secrets, empty."""
    monkeypatch.setenv("CRAFT_SECRETS_DIR", str(tmp_path))
    monkeypatch.delenv("CRAFT_DATABASE_URL", raising=False)
    return tmp_path


def test_a_file_holds_what_the_environment_need_not(secrets: Path) -> None:
    (secrets / "craft_rate_limits_url").write_text("redis://:secret@redis/0\n")
    assert Settings().rate_limits_url == "redis://:secret@redis/0"


def test_the_environment_comes_before_files_and_options_before_both(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (secrets / "craft_model").write_text("RN50")
    assert Settings().model == "RN50"
    monkeypatch.setenv("CRAFT_MODEL", "ViT-B-32")
    assert Settings().model == "ViT-B-32"
    assert Settings(model="ViT-B-16").model == "ViT-B-16"


def test_the_databases_password_goes_into_its_url(secrets: Path) -> None:
    (secrets / "craft_database_password").write_text("p@ss/word\n")
    settings = Settings(database_url=URL)
    assert settings.database_url == "postgresql+psycopg://craft:p%40ss%2Fword@database/craft"
    assert "p@ss" not in repr(settings.database_password)


def test_a_password_without_a_url_changes_nothing(secrets: Path) -> None:
    (secrets / "craft_database_password").write_text("secret")
    assert Settings().database_url is None


def test_a_folder_that_is_not_there_is_no_folder_of_secrets(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRAFT_SECRETS_DIR", str(secrets / "none"))
    assert Settings().model == "pocket"


def test_a_url_that_is_none_is_told_in_one_line(secrets: Path) -> None:
    (secrets / "craft_database_password").write_text("secret")
    done = CliRunner().invoke(app, ["keys", "list", "--database-url", "nonsense"])
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "not the address of a database" in done.stderr
    assert "secret" not in done.stderr


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_a_setting(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (secrets / "craft_model").write_bytes(codecs.BOM_UTF8 + b"RN50\r\n")
    file = secrets / "craft-server.toml"
    file.write_bytes(codecs.BOM_UTF8 + b"answers_hours = 25\r\n\r\n[limits]\r\nclasses = 7\r\n")
    monkeypatch.setenv("CRAFT_CONFIG", str(file))
    settings = Settings()
    assert (settings.model, settings.answers_hours, settings.limits.classes) == ("RN50", 25, 7)
    file.write_bytes('model = "é"'.encode("latin-1"))
    with pytest.raises(
        SettingsFileError, match=r"craft-server.toml' cannot be read: it is not UTF"
    ):
        Settings()


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("", ()),
        ("https://app.example", ("https://app.example",)),
        (
            "https://App.Example/, http://localhost:5173",
            ("https://app.example", "http://localhost:5173"),
        ),
        ("https://app.example:443,http://[::1]:80", ("https://app.example", "http://[::1]")),
    ],
)
def test_origins_are_written_with_commas_and_kept_as_browsers_name_them(
    secrets: Path, monkeypatch: pytest.MonkeyPatch, text: str, origins: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CRAFT_CORS_ORIGINS", text)
    assert Settings().cors_origins == origins


@pytest.mark.parametrize(
    "text", ["*", "https://*", "app.example", "https://a.example/path", "null"]
)
def test_what_is_no_origin_is_refused_in_one_line(secrets: Path, text: str) -> None:
    done = CliRunner().invoke(app, ["serve"], env={"CRAFT_CORS_ORIGINS": text})
    assert done.exit_code == 2
    assert "cors_origins" in done.output
    assert "write an origin such as https://app.example" in done.output


def test_origins_in_the_file_are_a_list(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (secrets / "craft-server.toml").write_text('cors_origins = ["https://app.example"]')
    monkeypatch.setenv("CRAFT_CONFIG", str(secrets / "craft-server.toml"))
    assert Settings().cors_origins == ("https://app.example",)
