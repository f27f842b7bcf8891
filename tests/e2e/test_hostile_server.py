"""Whatever a server says, or a folder that somebody gave: nothing of it is obeyed by a terminal."""

from __future__ import annotations

import gzip
import inspect
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import zstandard
from PIL import Image

from client.run_folders import write_run
from craft_client import async_api, limits, predictions
from craft_client.cli import app
from craft_shared import codec, problems
from craft_shared.wire import Answer
from e2e.hostile_server import ESCAPES, MARKS, HostileServer, document
from e2e.programs import CRAFT, run

BIN = Path(sys.executable).parent
KEY = "craft_aaaaaaaa_SECRETSECRET"
TUNE = ("--shots", "2", "--budget", "12", "--population", "4", "--random-codes", "3", "--dim", "6")
SET = "caltech-101"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and a run directory in which each text is hostile."""
    place = tmp_path_factory.mktemp("hostile")
    shade = 0
    for split, count in {"train": 3, "test": 2}.items():
        for label in ("a", "b"):
            for number in range(count):
                file = place / SET / split / label / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (shade := shade + 9, 10, 200)).save(file)
    ours = place / "runs/ours"
    write_run(ours)
    for file in ("run.json", "summary.json"):
        content = json.loads((ours / file).read_text())
        (ours / file).write_text(json.dumps(_poisoned(content)))
    shutil.copytree(ours, place / f"runs/{ESCAPES.replace(chr(0), '')}")
    text = ESCAPES.replace("\0", "")  # or it would not be read as text at all
    (place / "receipt.jws").write_text(f"{text}.{text}.{text}")
    return place


def _poisoned(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _poisoned(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [_poisoned(inner) for inner in value]
    return f"{value}{ESCAPES}" if isinstance(value, str) and name != "recipe" else value


@pytest.fixture(scope="module")
def hostile() -> Iterator[HostileServer]:
    with HostileServer().listening() as server:
        yield server


# Each command, once as people read it and once more as programs do where there are documents.
COMMANDS: dict[str, list[list[str]]] = {
    "models": [[], ["--json"], ["--verbose"]],
    "usage": [[], ["--json"]],
    "budget": [[], ["--json"]],
    "image-sets show": [["x"], ["x", "--json"]],
    "image-sets delete": [[ESCAPES.replace("\0", "")]],
    "zero-shot": [["--data", SET], ["--data", SET, "--json"]],
    "tune": [["--data", SET, *TUNE, "--run", "{new}"]],
    "data check": [[SET], [SET, "--json"]],
    "bench": [["--data", ".", "--dataset", SET, "--shots", "1", "--seed", "1", "--out", "{new}"]],
    "evaluate": [["runs/ours", "--data", SET], ["--adapter", "x", "--data", SET]],
    "publish": [["runs/ours", "--name", "x"], ["runs/ours", "--name", "x", "--json"]],
    "adapters": [[], ["--json"], ["x"], ["x", "--json"]],
    "share": [["x", "--public"], ["x", "--public", "--json"]],
    "retire": [["x"]],
    "restore": [["x"]],
    "predict": [
        [f"{SET}/test/a", "--adapter", "x"],
        [f"{SET}/test/a", "--adapter", "x", "--json"],
        [f"{SET}/test/a", "--adapter", "x", "--out", "{new}.csv", "--top", "1"],
    ],
    "receipt": [["--out", "{new}.jws"], ["--out", "{new}.jws", "--json"]],
    "verify-receipt": [["receipt.jws"]],
    "runs": [[], ["--json"]],
    "report": [["runs/ours", "--out", "{new}"]],
    "compare": [["runs/ours", "runs/ours"], ["runs/ours", "runs/ours", "--json"]],
    "leaderboard build": [["runs", "--out", "{new}"], ["runs", "--out", "{new}", "--json"]],
    "leaderboard check": [["runs/ours"], ["runs/ours", "--json"]],
    "plugins": [[]],
    "config show": [[], ["--json"]],
}


def _leaves(command: Any, name: str = "") -> Iterator[str]:
    children = getattr(command, "commands", {})
    for child, inner in children.items():
        yield from _leaves(inner, f"{name} {child}".strip())
    if not children:
        yield name


def test_every_command_is_tried() -> None:
    assert set(COMMANDS) == set(_leaves(typer.main.get_command(app)))


def craft(server: HostileServer, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = [word.replace("{new}", f"new-{time.monotonic_ns()}") for word in arguments]
    env = {
        **os.environ,
        "CRAFT_URL": server.url,
        "CRAFT_API_KEY": KEY,
        "XDG_CONFIG_HOME": str(folder / "home"),
        "PWD": str(folder),
    }
    here = Path.cwd()
    os.chdir(folder)  # a fork begins where its parent is
    try:
        return run(CRAFT, words, env)
    finally:
        os.chdir(here)


def assert_harmless(done: subprocess.CompletedProcess[str]) -> None:
    for text in (done.stdout, done.stderr):
        strange = {sign for sign in text if sign != "\n" and not sign.isprintable()}
        assert strange == set()
        assert "Traceback" not in text
        assert not re.search("^Fake", text, re.MULTILINE), "a line that was never said"
    assert "nobody foresaw" not in done.stderr
    assert done.returncode in (0, 1, 2, 3)


CASES = [
    pytest.param(mode, name, more, id=f"{mode} {name} {number}")
    for mode in ("answers", "problems")
    for name, variants in COMMANDS.items()
    for number, more in enumerate(variants if mode == "answers" else variants[:1])
]


@pytest.mark.parametrize(("mode", "name", "more"), CASES)
def test_nothing_but_text_reaches_a_terminal(
    hostile: HostileServer, folder: Path, mode: str, name: str, more: list[str]
) -> None:
    hostile.mode = mode
    done = craft(hostile, folder, *name.split(), *more)
    assert_harmless(done)
    if "--json" in more and done.returncode == 0:
        json.loads(done.stdout)


def test_every_answer_was_hostile_once(hostile: HostileServer) -> None:
    """It counts what the tests above were served; alone it has nothing to count."""
    if len(hostile.asked) < 50:
        pytest.skip("the tests of all commands were not run before it")
    modules = (async_api, limits, predictions)
    source = "".join(map(inspect.getsource, modules))
    read = {
        kind
        for module in modules
        for name, kind in vars(module).items()
        if isinstance(kind, type)
        and issubclass(kind, Answer)
        and re.search(rf"read(_json|_tensors)?\({name}\b", source)
    }
    assert read
    assert read <= hostile.served
    assert {key for _, key in hostile.asked} == {f"Bearer {KEY}", "Bearer none"}


def test_a_live_terminal_is_not_told_anything_either(hostile: HostileServer, folder: Path) -> None:
    """With colours and redrawn lines, which are rich's own."""
    for mode in ("answers", "problems"):
        hostile.mode = mode
        said = ""
        for words in (["models"], ["predict", f"{SET}/test/a", "--adapter", "x"]):
            said += _on_a_terminal(hostile, folder, words)
        assert r"\x1b" in said, "shown as a code"
        # The terminal itself returns the carriage, and so does rich where it redraws a line.
        found = [mark for mark in MARKS if mark != "\r" and mark in said]
        assert found == []


