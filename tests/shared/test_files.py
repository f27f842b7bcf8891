import os
import resource
import stat
from pathlib import Path

import pytest

from craft_shared.files import append, check_room, write_whole


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_whole(file, b"first, longer")
    write_whole(file, b"second")
    assert file.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_written_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    write_whole(file, b"first")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(file, b"second")
    assert file.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [file]


def test_bytes_are_on_disk_before_their_name_and_that_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, synced = tmp_path / "file", []

    def sync(descriptor: int) -> None:
        about = os.fstat(descriptor)
        what = "folder" if stat.S_ISDIR(about.st_mode) else about.st_size
        synced.append((what, file.exists()))

    monkeypatch.setattr("os.fsync", sync)
    write_whole(file, b"bytes")
    assert synced == [(5, False), ("folder", True)]


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    before = sorted(Path("/dev/fd").iterdir())
    write_whole(tmp_path / "file", b"bytes")
    assert sorted(Path("/dev/fd").iterdir()) == before


def test_what_hinders_writing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError):
        write_whole(tmp_path / "file", b"bytes")


def test_what_is_added_is_whole_or_not_there_and_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    append(file, b"first\n")
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
    try:
        for write in (append, write_whole):
            with pytest.raises(OSError, match="File too large") as failed:
                write(file, b"second, longer\n")
            assert failed.value.filename == str(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert file.read_bytes() == b"first\n"
    append(file, b"second, longer\n")
    assert file.read_bytes() == b"first\nsecond, longer\n"


def test_a_full_disk_is_seen_before_it_is_written_to(tmp_path: Path) -> None:
    check_room(tmp_path, 1)
    with pytest.raises(OSError, match="bytes are needed, the disk has") as failed:
        check_room(tmp_path, 2**60)
    assert failed.value.filename == str(tmp_path)
