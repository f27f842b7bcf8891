"""A server of several processes: starts them, and starts them again when they die.

Each process holds a line to this one, whose end tells it to end: it comes from `stop`, and from
this process's death by whatever means.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import FrameType
from typing import Any

import structlog

from craft_server.serving.listening import exit_on
from craft_server.settings import Settings

# A process that keeps dying is started again ever later, up to this.
MOST_SECONDS_BETWEEN = 30.0
LEAST_SECONDS_BETWEEN = 0.1
# What lived so long is well again.
WELL_AFTER_SECONDS = 10.0

_log = structlog.get_logger()


@dataclass
class _Child:
    name: str
    function: Callable[..., None]
    args: tuple[Any, ...]
    process: ForkServerProcess
    line: Connection
    started: float
    pause: float = LEAST_SECONDS_BETWEEN
    due: float | None = None


class Supervisor:
    """Processes that are kept running until `stop`.

    `modules` are imported once for all of them; `on_death` gets the process id of each that dies.
    """

    def __init__(self, modules: list[str], on_death: Callable[[int], None]) -> None:
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(modules)
        self._on_death = on_death
        self._children: list[_Child] = []
        self._woken, self._wake = os.pipe()
        self.stopping = False

    @property
    def all_alive(self) -> bool:
        """Whether no process has died since `run` looked last."""
        return all(child.process.is_alive() for child in self._children)

    def keep(self, name: str, function: Callable[..., None], *args: Any) -> None:
        """Runs `function(line, *args)` in a process, and again whenever that process dies.

        Processes end in the opposite order, each once those after it have ended.
        """
        process, line = self._start(name, function, args)
        self._children.append(_Child(name, function, args, process, line, time.monotonic()))

    def stop(self) -> None:
        """Makes `run` end all processes and return; may be called in a signal handler."""
        self.stopping = True
        os.write(self._wake, b"x")

    def run(self) -> None:
        """Replaces what dies until `stop`; then ends all, the newest first."""
        while not self.stopping:
            due = [child.due for child in self._children if child.due is not None]
            running = [child.process.sentinel for child in self._children if child.due is None]
            wait([*running, self._woken], max(0.0, min(due) - time.monotonic()) if due else None)
            if not self.stopping:
                self._replace()
        self.end()

    def end(self) -> None:
        """Ends all processes, and waits for them."""
        by_name: dict[str, list[_Child]] = {}
        for child in self._children:
            by_name.setdefault(child.name, []).append(child)
        for group in reversed(by_name.values()):
            for child in group:
                child.line.close()
            for child in group:
                child.process.join()

    def _start(
        self, name: str, function: Callable[..., None], args: tuple[Any, ...]
    ) -> tuple[ForkServerProcess, Connection]:
        theirs, ours = self._context.Pipe(duplex=False)
        process = self._context.Process(target=function, args=(theirs, *args), name=name)
        process.start()
        theirs.close()
        return process, ours

    def _replace(self) -> None:
        now = time.monotonic()
        for child in self._children:
            if child.due is None and not child.process.is_alive():
                self._bury(child, now)
            if child.due is not None and child.due <= now:
                child.process, child.line = self._start(child.name, child.function, child.args)
                child.started, child.due = now, None

    def _bury(self, child: _Child, now: float) -> None:
        _log.error("process died", process=child.name, exit_code=child.process.exitcode)
        child.line.close()
        self._on_death(child.process.pid or 0)
        well = now - child.started >= WELL_AFTER_SECONDS
        child.pause = LEAST_SECONDS_BETWEEN if well else min(2 * child.pause, MOST_SECONDS_BETWEEN)
        child.due = now + child.pause


def at_the_end_of(line: Connection, function: Callable[[], object]) -> None:
    """Calls a function, on a thread of its own, once the supervisor tells this process to end."""

    def watch() -> None:
        wait([line])
        function()

    threading.Thread(target=watch, name="craft-line", daemon=True).start()


_COMMON_MODULES = [
    "craft_server.app",
    "craft_server.engine",
    "craft_server.processes.remote_engine",
]
_METRICS = "PROMETHEUS_MULTIPROC_DIR"
_BACKLOG = 2048
_POLL_SECONDS = 0.05


def host(settings: Settings, listener: socket.socket, announce: Callable[[], None]) -> None:
    """Serves with `settings.workers` processes that speak HTTP, until SIGTERM or SIGINT.

    `announce` is called once calls are answered.

    Raises:
        SystemExit: the model cannot be loaded; its process has said why.
    """
    with tempfile.TemporaryDirectory(prefix="craft-server-") as folder:
        address, metrics = Path(folder) / "engine", Path(folder) / "metrics"
        metrics.mkdir()
        # Read by the metrics' library when the processes import it.
        os.environ[_METRICS] = str(metrics)
        listener.listen(_BACKLOG)
        supervisor = Supervisor(_COMMON_MODULES, _forget_metrics)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: supervisor.stop())
        supervisor.keep("engine", _engine_process, settings, address)
        while not address.exists() and not supervisor.stopping:
            if not supervisor.all_alive:
                raise SystemExit(1)
            time.sleep(_POLL_SECONDS)
        for _ in range(settings.workers):
            supervisor.keep("http", _http_process, settings, address, listener)
        announce()
        supervisor.run()


def _engine_process(line: Connection, settings: Settings, address: Path) -> None:
    """Loads the model and does what the other processes ask; ends with the line, or its engine."""
    import uvicorn

    class LastToEnd(uvicorn.Server):
        """Ignores signals: where a whole group gets them, the others are still answering."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            pass

    from craft_server.engine import ModelLoadError
    from craft_server.processes.remote_engine import engine_app
    from craft_server.serving.listening import (
        ended_by,
        engine_of,
        introduce,
        keep_what_is_loaded,
    )
    from craft_server.telemetry import configure_logging

    configure_logging(settings.log_level)
    with exit_on(ModelLoadError), closing(engine_of(settings)) as engine:
        introduce(engine)
        config = uvicorn.Config(
            engine_app(engine), uds=str(address), log_config=None, access_log=False
        )
        server = LastToEnd(config)
        at_the_end_of(line, lambda: setattr(server, "should_exit", True))
        keep_what_is_loaded()
        with ended_by(engine, server):
            server.run()


def _http_process(
    line: Connection, settings: Settings, address: Path, listener: socket.socket
) -> None:
    """Serves the API, with the model in the other process."""
    from craft_server.app import create_app
    from craft_server.processes.remote_engine import RemoteEngine
    from craft_server.serving.listening import end_on_sigterm, run_draining
    from craft_server.telemetry import configure_logging
    from craft_shared.tracing import TracingUnavailable, tracing

    end_on_sigterm()
    end = partial(os.kill, os.getpid(), signal.SIGTERM)
    at_the_end_of(line, end)
    configure_logging(settings.log_level)
    with (
        exit_on(TracingUnavailable),
        tracing("craft-server", database=True),
        suppress(KeyboardInterrupt),
    ):
        engine = RemoteEngine.connect(address, on_other_weights=end)
        run_draining(create_app(settings, engine), settings, listener, engine)


def _forget_metrics(process_id: int) -> None:
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(process_id)  # type: ignore[no-untyped-call] # the library has no types here
