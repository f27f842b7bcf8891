"""How long the command lines take to say their help, and a server to be ready.

Processes are started one after the other, the kinds in turn, after one of each that does not
count. Times are wall time, from the start of the process to its end, or to the first 200 of
/readyz; of those that end, their processor time is told too, which other work on the machine
changes less. Beside them stands a bare interpreter's, since all else includes it, and the
machine's load.

    python benchmarks/startup.py --json benchmarks/results/startup.json
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from options import save
from quickstart import free_port

READY_SECONDS = 120
PROGRAMS = {
    "python -c pass": ["-c", "pass"],
    "craft --help": ["-c", "from craft_client.cli import app; app()", "--help"],
    "craft-server --help": ["-c", "from craft_server.cli import app; app()", "--help"],
}
SERVE = ["-c", "from craft_server.cli import app; app()", "serve", "--model", "pocket"]


def ended(arguments: list[str]) -> tuple[float, float | None]:
    """Seconds until a process has ended, and of processors."""
    used, began = _processor_seconds(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began, _processor_seconds() - used


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def ready() -> tuple[float, float | None]:
    """Seconds until a server with the pocket model is ready, on an empty database."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *SERVE, "--port", str(port), "--data-dir", folder]
        began = time.perf_counter()
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while time.perf_counter() - began < READY_SECONDS:
                with suppress(urllib.error.URLError, ConnectionError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz").close()
                    return time.perf_counter() - began, None
                if server.poll() is not None:
                    raise SystemExit("the server ended before it was ready")
                time.sleep(0.01)
            raise SystemExit(f"the server was not ready in {READY_SECONDS} s")
        finally:
            server.terminate()
            server.wait(30)


def summary(what: str, taken: list[tuple[float, float | None]]) -> dict[str, Any]:
    """Medians and extremes of one kind."""
    seconds = [wall for wall, _ in taken]
    processors = [used for _, used in taken if used is not None]
    return {
        "what": what,
        "repetitions": len(taken),
        "median_s": statistics.median(seconds),
        "least_s": min(seconds),
        "most_s": max(seconds),
        "processor_median_s": statistics.median(processors) if processors else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--servers", type=int, default=5, help="repetitions of the server's start")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    kinds: dict[str, tuple[int, Callable[[], tuple[float, float | None]]]] = {
        name: (chosen.repetitions, lambda arguments=arguments: ended(arguments))
        for name, arguments in PROGRAMS.items()
    }
    kinds["craft-server serve, to /readyz"] = (chosen.servers, ready)
    times: dict[str, list[tuple[float, float | None]]] = {name: [] for name in kinds}
    load_before = os.getloadavg()[0]
    for number in range(max(count for count, _ in kinds.values()) + 1):
        for name, (count, measure) in kinds.items():
            if number <= count:
                taken = measure()
                if number:
                    times[name].append(taken)
    results = [summary(name, taken) for name, taken in times.items()]
    for result in results:
        of_processors = result["processor_median_s"]
        print(
            f"{result['what']:32} median {result['median_s']:.3f} s, {result['least_s']:.3f} to "
            f"{result['most_s']:.3f}"
            + ("" if of_processors is None else f"; of processors {of_processors:.3f} s")
        )
    load_after = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load_before:.1f} before and {load_after:.1f} after")
    about = {"cores": os.cpu_count(), "load_before": load_before, "load_after": load_after}
    save({**about, "results": results}, chosen.json)


if __name__ == "__main__":
    main()
