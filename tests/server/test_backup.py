"""A backup brings back the key that signs receipts, so that what it has signed is still proved."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from craft_server.backup import BackupError, back_up, restore
from craft_server.database import FILE_NAME, Database
from craft_server.receipts import FILE_NAME as KEY_NAME
from craft_server.receipts import Signer
from craft_shared.receipt import read_keys, verify
from server.test_receipts import Ledger


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folder of a server that has made its key."""
    folder = tmp_path / "data"
    Signer.open(folder / KEY_NAME, make=True)
    Database.open(None, folder).close()
    return folder


def in_it(folder: Path) -> tuple[Path, Path]:
    """Where the database and the key are, or will be."""
    return folder / FILE_NAME, folder / KEY_NAME


def test_a_receipt_of_before_is_proved_by_the_restored_servers_keys(
    data: Path, tmp_path: Path
) -> None:
    signer = Signer.open(data / KEY_NAME, make=False)
    with closing(Database.open(None, data)) as database:
        ledger = Ledger(database)
        ledger.charge(queries=5)
        receipt = ledger.receipt()
        token = signer.sign(receipt)
        assert back_up(data / FILE_NAME, tmp_path / "copy", data / KEY_NAME)
    _, had_key = restore(tmp_path / "copy", *in_it(tmp_path / "new"))
    assert had_key
    again = Signer.open(tmp_path / "new" / KEY_NAME, make=False)
    assert verify(token, read_keys(json.dumps(again.public_keys))) == receipt
    assert (tmp_path / "new" / KEY_NAME).stat().st_mode & 0o077 == 0


def test_the_restored_database_holds_no_private_key(data: Path, tmp_path: Path) -> None:
    back_up(data / FILE_NAME, tmp_path / "copy", data / KEY_NAME)
    secret = (data / KEY_NAME).read_bytes().splitlines()[1]
    assert secret in (tmp_path / "copy").read_bytes()
    restore(tmp_path / "copy", *in_it(tmp_path / "new"))
    assert secret not in (tmp_path / "new" / FILE_NAME).read_bytes()


def test_another_key_that_is_there_is_neither_replaced_nor_mixed_with(
    data: Path, tmp_path: Path
) -> None:
    back_up(data / FILE_NAME, tmp_path / "copy", data / KEY_NAME)
    database, key = in_it(tmp_path / "new")
    Signer.open(key, make=True)
    before = key.read_bytes()
    with pytest.raises(BackupError, match="is not the receipt key that was backed up"):
        restore(tmp_path / "copy", database, key)
    assert key.read_bytes() == before
    assert [path.name for path in key.parent.iterdir()] == [KEY_NAME]
    key.write_bytes((data / KEY_NAME).read_bytes())  # where operators keep it elsewhere
    assert restore(tmp_path / "copy", database, key) == (0, True)


def test_a_backup_without_a_key_leaves_the_key_that_is_there(data: Path, tmp_path: Path) -> None:
    (data / KEY_NAME).rename(data / "away")
    assert not back_up(data / FILE_NAME, tmp_path / "copy", data / KEY_NAME)
    database, key = in_it(tmp_path / "new")
    Signer.open(key, make=True)
    before = key.read_bytes()
    assert restore(tmp_path / "copy", database, key) == (0, False)
    assert key.read_bytes() == before


def test_a_key_that_cannot_be_read_makes_no_backup_without_it(data: Path, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="cannot read the receipt key"):
        back_up(data / FILE_NAME, tmp_path / "copy", data)  # a folder
    assert not (tmp_path / "copy").exists()


def test_a_backup_is_a_database_like_any_other(data: Path, tmp_path: Path) -> None:
    back_up(data / FILE_NAME, tmp_path / "copy", data / KEY_NAME)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "data"]
    with closing(sqlite3.connect(tmp_path / "copy")) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    Database.open(f"sqlite:///{tmp_path / 'copy'}", tmp_path).close()
