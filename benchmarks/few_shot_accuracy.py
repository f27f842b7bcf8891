"""Few-shot accuracy over HTTP: zero-shot, then `craft tune`, on test pictures, over seeds.

Starts a craft-server of its own, drives it with the craft command alone, and holds the command's
counts against the server's ledger after every data set. Prints a table and writes JSON.

    python benchmarks/few_shot_accuracy.py --data DIR [DIR ...] \
        --json benchmarks/results/few_shot.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from options import parser_for, present, save
from quickstart import free_port, wait_until_ready

BIN = Path(sys.executable).parent
UNITS = ("queries", "predictions", "images", "texts", "requests")


@contextmanager
def serving(model: str, folder: Path) -> Iterator[dict[str, str]]:
    """A craft-server process; gives the environment in which `craft` finds it."""
    port = free_port()
    env = {**os.environ, "CRAFT_DATA_DIR": str(folder), "CRAFT_URL": f"http://127.0.0.1:{port}"}
    key = command(env, "craft-server", "keys", "create", "--owner", "benchmark")
    env["CRAFT_API_KEY"] = key["key"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [BIN / "craft-server", "serve", "--model", model, "--port", str(port)],
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until_ready(env["CRAFT_URL"], server)
        yield env
    finally:
        server.terminate()
        server.wait(60)


def command(env: dict[str, str], name: str, *arguments: object) -> dict[str, Any]:
    """Runs a command with --json and returns its document with the seconds that it took."""
    started = time.monotonic()
    done = subprocess.run(
        [BIN / name, *map(str, arguments), "--json"],
        env=env,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    document: dict[str, Any] = json.loads(done.stdout)
    return {**document, "seconds": time.monotonic() - started}


def measure(env: dict[str, str], data: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Zero-shot once, and tune and evaluate for every seed."""
    zero_shot = command(env, "craft", "zero-shot", "--data", data)
    spent = [zero_shot]
    runs = []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            settings = ["--shots", args.shots, "--seed", seed]
            settings += [] if args.budget is None else ["--budget", args.budget]
            tuned = command(
                env, "craft", "tune", "--data", data, *settings, *args.tune, "--run", run
            )
            evaluated = command(env, "craft", "evaluate", run, "--data", data)
        spent += [tuned, evaluated]
        runs.append(
            {
                "seed": seed,
                "accuracy": evaluated["accuracy_after"],
                "tuning": tuned["charged"],
                "evaluation": evaluated["charged"],
                "seconds": tuned["seconds"],
                "command": tuned,
            }
        )
        print(f"{data.name} seed {seed}: {evaluated['accuracy_after']:.2f} %", file=sys.stderr)
    accuracies = [run["accuracy"] for run in runs]
    return {
        "data": data.name,
        "shots": args.shots,
        "budget": args.budget,
        "zero_shot": zero_shot["accuracy"],
        "mean": statistics.mean(accuracies),
        "spread": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "runs": runs,
        "charged": {unit: sum(entry["charged"][unit] for entry in spent) for unit in UNITS},
    }


def print_table(results: list[dict[str, Any]]) -> None:
    """A Markdown table: accuracy in percent, units a tuning run."""
    header = ("data", "shots", "zero-shot", "tuned, mean ± spread", *UNITS)
    print(f"| {' | '.join(header)} |")
    print("|" + "---|" * len(header))
    for result in results:
        units = [
            f"{statistics.mean(run['tuning'][unit] for run in result['runs']):,.0f}"
            for unit in UNITS
        ]
        print(
            f"| {result['data']} | {result['shots']} | {result['zero_shot']:.2f} "
            f"| {result['mean']:.2f} ± {result['spread']:.2f} | {' | '.join(units)} |"
        )


def main() -> None:
    """Runs the measurement."""
    parser = parser_for(__doc__)
    parser.add_argument("--budget", type=int, help="queries of a run; the recipe's by default")
    parser.add_argument("tune", nargs="*", help="further options for craft tune, after --")
    args = parser.parse_args()

    results = []
    with tempfile.TemporaryDirectory() as folder, serving(args.model, Path(folder)) as env:
        for data in present(args.data):
            before = command(env, "craft", "usage")["total"]
            result = measure(env, data, args)
            after = command(env, "craft", "usage")["total"]
            ledger = {unit: after[unit] - before[unit] for unit in UNITS}
            if ledger != result["charged"]:
                raise SystemExit(f"the ledger says {ledger}, the client {result['charged']}")
            results.append({**result, "ledger": ledger})
            save(results, args.json)
    print_table(results)


if __name__ == "__main__":
    main()
