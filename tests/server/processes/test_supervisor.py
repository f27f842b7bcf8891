"""Processes are started again when they die, and end when their supervisor does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from pathlib import Path

from craft_server.processes.supervisor import LEAST_SECONDS_BETWEEN, Supervisor
from waiting import until

PATIENCE_SECONDS = 60


def note_and_wait(line: Connection, folder: Path) -> None:
    """Notes its process id, and ends when it is told to."""
    (folder / str(os.getpid())).touch()
    wait([line])
    (folder / f"{os.getpid()}.told").touch()


def die_at_once(_line: Connection, folder: Path) -> None:
    (folder / str(time.monotonic_ns())).touch()
    os._exit(3)


def pids(folder: Path) -> list[int]:
    return [int(file.name) for file in folder.iterdir() if file.name.isdigit()]


def test_what_dies_is_replaced_and_all_are_told_to_end(tmp_path: Path) -> None:
    dead: list[int] = []
    supervisor = Supervisor([], dead.append)
    supervisor.keep("some", note_and_wait, tmp_path)
    supervisor.keep("some", note_and_wait, tmp_path)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    until(lambda: len(pids(tmp_path)) == 2)
    victim = pids(tmp_path)[0]
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(pids(tmp_path)) == 3)
    supervisor.stop()
    thread.join(PATIENCE_SECONDS)
    told = {int(file.stem) for file in tmp_path.glob("*.told")}
    assert told == set(pids(tmp_path)) - {victim}
    assert dead == [victim]


def test_what_keeps_dying_is_started_ever_more_rarely(tmp_path: Path) -> None:
    supervisor = Supervisor([], lambda _pid: None)
    supervisor.keep("dying", die_at_once, tmp_path)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    until(lambda: len(pids(tmp_path)) >= 4)
    supervisor.stop()
    thread.join(PATIENCE_SECONDS)
    starts = sorted(pids(tmp_path))
    between = [(after - before) / 1e9 for before, after in pairwise(starts)]
    for doubled, seconds in enumerate(between[:3], start=1):
        assert seconds >= LEAST_SECONDS_BETWEEN * 2**doubled


def test_processes_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from craft_server.processes.supervisor import Supervisor
from server.processes.test_supervisor import note_and_wait
if __name__ == "__main__":
    supervisor = Supervisor([], lambda _pid: None)
    supervisor.keep("one", note_and_wait, Path({str(tmp_path)!r}))
    supervisor.run()
"""
    file = tmp_path / "program.py"
    file.write_text(program)
    process = subprocess.Popen([sys.executable, file])
    until(lambda: len(pids(tmp_path)) == 1)
    process.kill()
    process.wait()
    until(lambda: bool(list(tmp_path.glob("*.told"))))
