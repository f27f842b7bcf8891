"""Accuracy in `--precision auto` beside float32, and how many top-1 answers are equal.

Two craft-server processes with pocket; each run is tuned and evaluated on both, over HTTP, on the
whole test split. Top-1 answers are those of the plain prompt with the class names, of engines in
this process. Evaluations send no image twice to a server.

    python benchmarks/precision.py --data DIR [DIR ...] --json benchmarks/results/precision.json
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codes_by_level import features
from craft_client.layouts import load_dataset
from craft_server.engine import Engine, ModelSpec, Prompts
from image_speed import HERE, Server, serving
from options import save
from serving import command

PRECISIONS = ("auto", "float32")


def accuracy(server: Server, data: Path, recipe: str, seed: int) -> float:
    """Of an adapter tuned on 16 shots, on the test split, in percent."""
    env = {**os.environ, "CRAFT_URL": server.url, "CRAFT_API_KEY": server.key}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        options = ["--shots", 16, "--seed", seed, "--recipe", recipe, "--run", run]
        command(env, "craft", "tune", "--data", data, *options)
        found = command(env, "craft", "evaluate", run, "--data", data)
    percent: float = found["accuracy_after"]
    return percent


def answers(engine: Engine, data: Path) -> NDArray[np.int64]:
    """The class of each test image under the plain prompt."""
    dataset = load_dataset(data)
    prompts = Prompts(("a photo of a {}.",), None, np.zeros((0, 0), np.float32))
    texts = asyncio.run(engine.encode_prompts(prompts, dataset.classes))
    images = asyncio.run(features(engine, list(dataset.test)))
    scores: NDArray[np.float32] = images @ texts[0].T
    return scores.argmax(axis=1)


def main() -> None:
    """Measures, prints and writes after each line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--recipes", nargs="+", default=["craftbox", "paper"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    equal, runs = [], []

    engines = [
        Engine.load(ModelSpec("pocket", device="cpu", precision=precision))  # type: ignore[arg-type] # one of PRECISIONS
        for precision in PRECISIONS
    ]
    for data in arguments.data:
        first, second = (answers(engine, data) for engine in engines)
        equal.append({"data": data.name, "equal_percent": float(100 * (first == second).mean())})
        print(equal[-1], flush=True)
    for engine in engines:
        engine.close()

    with (
        serving(HERE, "pocket", "--precision", "auto") as auto,
        serving(HERE, "pocket", "--precision", "float32") as single,
    ):
        for recipe in arguments.recipes:
            for data in arguments.data:
                for seed in arguments.seeds:
                    line: dict[str, Any] = {"recipe": recipe, "data": data.name, "seed": seed}
                    line["auto"] = accuracy(auto, data, recipe, seed)
                    line["float32"] = accuracy(single, data, recipe, seed)
                    runs.append(line)
                    print(line, flush=True)
                    save({"top1": equal, "runs": runs}, arguments.json)


if __name__ == "__main__":
    main()
