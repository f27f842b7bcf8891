"""`craft` and `craft-server` as processes of their own, which need not import torch each time.

What takes long to import is imported once, by a process (multiprocessing's forkserver) of which
every program is a fork: with its own memory, environment, signals, output and exit code, but not
its own imports. Tests of what a program imports and of what processes it starts run the installed
commands instead.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name

CRAFT = "craft_client.cli:app"
CRAFT_SERVER = "craft_server.cli:app"
LIBRARIES = ["httpx", "numpy", "pydantic", "rich", "safetensors.numpy", "scipy.optimize", "typer"]
LIBRARIES += ["PIL.Image", "cma", "httpcore", "jiter", "joserfc.jws", "matplotlib.figure"]
LIBRARIES += ["alembic", "fastapi", "sqlalchemy", "stamina", "structlog", "uvicorn"]
LIBRARIES += ["open_clip", "openvino"]  # and with it torch, torchvision and timm
OURS = ["craft_client.cli", "craft_client.api", "craft_client.evaluation", "craft_client.tune"]
OURS += ["craft_server.cli", "craft_server.app", "craft_server.engine"]

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([*LIBRARIES, *OURS])
_FRESH = multiprocessing.get_context("spawn")


class Program:
    """A program that was started; its methods are those of `subprocess.Popen`."""

    def __init__(
        self,
        program: str,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        stdout: Path,
        stderr: Path,
    ) -> None:
        given = (program, list(arguments), dict(env), stdout, stderr)
        # What prometheus_client reads when it is imported.
        context = _FRESH if "PROMETHEUS_MULTIPROC_DIR" in env else _FORKS
        self._process = context.Process(target=_run, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def run(
    program: str, arguments: Sequence[str], env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end."""
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        code = Program(program, arguments, env=env, stdout=stdout, stderr=stderr).wait()
        return subprocess.CompletedProcess(arguments, code, stdout.read_text(), stderr.read_text())


def _run(program: str, arguments: list[str], env: dict[str, str], *outputs: Path) -> None:
    gc.freeze()  # or collecting would visit, and so copy, all that was imported before
    for number, path in enumerate(outputs, 1):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.path[:0] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [program, *arguments]
    resolve_name(program)()
