"""`craft predict --out` and `craft bench` killed, cut and out of disk at random, then gone on with.

However often: a row a picture, the same results, and the ledger has what an undisturbed run cost.
Once or twice each; twenty times with CRAFT_TEST_FULL=1.
"""

from __future__ import annotations

import csv
import json
import os
import random
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from craft_client.api import Client
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import Unrefined
from e2e.conftest import Server, StartServer
from e2e.metering.caller import FULL
from e2e.programs import CRAFT, Program
from quickstart import NAMES

TIMES = 20 if FULL else 2
BENCH_TIMES = 20 if FULL else 1
# Not in results that are the same: whose run it was, and what the server calls its image sets.
OWN = {"data", "image_set", "run"}


@dataclass
class Attempt:
    """One way of disturbing a command, on a key and in a folder of its own."""

    server: Server
    key: str
    folder: Path
    command: Sequence[str | Path]

    def start(self) -> Program:
        env = {**os.environ, "CRAFT_URL": self.server.url, "CRAFT_API_KEY": self.key}
        out, err = self.folder / "stdout", self.folder / "stderr"
        return Program(CRAFT, ["-q", *map(str, self.command)], env=env, stdout=out, stderr=err)

    def finish(self) -> None:
        done = self.server.craft(self.key, *self.command)
        assert done.returncode == 0, done.stderr

    @property
    def charged(self) -> dict[str, int]:
        total: dict[str, int] = self.server.craft_json(self.key, "usage")["total"]
        return total


@pytest.fixture(scope="module")
def small_server(start_server: StartServer) -> Server:
    """A server that takes four pictures in a call, so that there are calls enough."""
    return start_server("--model", "pocket", CRAFT_LIMITS__IMAGES_PER_CALL="4")


