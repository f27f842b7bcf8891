"""What a server leaves on disk is for its owner alone, from the first byte on."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from craft_server.backup import back_up, restore
from craft_server.database import Database
from craft_server.ledger.keys import create_key
from craft_server.receipts import FILE_NAME, Signer
from craft_server.recording.tape import Answer, CallContent, Tape
from craft_shared.files import keep_private


@pytest.fixture(autouse=True)
def _careless_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}


def test_new_files_are_private_however_careless_the_umask(tmp_path: Path) -> None:
    data, copies = tmp_path / "above" / "data", tmp_path / "copies"
    Signer.open(data / FILE_NAME, make=True)
    with closing(Database.open(None, data)) as database:
        with database.writing() as connection:
            create_key(connection, owner="me", at=0)
        back_up(data / "craftbox.db", tmp_path / "backup.db", data / FILE_NAME)
        assert modes(data) == {
            "data": 0o700,
            FILE_NAME: 0o600,
            "craftbox.db": 0o600,
            "craftbox.db-wal": 0o600,
            "craftbox.db-shm": 0o600,
        }
        assert database.mended == []
    restore(tmp_path / "backup.db", copies / "craftbox.db", copies / FILE_NAME)
    with closing(Tape.record(tmp_path / "session.craft")) as tape:
        tape.append(
            CallContent("GET", "/v1/models", "", tensors=False, content=None),
            Answer(200, "", b""),
            None,
        )
        assert not tape.mended
    for path in (
        "backup.db",
        "copies",
        "copies/craftbox.db",
        f"copies/{FILE_NAME}",
        "session.craft",
    ):
        assert (tmp_path / path).stat().st_mode & 0o077 == 0, path


def test_a_database_file_is_private_before_sqlite_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlite3

    connect, found = sqlite3.dbapi2.connect, []

    def noting(file: str, *args: object, **kwargs: object) -> object:
        found.append(stat.S_IMODE(Path(file).stat().st_mode))
        return connect(file, *args, **kwargs)  # type: ignore[arg-type] # whatever it is given

    monkeypatch.setattr("sqlite3.dbapi2.connect", noting)
    Database.open(f"sqlite:///{tmp_path / 'own.db'}", tmp_path).close()
    assert set(found) == {0o600}


def test_what_others_could_read_is_mended_with_a_word(tmp_path: Path) -> None:
    data = tmp_path / "data"
    Signer.open(data / FILE_NAME, make=True)
    database = Database.open(None, data)
    for path in [data, *data.iterdir()]:
        path.chmod(0o755)
    with closing(Database.open(None, data)) as again:
        assert {path.name for path in again.mended} >= {"data", "craftbox.db", "craftbox.db-wal"}
    Signer.open(data / FILE_NAME, make=True)
    assert all(mode & 0o077 == 0 for mode in modes(data).values())
    database.close()
    recording = tmp_path / "session.craft"
    Tape.record(recording).close()
    recording.chmod(0o644)
    with closing(Tape.record(recording)) as tape:
        assert tape.mended
    assert recording.stat().st_mode & 0o077 == 0


def test_a_folder_that_holds_anything_else_stays_open(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    tmp_path.chmod(0o755)
    with closing(Database.open(None, tmp_path)) as database:
        assert database.mended == []
    assert modes(tmp_path) == {tmp_path.name: 0o755, "notes.txt": 0o666, "craftbox.db": 0o600}


def test_what_is_not_there_needs_no_keeping(tmp_path: Path) -> None:
    assert keep_private([tmp_path / "nothing"]) == []