def _on_a_terminal(server: HostileServer, folder: Path, words: list[str]) -> str:
    env = {**os.environ, "CRAFT_URL": server.url, "CRAFT_API_KEY": KEY, "TERM": "xterm-256color"}
    main, other = pty.openpty()
    process = subprocess.Popen(
        [BIN / "craft", *words], stdin=other, stdout=other, stderr=other, env=env, cwd=folder
    )
    os.close(other)
    said = b""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if select.select([main], [], [], 0.2)[0]:
            try:
                data = os.read(main, 65536)
            except OSError:
                data = b""
            if not data:
                break
            said += data
        elif process.poll() is not None:
            break
    os.close(main)
    assert process.wait(30) in (0, 1)
    return said.decode()


# --- broken answers -------------------------------------------------------------------------------

JSON = {"Content-Type": "application/json"}
PROBLEM = {"Content-Type": problems.MEDIA_TYPE}
TENSORS = {"Content-Type": codec.MEDIA_TYPE}


def _models(**numbers: Any) -> dict[str, Any]:
    from craft_shared.wire import ModelList

    return document(ModelList, **numbers)


def _wrong(change: Callable[[dict[str, Any]], object]) -> bytes:
    told = _models()
    change(told["models"][0])
    return json.dumps(told).encode()


