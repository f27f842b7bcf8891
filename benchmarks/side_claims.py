"""CraFT's side claims: accuracy, training time and memory beside prompt learning with gradients.

The paper compares with white-box tuning: how much accuracy is lost, how much sooner training ends,
and how much less memory the tuning side needs (1/80 in the paper, of a GPU's). Here `craft tune`,
in a process of its own against a craft-server process, stands beside CoOp in a process that has the
model (`white_box.py`), on the same pictures and the same machine, one after the other.

- accuracy: on the test split.
- seconds: of the whole command for `craft tune`, uploads and the server's work included. Of the fit
  alone for CoOp, the encoding of its pictures not included.
- peak MiB: of the process that tunes. The server's memory is the provider's, and is not the
  client's to pay for.

    python benchmarks/side_claims.py --data DIR [DIR ...] --json benchmarks/results/side_claims.json
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from craft_client.layouts import load_dataset
from craft_server.engine.models import ModelSpec
from options import parser_for, present, save
from serving import BIN, command, serving
from white_box import draw_few, encode_pictures, in_own_process, measure

WHITE_BOX = "coop, rate chosen"
FIELDS = ("accuracy", "seconds", "peak_mib")
# A process inherits its parent's peak as its own first one, so the one that is measured needs a
# small parent.
LAUNCHER = """
import json, resource, subprocess, sys, time
started = time.monotonic()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, check=True)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
seconds = time.monotonic() - started
print(json.dumps({**json.loads(done.stdout), "seconds": seconds, "peak_mib": peak}))
"""


def tuned_by_client(
    env: dict[str, str], data: Path, recipe: str, shots: int, seed: int
) -> dict[str, Any]:
    """`craft tune` and `craft evaluate`, the former measured."""
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary) / "run"
        arguments = ["tune", "--data", data, "--shots", shots, "--seed", seed, "--run", run]
        arguments += ["--recipe", recipe, "--json"]
        done = subprocess.run(
            [sys.executable, "-c", LAUNCHER, BIN / "craft", *map(str, arguments)],
            env=env,
            stdout=subprocess.PIPE,
            check=True,
        )
        tuned = json.loads(done.stdout)
        evaluated = command(env, "craft", "evaluate", run, "--data", data)
    return {
        "accuracy": evaluated["accuracy_after"],
        "seconds": tuned["seconds"],
        "peak_mib": tuned["peak_mib"],
        "charged": tuned["charged"],
    }


def tuned_with_gradients(
    spec: ModelSpec, folder: Path, shots: int, seeds: list[int], epochs: int
) -> Iterator[dict[str, Any]]:
    """CoOp, for each seed."""
    data = load_dataset(folder)
    train, rows_of = draw_few(data, shots, seeds)
    with tempfile.TemporaryDirectory() as temporary:
        features = Path(temporary) / "features.npz"
        in_own_process(encode_pictures, spec, data, train, features)
        for seed, rows in rows_of.items():
            options = {"seed": seed, "epochs": epochs}
            yield in_own_process(measure, spec, WHITE_BOX, data.classes, features, rows, options)


def print_table(results: list[dict[str, Any]]) -> None:
    """A Markdown table; CoOp's line first, and what the others are beside it."""
    print("| data | method | accuracy | behind | seconds | of CoOp's | peak MiB | of CoOp's |")
    print("|" + "---|" * 8)
    for result in results:
        means = {
            method: {field: statistics.mean(run[field] for run in runs) for field in FIELDS}
            for method, runs in result["methods"].items()
        }
        coop = means[WHITE_BOX]
        for method, mean in means.items():
            print(
                f"| {result['data']} | {method} | {mean['accuracy']:.2f} "
                f"| {coop['accuracy'] - mean['accuracy']:.2f} "
                f"| {mean['seconds']:.1f} | {mean['seconds'] / coop['seconds']:.2f} "
                f"| {mean['peak_mib']:.0f} | 1/{coop['peak_mib'] / mean['peak_mib']:.1f} |"
            )


def main() -> None:
    """Runs the measurement."""
    parser = parser_for(__doc__)
    parser.add_argument("--recipes", nargs="+", default=["craftbox", "paper"])
    parser.add_argument("--epochs", type=int, default=200)
    args = parser.parse_args()

    spec = ModelSpec(args.model, None, device="cpu")
    results = []
    for data in present(args.data):
        coop = list(tuned_with_gradients(spec, data, args.shots, args.seeds, args.epochs))
        methods: dict[str, list[dict[str, Any]]] = {WHITE_BOX: coop}
        with tempfile.TemporaryDirectory() as folder, serving(args.model, Path(folder)) as env:
            for recipe in args.recipes:
                methods[f"craft tune --recipe {recipe}"] = [
                    tuned_by_client(env, data, recipe, args.shots, seed) for seed in args.seeds
                ]
        results.append({"data": data.name, "epochs": args.epochs, "methods": methods})
        print_table(results[-1:])
        save(results, args.json)


if __name__ == "__main__":
    main()
