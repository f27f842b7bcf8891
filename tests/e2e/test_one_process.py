"""Two processes at one run, results file or benchmark: the second is refused, and nothing is lost.

Real processes; `tests/client/test_run_folder.py` has the lock itself.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.conftest import Server
from e2e.programs import CRAFT, Program

TUNE = ("--shots", "2", "--recipe", "bbt", "--budget", str(1 + 41 * 12))


def started(server: Server, key: str, place: Path, *arguments: str | Path) -> Program:
    """The craft command as a process that goes on by itself."""
    env = {**os.environ, "CRAFT_URL": server.url, "CRAFT_API_KEY": key}
    out, err = place / "stdout", place / "stderr"
    return Program(CRAFT, [*map(str, arguments)], env=env, stdout=out, stderr=err)


def wait_for(condition: Callable[[], bool], process: Program, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended before it was met"
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def frozen(process: Program) -> Iterator[None]:
    """Stopped, as by Ctrl-Z, and in the end killed."""
    import signal

    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.kill()
        process.wait(30)


def held(lock: Path) -> bool:
    """Whether a process has it, which is told in it from then on."""
    return lock.exists() and lock.stat().st_size > 0


def lines(run: Path) -> int:
    journal = run / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


@pytest.fixture
def few_digits(digits: Path, tmp_path: Path) -> Path:
    """Three digits of which few are there."""
    for split, kept in {"train": 4, "test": 6}.items():
        for of_class in sorted((digits / split).iterdir())[:3]:
            place = tmp_path / "few" / split / of_class.name
            place.mkdir(parents=True)
            for picture in sorted(of_class.iterdir())[:kept]:
                shutil.copy(picture, place)
    return tmp_path / "few"


def test_a_second_process_at_a_run_is_refused_until_the_first_one_is_dead(
    server: Server, few_digits: Path, tmp_path: Path
) -> None:
    key, run = server.key(owner="two-tunes"), tmp_path / "run"
    first = started(server, key, tmp_path, "tune", "--data", few_digits, *TUNE, "--run", run)
    wait_for(lambda: lines(run) >= 2, first)
    with frozen(first):
        spent = server.craft_json(key, "usage")["total"]
        named = f"Another process (pid {first.pid}) is at the run in '{run}'."
        for second in (
            ("tune", "--resume", run),
            ("tune", "--data", few_digits, "--shots", "2", "--run", run),
        ):
            done = server.craft(key, *second)
            assert (done.returncode, named in done.stderr) == (1, True), done.stderr
            assert "--resume" not in done.stderr, "it did not end early: it never began"
        done = server.craft(key, "publish", run, "--name", "early")
        assert f"(pid {first.pid}) is at the run: wait" in done.stderr
        assert server.craft_json(key, "usage")["total"] == spent
    assert server.craft(key, "tune", "--resume", run).returncode == 0
    texts = (run / "journal.jsonl").read_text().splitlines()
    assert len(set(texts)) == len(texts) == len(list((run / "tensors").glob("0*")))
    assert not (run / "lock").exists()


def test_a_second_process_at_a_results_file_is_refused(
    server: Server, few_digits: Path, digits_adapter: str, tmp_path: Path
) -> None:
    key, out = server.key(), tmp_path / "out.csv"
    predict = ("predict", few_digits / "test", "--adapter", digits_adapter, "--out", out)
    first = started(server, key, tmp_path, *predict)
    wait_for(lambda: held(tmp_path / "out.csv.lock"), first)
    with frozen(first):
        done = server.craft(key, *predict)
        assert done.returncode == 1
        assert f"Another process (pid {first.pid}) is at '{out}'." in done.stderr
    server.craft_json(key, *predict)
    assert out.read_text().count("\n") == 1 + 18


def test_a_second_process_at_a_benchmark_is_refused(
    server: Server, few_digits: Path, tmp_path: Path
) -> None:
    key, out = server.key(owner="two-benches"), tmp_path / "out"
    bench = ("bench", "--data", few_digits.parent, "--dataset", "few", *TUNE, "--seed", "1")
    first = started(server, key, tmp_path, *bench, "--out", out)
    wait_for(lambda: held(out / "lock"), first)
    with frozen(first):
        done = server.craft(key, *bench, "--out", out)
        assert done.returncode == 1
        assert f"Another process (pid {first.pid}) is at the benchmark in '{out}'." in done.stderr


@pytest.mark.parametrize("out", ["nodir/out.csv", "text/out.csv", "text"])
def test_a_results_file_that_cannot_be_written_costs_nothing(
    server: Server, few_digits: Path, digits_adapter: str, tmp_path: Path, out: str
) -> None:
    (tmp_path / "text").write_text("mine\n")
    key = server.key()
    done = server.craft(
        key, "predict", few_digits, "--adapter", digits_adapter, "--out", tmp_path / out
    )
    assert done.returncode == 1
    assert f"'{tmp_path / out}'" in done.stderr
    assert set(server.craft_json(key, "usage")["total"].values()) == {0}
