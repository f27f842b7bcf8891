"""A newcomer's machine: where craftbox is installed, a terminal, pictures, a running server.

Always the environment that runs the tests; with CRAFT_TEST_FULL=1 virtual environments that are
made as README.md says, which takes minutes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from journeys.words import ROOT, line
from quickstart import free_port, write_digits

FULL = bool(os.environ.get("CRAFT_TEST_FULL"))
READY_SECONDS = 120


@dataclass
class Terminal:
    """Types commands, one after another, where `craft` is on the PATH.

    Attributes:
        bin: of the virtual environment.
        folder: where it is.
        env: variables beside the machine's own.
    """

    bin: Path
    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def type(self, words: str, *, fails: bool = False) -> str:
        """What a command prints, both streams; it must succeed, or fail if that is expected."""
        done = subprocess.run(
            ["bash", "-c", words],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert (done.returncode != 0) == fails, f"$ {words}\n{done.stdout}"
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        """Everything that a command finds in its environment."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("CRAFT_") and not (FULL and name == "PYTHONPATH")
        }
        path = f"{self.bin}{os.pathsep}{kept['PATH']}"
        return {**kept, "PATH": path, "COLUMNS": "200", **self.env}


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This repository's files; a copy of them where something is to be installed."""
    if not FULL:
        return ROOT
    folder = tmp_path_factory.mktemp("clone") / "craftbox"
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in listed.stdout.split("\0")[:-1]:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    return folder


@pytest.fixture(scope="session")
def server_bin(clone: Path) -> Path:
    """Where README's first command has put craft-server: `.venv` of the clone."""
    if not FULL:
        return Path(sys.executable).parent
    env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    env.pop("PYTHONPATH", None)
    words = [line("README.md", "scripts/quickstart")]
    done = subprocess.run(
        words,
        cwd=clone,
        env={**env, "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "after (published adapter)" in done.stdout
    return clone / ".venv/bin"


@pytest.fixture(scope="session")
def client_bin(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where README's `pip install "craftbox[client]"` has put craft, on another machine."""
    if not FULL:
        return Path(sys.executable).parent
    folder = tmp_path_factory.mktemp("client") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    assert 'pip install "craftbox[client]"' in (clone / "README.md").read_text()
    done = subprocess.run(
        [folder / "bin/pip", "install", "--quiet", f"{clone}[client]"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "bin"


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image folders: handwritten digits, 16 to train and 4 to test of each class."""
    everything, folder = tmp_path_factory.mktemp("all"), tmp_path_factory.mktemp("pictures")
    write_digits(everything)
    for split, count in (("train", 16), ("test", 4)):
        for name in (everything / split).iterdir():
            (folder / split / name.name).mkdir(parents=True)
            for file in sorted(name.glob("*.png"))[:count]:
                shutil.copy(file, folder / split / name.name)
    return folder


@pytest.fixture(scope="session")
def operator(server_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A terminal on the server's machine, where README's `craft-server serve` is running."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    terminal = Terminal(server_bin, folder, {"CRAFT_DATA_DIR": "data", "CRAFT_PORT": str(port)})
    url = f"http://127.0.0.1:{port}"
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", "exec " + line("README.md", "craft-server serve --model pocket")],
            cwd=folder,
            env=terminal.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + READY_SECONDS
    while not _ready(url):
        assert process.poll() is None, (folder / "server.log").read_text()
        assert time.monotonic() < deadline, f"not ready in {READY_SECONDS} s"
        time.sleep(0.1)
    terminal.env["CRAFT_URL"] = url
    yield terminal
    process.terminate()
    assert process.wait(30) in (0, -15), (folder / "server.log").read_text()


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def newcomer(operator: Terminal, client_bin: Path, tmp_path: Path) -> Callable[[str], Terminal]:
    """Makes the terminal of somebody who got a key: the operator typed README's line for it."""

    def make(owner: str) -> Terminal:
        words = line("README.md", "craft-server keys create --owner me", me=owner)
        key = re.search(r"craft_[a-z0-9]+_[\w-]+", operator.type(words))
        assert key is not None
        env = {"CRAFT_URL": operator.env["CRAFT_URL"], "CRAFT_API_KEY": key.group()}
        return Terminal(client_bin, tmp_path, env)

    return make
