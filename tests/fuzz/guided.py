"""Fuzzes one target with atheris, guided by coverage, for so many seconds: `guided.py image 120`.

It knows atheris; it does not know what is fuzzed. Run by scripts/fuzz.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["craft_shared", "craft_server.decoding.pixels", "PIL"]):
    from fuzz.targets import TARGETS, resident_kib

WARM_UP = 2000  # executions, after which memory must not grow


def main(name: str, seconds: int) -> None:
    """Ends with status 0 after the time, or else writes the input that was a finding."""
    target, started = TARGETS[name], time.monotonic()
    done, warm_kib, told = 0, 0, False

    def once(data: bytes) -> None:
        nonlocal done, warm_kib, told
        target.run(data)
        done += 1
        if done == WARM_UP:
            warm_kib = resident_kib()
        # libFuzzer ends the process itself, a moment later.
        if not told and time.monotonic() - started > seconds - 2:
            told = True
            print(
                f"{name}: {done} executions in {seconds} s; resident {warm_kib // 1024} MiB after "
                f"{WARM_UP} and {resident_kib() // 1024} MiB at the end",
                flush=True,
            )

    with tempfile.TemporaryDirectory() as folder:
        for index, seed in enumerate(target.seeds):
            (Path(folder) / f"seed-{index}").write_bytes(seed)
        options = [f"-max_total_time={seconds}", "-max_len=8192", "-verbosity=0"]
        atheris.Setup([sys.argv[0], *options, folder], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 120)