@pytest.fixture(scope="module")
def pictures(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three digits, as a data set: eight of each to train, six to test."""
    folder = tmp_path_factory.mktemp("matrix") / "few"
    for split, kept in {"train": 8, "test": 6}.items():
        for of_class in sorted((digits / split).iterdir())[:3]:
            (folder / split / of_class.name).mkdir(parents=True)
            for picture in sorted(of_class.iterdir())[:kept]:
                shutil.copy2(picture, folder / split / of_class.name)
    return folder


def killed_after(attempt: Attempt, begun: Callable[[], bool], seconds: float) -> None:
    """Kills it so many seconds after it has begun to be charged."""
    process = attempt.start()
    deadline = time.monotonic() + 120
    while not begun() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(seconds)
    process.kill()
    process.wait(30)


def full_at(attempt: Attempt, size: int, *names: str) -> None:
    """Lets no file grow past so many bytes, as a full disk does; a file is then named."""
    process = attempt.start()
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, size))
    code = process.wait(120)
    said = (attempt.folder / "stderr").read_text()
    assert "Traceback" not in said
    assert code == 0 or any(name in said for name in names), said


# --- craft predict --out --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(small_server: Server) -> str:
    """A published adapter of one prompt; everybody may use it."""
    key = small_server.key(owner="matrix")
    with Client(small_server.url, key) as client:
        card = client.model()
        config = AdapterConfig(
            model=card.name,
            revision=card.revision,
            classes=list(NAMES),
            templates=["a photo of the number {}."],
            head="none",
        )
        client.publish("plain", Adapter(config, np.zeros((0, 0), np.float32), Unrefined()))
    small_server.craft(key, "share", "plain", "--public").check_returncode()
    return "matrix/plain"


@dataclass
class Predicted:
    """What an undisturbed `craft predict --out` comes to."""

    charged: dict[str, int]
    rows: dict[str, list[str]]
    seconds: float
    record: int


def rows_of(out: Path) -> dict[str, list[str]]:
    with out.open(newline="") as text:
        _, *rows = filter(None, csv.reader(text))
    found = {row[0]: row for row in rows}
    assert len(found) == len(rows), "a picture has two rows"
    return found


def predicting(server: Server, adapter: str, pictures: Path, folder: Path) -> Attempt:
    folder.mkdir()
    command = ("predict", pictures, "--adapter", adapter, "--top", "2")
    return Attempt(server, server.key(), folder, (*command, "--out", folder / "out.csv"))


@pytest.fixture(scope="module")
def predicted(
    small_server: Server,
    adapter: str,
    pictures: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Predicted:
    folder = tmp_path_factory.mktemp("predicted") / "whole"
    attempt = predicting(small_server, adapter, pictures, folder)
    record, process = folder / "out.csv.calls", attempt.start()
    while not record.exists():
        assert process.poll() is None
        time.sleep(0.01)
    began = time.monotonic()
    assert process.wait(120) == 0
    seconds = time.monotonic() - began
    rows, size = rows_of(folder / "out.csv"), record.stat().st_size
    return Predicted(attempt.charged, rows, seconds, size)


def cut(out: Path, at: random.Random) -> None:
    """What people, spreadsheets and machines do to a file."""
    data = out.read_bytes()
    header, *lines = data.splitlines(keepends=True)
    ways: list[Callable[[], bytes]] = [
        lambda: data[: at.randrange(len(data))],
        lambda: b"".join([header, *(line for line in lines if at.random() < 0.5)]),
        lambda: b"".join([header, *at.sample(lines, len(lines))]),
        lambda: data.replace(b"\n", b"\r\n"),
    ]
    out.write_bytes(at.choice(ways)())


@pytest.mark.parametrize("trouble", ["killed", "cut", "disk full"])
@pytest.mark.timeout(900)
def test_predictions_in_a_file_go_on_after_anything(
    small_server: Server,
    adapter: str,
    pictures: Path,
    predicted: Predicted,
    tmp_path: Path,
    trouble: str,
) -> None:
    at = random.Random(trouble)
    for number in range(TIMES):
        attempt = predicting(small_server, adapter, pictures, tmp_path / str(number))
        out = attempt.folder / "out.csv"
        if trouble == "disk full":
            full_at(attempt, at.randrange(predicted.record), "out.csv")
        else:
            record = attempt.folder / "out.csv.calls"
            killed_after(attempt, record.exists, at.uniform(0, predicted.seconds))
        if trouble == "cut":
            cut(out, at)
        attempt.finish()
        if trouble == "cut":
            cut(out, at)
            attempt.finish()
        assert rows_of(out) == predicted.rows
        assert attempt.charged == predicted.charged


def test_pictures_that_come_in_between_are_all_that_is_charged(
    small_server: Server, adapter: str, pictures: Path, predicted: Predicted, tmp_path: Path
) -> None:
    at = random.Random(5)
    for number in range(TIMES):
        folder = tmp_path / f"pictures-{number}"
        shutil.copytree(pictures, folder)
        attempt = predicting(small_server, adapter, folder, tmp_path / str(number))
        record = attempt.folder / "out.csv.calls"
        killed_after(attempt, record.exists, at.uniform(0, predicted.seconds))
        first = min((folder / "train").iterdir())
        for new in range(3):
            shutil.copy(min(first.iterdir()), first / f"00-{new}.png")
        attempt.finish()
        assert len(rows_of(attempt.folder / "out.csv")) == len(predicted.rows) + 3
        charged = attempt.charged
        assert charged["images"] == predicted.charged["images"] + 3
        assert charged["queries"] <= predicted.charged["queries"] + 2


# --- craft bench ----------------------------------------------------------------------------------


@dataclass
class Benched:
    """What an undisturbed `craft bench` comes to."""

    charged: dict[str, int]
    results: list[dict[str, object]]
    seconds: float
    largest: int


def benching(server: Server, pictures: Path, folder: Path) -> Attempt:
    folder.mkdir()
    recipe = ("--recipe", "bbt", "--budget", str(1 + 41 * 2))
    options = ("--dataset", pictures.name, "--shots", "2", "--seed", "1", *recipe)
    key = server.key(owner=f"bench-{folder.name}")
    command = ("bench", "--data", pictures.parent, *options, "--out", folder / "out")
    return Attempt(server, key, folder, command)


def results_of(attempt: Attempt) -> list[dict[str, object]]:
    results = json.loads((attempt.folder / "out/results.json").read_bytes())
    return [{name: result[name] for name in result.keys() - OWN} for result in results]


@pytest.fixture(scope="module")
def benched(
    small_server: Server, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Benched:
    attempt = benching(small_server, pictures, tmp_path_factory.mktemp("benched") / "whole")
    process = attempt.start()
    while not begun(attempt)():
        assert process.poll() is None
        time.sleep(0.01)
    began = time.monotonic()
    assert process.wait(300) == 0
    seconds = time.monotonic() - began
    sizes = [file.stat().st_size for file in attempt.folder.rglob("*") if file.is_file()]
    return Benched(attempt.charged, results_of(attempt), seconds, max(sizes))


def begun(attempt: Attempt) -> Callable[[], bool]:
    return lambda: any((attempt.folder / "out").rglob("run.json"))


def cut_files(attempt: Attempt, at: random.Random) -> None:
    """Empties, cuts or removes some of what a benchmark has written but what names its run."""
    files = [file for file in attempt.folder.glob("out/**/*") if file.is_file()]
    for file in at.sample(sorted(files), min(4, len(files))):
        if file.name == "journal.jsonl":
            os.truncate(file, at.randrange(file.stat().st_size + 1))
        elif file.name not in ("run.json", "lock"):
            ways: list[Callable[[Path], None]] = [
                Path.unlink,
                lambda file: os.truncate(file, 0),
                lambda file: os.truncate(file, at.randrange(file.stat().st_size + 1)),
            ]
            at.choice(ways)(file)


@pytest.mark.parametrize("trouble", ["killed", "cut", "disk full"])
@pytest.mark.timeout(1800)
def test_a_benchmark_goes_on_after_anything(
    small_server: Server, pictures: Path, benched: Benched, tmp_path: Path, trouble: str
) -> None:
    at = random.Random(trouble)
    for number in range(BENCH_TIMES):
        attempt = benching(small_server, pictures, tmp_path / f"{trouble[:3]}-{number}")
        if trouble == "disk full":
            full_at(attempt, at.randrange(benched.largest), str(attempt.folder / "out"))
        else:
            killed_after(attempt, begun(attempt), at.uniform(0, benched.seconds))
        if trouble == "cut":
            cut_files(attempt, at)
        attempt.finish()
        assert results_of(attempt) == benched.results
        assert attempt.charged == benched.charged
