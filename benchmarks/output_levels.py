"""Accuracy by output level: `craft tune` with a key that sees less and less, over seeds.

Starts a craft-server of its own, sets its key's policy with `craft-server keys policy`, and drives
it with the craft command alone. Zero-shot is what the plain prompt's answers of the same level say
of the test pictures. Prints a table and writes JSON: each level with what was charged and how many
bytes of answers a run received, for whoever draws accuracy against what is shown.

    python benchmarks/output_levels.py --data DIR [DIR ...] \
        --json benchmarks/results/output_levels.json
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from options import parser_for, present, save
from serving import command, serving

# Options of `craft-server keys policy`, the coarsest level first.
LEVELS = (
    "--level label",
    "--level top_k --k 1",
    "--level top_k --k 5",
    "--level probs --decimals 1",
    "--level probs --decimals 2",
    "--level probs --decimals 3",
    "--level log_probs --decimals 1",
    "--level log_probs --noise 0.5",
    "--level log_probs",
)


def measure(
    env: dict[str, str], data: Path, level: str, args: argparse.Namespace
) -> dict[str, Any]:
    """Tunes and evaluates at one level, for every seed."""
    prefix = env["CRAFT_API_KEY"].split("_")[1]
    policy = command(env, "craft-server", "keys", "policy", prefix, *level.split())
    runs = []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            settings = ["--shots", args.shots, "--seed", seed, *args.tune]
            tuned = command(env, "craft", "tune", "--data", data, *settings, "--run", run)
            evaluated = command(env, "craft", "evaluate", run, "--data", data)
        runs.append(
            {
                "seed": seed,
                "zero_shot": evaluated["accuracy_before"],
                "accuracy": evaluated["accuracy_after"],
                "held_in": tuned["accuracy_after"],
                "prompts": tuned["prompts"],
                "answer_bytes": tuned["answer_bytes"],
                "tuning": tuned["charged"],
                "seconds": tuned["seconds"],
            }
        )
        print(f"{data.name}, {level}, seed {seed}: {runs[-1]['accuracy']:.2f} %", file=sys.stderr)
    accuracies = [run["accuracy"] for run in runs]
    return {
        "data": data.name,
        "shots": args.shots,
        "level": level,
        "output": policy["policies"][0]["output"],
        "zero_shot": statistics.mean(run["zero_shot"] for run in runs),
        "mean": statistics.mean(accuracies),
        "spread": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "runs": runs,
    }


def print_table(results: list[dict[str, Any]]) -> None:
    """A Markdown table: accuracy in percent, queries and received bytes a tuning run."""
    header = ("data", "level", "zero-shot", "tuned, mean ± spread", "each seed", "queries", "MB")
    print(f"| {' | '.join(header)} |")
    print("|" + "---|" * len(header))
    for result in results:
        runs = result["runs"]
        each = ", ".join(f"{run['accuracy']:.2f}" for run in runs)
        queries = statistics.mean(run["tuning"]["queries"] for run in runs)
        received = statistics.mean(run["answer_bytes"] for run in runs) / 1e6
        print(
            f"| {result['data']} | `{result['level'].removeprefix('--level ')}` "
            f"| {result['zero_shot']:.2f} | {result['mean']:.2f} ± {result['spread']:.2f} "
            f"| {each} | {queries:,.0f} | {received:.2f} |"
        )


def main() -> None:
    """Runs the measurement."""
    parser = parser_for(__doc__)
    parser.add_argument("--levels", nargs="+", default=LEVELS, help="options of a policy, each")
    parser.add_argument("tune", nargs="*", help="further options for craft tune, after --")
    args = parser.parse_args()

    results = []
    with tempfile.TemporaryDirectory() as folder, serving(args.model, Path(folder)) as env:
        for level in args.levels:
            for data in present(args.data):
                try:
                    results.append(measure(env, data, level, args))
                except subprocess.CalledProcessError as error:
                    raise SystemExit(f"{data.name}, {level}: {error}") from error
                save(results, args.json)
    results.sort(key=lambda result: result["data"])
    save(results, args.json)
    print_table(results)


if __name__ == "__main__":
    main()