LIMITED = PROBLEM | {"Retry-After": "9" * 400}
BROKEN: dict[str, tuple[int, dict[str, str], bytes]] = {
    "empty": (200, JSON, b""),
    "no JSON": (200, JSON, b"\x1b[2J{"),
    "no text": (200, JSON, b"\xff\xfe\x00"),
    "deep": (200, JSON, b"[" * 100_000),
    "deep objects": (200, JSON, b'{"models":' * 50_000),
    "null": (200, JSON, b"null"),
    "list": (200, JSON, b"[1]"),
    "long number": (200, JSON, b'{"models":[{"image_size":' + b"9" * 5000 + b"}]}"),
    "no number": (200, JSON, _wrong(lambda card: card.update(image_size=float("nan")))),
    "no limit": (200, JSON, _wrong(lambda card: card["limits"].update(images_per_call=0))),
    "wrong type": (200, JSON, _wrong(lambda card: card.update(name={"a": 1}))),
    "large number": (200, JSON, _wrong(lambda card: card["limits"].update(dim=10**30))),
    "page": (200, {"Content-Type": "text/html"}, f"<html>{ESCAPES}".encode()),
    "odd type": (200, {"Content-Type": "\x9b31m"}, b"{}"),
    "odd charset": (200, {"Content-Type": "application/json; charset=zlib"}, b"{}"),
    "tensors": (200, TENSORS, b"\xff" * 100),
    "redirected": (302, {"Location": "http://127.0.0.1:1/\x9b31m"}, b""),
    "problem without words": (400, PROBLEM, b"{}"),
    "problem of another kind": (404, PROBLEM, b"[]"),
    "odd status": (299, JSON, b"{}"),
    "teapot": (418, {}, ESCAPES.encode()),
    "wait for ever": (429, LIMITED, json.dumps(
        document(problems.Problem, status=429) | {"type": problems.RATE_LIMITED.uri}
    ).encode()),
    "odd coding": (200, JSON | {"Content-Encoding": "br"}, b"\x00"),
    "no gzip": (200, JSON | {"Content-Encoding": "gzip"}, b"{}"),
    "twice gzip": (200, JSON | {"Content-Encoding": "gzip, gzip"}, b"{}"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_answer_is_a_sentence(hostile: HostileServer, folder: Path, name: str) -> None:
    hostile.mode = BROKEN[name]
    done = craft(hostile, folder, "models")
    assert_harmless(done)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert done.stdout == ""


# --- memory ---------------------------------------------------------------------------------------

SIZE = 2**26  # bytes, of a body that is eight times as large as any that is accepted


def _times(piece: bytes) -> bytes:
    return piece * (SIZE // len(piece))


def _chunks_without_end() -> bytes:
    return (b"100000\r\n" + b" " * 2**20 + b"\r\n") * 64


BOMBS: dict[str, Callable[[], tuple[int, dict[str, str], bytes]]] = {
    "gzip": lambda: (200, JSON | {"Content-Encoding": "gzip"}, gzip.compress(_times(b" "), 6)),
    "deflate": lambda: (
        200, JSON | {"Content-Encoding": "deflate"}, zlib.compress(_times(b" "), 6)
    ),
    "zstd": lambda: (200, JSON | {"Content-Encoding": "zstd"}, zstandard.compress(_times(b" "))),
    "a problem in gzip": lambda: (
        400, PROBLEM | {"Content-Encoding": "gzip"}, gzip.compress(_times(b" "), 6)
    ),
    "chunks": lambda: (200, JSON | {"Transfer-Encoding": "chunked"}, _chunks_without_end()),
    "length": lambda: (200, JSON | {"Content-Length": str(10**12)}, b" " * 2**20),
    "wrong items": lambda: (200, JSON, b'{"models":[' + b"{}," * 2_000_000 + b"{}]}"),
    "empty items": lambda: (200, JSON, b'{"models":[' + b"[]," * 2_000_000 + b"[]]}"),
    "few wrong items": lambda: (200, JSON, b'{"models":[' + b"{}," * 80_000 + b"{}]}"),
    "names": lambda: (200, JSON, b'{"models":[],"x":{' + b'"":0,' * 250_000 + b'"":0}}'),
}  # fmt: skip


# What counts a process from its own beginning; `getrusage` begins with what it was forked from.
MEASURED = """
import atexit, pathlib
from craft_client.cli import app
def note():
    status = pathlib.Path("/proc/self/status").read_text()
    pathlib.Path("peak").write_text(status.split("VmHWM:")[1].split()[0])
atexit.register(note)
app()
"""


def _peak(server: HostileServer, folder: Path) -> tuple[int, str]:
    """Of a process of its own: the most memory that it had, in bytes, and what it said."""
    env = {
        **os.environ, "CRAFT_URL": server.url, "CRAFT_API_KEY": KEY,
        "XDG_CONFIG_HOME": str(folder / "home"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "models"],
        env=env, cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    return int((folder / "peak").read_text()) * 1024, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_within_three_times_the_largest_honest_answer(
    hostile: HostileServer, folder: Path
) -> None:
    from craft_client.calls import MOST_JSON_BYTES

    hostile.mode = "answers"
    honest, _ = _peak(hostile, folder)
    for name, bomb in BOMBS.items():
        hostile.mode = bomb()
        peak, said = _peak(hostile, folder)
        assert said.startswith("Error: The answer") or name == "names", (name, said)
        assert "Traceback" not in said
        assert peak - honest < 3 * MOST_JSON_BYTES, name
