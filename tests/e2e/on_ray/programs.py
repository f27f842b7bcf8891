"""Programs that start a Ray of their own, and say when it is ready."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

READY_SECONDS = 240
TESTS = Path(__file__).parents[2]


@contextmanager
def running(
    module: str, *arguments: object, folder: Path, **settings: object
) -> Iterator[tuple[Popen[bytes], dict[str, str]]]:
    """A module's process that is ready, and its environment; it ends when its input does."""
    env = {
        **os.environ,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": "/tmp",
        "RAY_worker_niceness": "0",  # by default 15: nothing beside other tests
        "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path[1:]]),
        **{name: str(value) for name, value in settings.items()},
    }
    with (folder / "log").open("wb") as log:
        process = Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=TESTS,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line == b"ready\n":
                break
        else:
            raise AssertionError((folder / "log").read_text()[-5000:])
        yield process, env
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(60)
        finally:
            process.kill()
