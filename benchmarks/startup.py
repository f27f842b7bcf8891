"""How long the command lines take to say their help, and a server to be ready.

Processes are started one after the other, the kinds in turn, after one of each that does not count.
Times are wall time, from the start of the process to its end, or to the first 200 of /readyz. Beside
them stands a bare interpreter's, since all else includes it, and the machine's load, since these
times are the first to grow under it.

    python benchmarks/startup.py --json docs/startup.json
"""

from __future__ import annotations

import argparse
import os
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

from options import save
from quickstart import free_port

READY_SECONDS = 120
PROGRAMS = {
    "python -c pass": ["-c", "pass"],
    "craft --help": ["-c", "from craft_client.cli import app; app()", "--help"],
    "craft-server --help": ["-c", "from craft_server.cli import app; app()", "--help"],
}
SERVE = ["-c", "from craft_server.cli import app; app()", "serve", "--model", "pocket"]


def ended(arguments: list[str]) -> float:
    """Seconds until a process has ended."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def ready() -> float:
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
                    return time.perf_counter() - began
                if server.poll() is not None:
                    raise SystemExit("the server ended before it was ready")
                time.sleep(0.01)
            raise SystemExit(f"the server was not ready in {READY_SECONDS} s")
        finally:
            server.terminate()
            server.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--servers", type=int, default=5, help="repetitions of the server's start")
    parser.add_argument("--json", type=Path, default=None)
    chosen = parser.parse_args()
    kinds: dict[str, tuple[int, Callable[[], float]]] = {
        name: (chosen.repetitions, lambda arguments=arguments: ended(arguments))
        for name, arguments in PROGRAMS.items()
    }
    kinds["craft-server serve, to /readyz"] = (chosen.servers, ready)
    times: dict[str, list[float]] = {name: [] for name in kinds}
    load_before = os.getloadavg()[0]
    for number in range(max(count for count, _ in kinds.values()) + 1):
        for name, (count, measure) in kinds.items():
            if number <= count:
                seconds = measure()
                if number:
                    times[name].append(seconds)
    bare = statistics.median(times["python -c pass"])
    results = [
        {
            "what": name,
            "repetitions": len(taken),
            "median_s": statistics.median(taken),
            "least_s": min(taken),
            "most_s": max(taken),
            "times_a_bare_interpreter": statistics.median(taken) / bare,
        }
        for name, taken in times.items()
    ]
    for result in results:
        print(
            f"{result['what']:32} median {result['median_s']:.3f} s, "
            f"{result['least_s']:.3f} to {result['most_s']:.3f}"
        )
    about = {
        "cores": os.cpu_count(),
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
        "results": results,
    }
    print(
        f"{about['cores']} cores, load {load_before:.1f} before and {about['load_after']:.1f} after"
    )
    if chosen.json is not None:
        save(chosen.json, about)


if __name__ == "__main__":
    main()
