"""A server of several processes: one with the model, some that speak HTTP."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

from craft_server.processes.supervisor import Supervisor, at_the_end_of
from craft_server.serving.listening import exit_on
from craft_server.settings import Settings

_COMMON_MODULES = ["craft_server.app", "craft_server.engine", "craft_server.processes.engine_app"]
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
    """Loads the model and does what the other processes ask; ends with the line alone."""
    import uvicorn

    class LastToEnd(uvicorn.Server):
        """Ignores signals: where a whole group gets them, the others are still answering."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            pass

    from craft_server.engine import ModelLoadError
    from craft_server.logs import configure_logging
    from craft_server.processes.engine_app import engine_app
    from craft_server.serving.listening import engine_of, introduce, keep_what_is_loaded

    configure_logging(settings.log_level)
    with exit_on(ModelLoadError), closing(engine_of(settings)) as engine:
        introduce(engine)
        config = uvicorn.Config(
            engine_app(engine), uds=str(address), log_config=None, access_log=False
        )
        server = LastToEnd(config)
        at_the_end_of(line, lambda: setattr(server, "should_exit", True))
        keep_what_is_loaded()
        server.run()


def _http_process(
    line: Connection, settings: Settings, address: Path, listener: socket.socket
) -> None:
    """Serves the API, with the model in the other process."""
    from craft_server.app import create_app
    from craft_server.logs import configure_logging
    from craft_server.processes.remote_engine import RemoteEngine
    from craft_server.serving.listening import end_on_sigterm, run_draining
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
        run_draining(create_app(settings, engine), settings, listener)


def _forget_metrics(process_id: int) -> None:
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(process_id)  # type: ignore[no-untyped-call] # the library has no types here
