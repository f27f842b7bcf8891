"""Locks between processes; `tests/e2e/test_one_process.py` has those of the commands."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from craft_client.exceptions import InUse
from craft_client.journal import Journal
from craft_client.run_folder import alone, holder

HOLD = """
import sys
from pathlib import Path
from craft_client.run_folder import alone
with alone(Path(sys.argv[1]), "the run"):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@pytest.fixture
def other(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its stdin ends."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, lock], stdin=pipe, stdout=pipe, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_another_process_is_refused_and_named(lock: Path, other: subprocess.Popen[str]) -> None:
    refused = pytest.raises(InUse, match=rf"Another process \(pid {other.pid}\) is at the run\.")
    with refused, alone(lock, "the run"):
        pass
    assert holder(lock) == f"Another process (pid {other.pid})"


def test_a_lock_dies_with_its_process(lock: Path, other: subprocess.Popen[str]) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait(30)
    assert lock.exists()
    assert holder(lock) is None
    with alone(lock, "the run"):
        assert lock.read_text().split()[0] == str(os.getpid())


def test_a_lock_that_is_given_up_leaves_no_file(lock: Path) -> None:
    with pytest.raises(ZeroDivisionError), alone(lock, "the run"):
        raise ZeroDivisionError
    assert not lock.exists()
    assert holder(lock) is None


def test_two_of_one_process_exclude_each_other(lock: Path) -> None:
    refused = pytest.raises(InUse, match=r"^This process is at the run")
    with alone(lock, "the run"), refused, alone(lock, "the run"):
        pass


def test_a_holder_elsewhere_is_named_with_its_machine(
    lock: Path, other: subprocess.Popen[str]
) -> None:
    lock.write_text("17 far-away\n")
    assert holder(lock) == "Another process (pid 17 on far-away)"


def test_who_opened_a_file_that_was_removed_takes_the_new_one(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking, the holder may remove the file and a third make it anew."""
    flock, times = fcntl.flock, iter(range(9))

    def late(descriptor: int, operation: int) -> None:
        if next(times) == 0:
            lock.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with alone(lock, "the run"):
        assert holder(lock) == "This process"


def test_where_there_are_no_locks_the_work_goes_on(
    lock: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with alone(lock, "the run"):
        pass
    assert "no file locks here" in caplog.text


def test_a_journal_is_claimed_once(tmp_path: Path) -> None:
    with Journal.claimed(tmp_path / "run") as journal:
        with pytest.raises(InUse), Journal.claimed(tmp_path / "run"):
            pass
        with pytest.raises(InUse):
            Journal.create(tmp_path / "run", {})
        journal.begin({"run": 1})
        with journal.alone():
            journal.append({"generation": 0})
    with Journal.claimed(tmp_path / "run") as again:
        assert again.document == {"run": 1}
    assert not (tmp_path / "run" / "lock").exists()


def test_what_fails_before_anything_is_written_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Journal.claimed(tmp_path / "run"):
        raise ZeroDivisionError
    assert not (tmp_path / "run").exists()


def test_a_run_that_was_cut_off_while_it_was_begun_is_begun_anew(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "tensors").mkdir(parents=True)
    for name in ("lock", "journal.jsonl", "run.json.partial"):
        (folder / name).touch()
    with Journal.claimed(folder, new=True) as journal:
        journal.begin({"run": 1})
    assert Journal.open(folder).document == {"run": 1}


def test_an_adapter_of_a_run_that_is_under_way_is_waited_for(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "run", {})
    with pytest.raises(Exception, match=re.escape(f"craft tune --resume {journal.folder}")):
        journal.adapter()
    with journal.alone(), pytest.raises(Exception, match="This process is at the run: wait"):
        journal.adapter()
