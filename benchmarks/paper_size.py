"""The paper's memory and time claims at its own size: CoOp's step beside the client's whole fit.

Weights are random, for time and memory do not depend on them. Each line is a process of its own:

- CoOp: one training step of prompt learning, forwards and backwards through the text tower for all
  class names, with the batch of 32 images' features in hand. Its peak is of the whole process.
- client: the default recipe's fit, from the answers to the head, 16 images a class, 512 texts.

The number of classes beyond those measured is extrapolated by a straight line; its error is the
line's at the largest number, fitted on the smaller ones.

    python benchmarks/paper_size.py --json benchmarks/results/paper_size.json
"""

from __future__ import annotations

import argparse
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

import closed_form
from options import save

SHOTS, TEXTS, STEPS, BEYOND = 16, 512, 2, 1000


def coop_step(model: str, classes: int) -> dict[str, Any]:
    """Processor time of one step, after one that is not counted, and the process's peak."""
    import torch  # the client's process is the same module's, and has none of this

    from craft_client.presets import common_nouns
    from craft_server.engine.models import ModelSpec, load_model
    from white_box import COOP_BATCH, ClassTexts, Training, learn_words

    loaded = load_model(ModelSpec(model, None, device="cpu"))
    texts = ClassTexts(loaded, common_nouns()[:classes])
    with torch.inference_mode():
        width = texts.features(texts.start).shape[1]
    random = np.random.default_rng(0)
    features = random.normal(size=(COOP_BATCH, width)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels = np.arange(COOP_BATCH) % classes
    training = Training(features, labels, texts, texts, loaded.logit_scale, seed=0, epochs=1)
    rows = np.arange(COOP_BATCH)
    learn_words(training, rows, 1, 0.002)
    started = time.process_time()
    learn_words(training, rows, STEPS, 0.002)
    return {"seconds": (time.process_time() - started) / STEPS, "peak_mib": closed_form.peak()}


def client_fit(classes: int) -> dict[str, Any]:
    """Processor time of the whole fit, and the process's peak."""
    found = closed_form.measure(SHOTS * classes, classes, TEXTS)
    return {"seconds": found["cpu_s"], "peak_mib": found["peak_mib"]}


def extrapolated(classes: list[int], values: list[float]) -> tuple[float, float]:
    """The value at `BEYOND` classes, and the line's relative error at the last one measured."""
    line = np.polyfit(classes, values, 1)
    earlier = np.polyfit(classes[:-1], values[:-1], 1)
    error = abs(np.polyval(earlier, classes[-1]) - values[-1]) / values[-1]
    return float(np.polyval(line, BEYOND)), float(error)


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["RN50", "ViT-B-16"])
    parser.add_argument("--classes", type=int, nargs="+", default=[47, 100, 200, 400])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = []
    print("| process | classes | CPU s | peak MiB |\n|---|---|---|---|")
    parts = [("client", client_fit, ())]
    parts += [(f"CoOp, {model}", coop_step, (model,)) for model in args.models]
    for name, function, first in parts:
        lines = []
        for classes in args.classes:
            with get_context("spawn").Pool(1) as process:
                lines.append(process.apply(function, (*first, classes)))
            results.append({"process": name, "classes": classes, **lines[-1]})
            print(
                f"| {name} | {classes} | {lines[-1]['seconds']:.1f} | {lines[-1]['peak_mib']:,} |",
                flush=True,
            )
            save(results, args.json)
        beyond = {"process": name, "classes": BEYOND, "extrapolated": True}
        for field in ("seconds", "peak_mib"):
            value, error = extrapolated(args.classes, [line[field] for line in lines])
            beyond |= {field: round(value, 1), f"{field}_error": round(error, 3)}
        results.append(beyond)
        print(
            f"| {name} | {BEYOND:,}, extrapolated | {beyond['seconds']:.1f} "
            f"(± {beyond['seconds_error']:.0%}) | {beyond['peak_mib']:,.0f} "
            f"(± {beyond['peak_mib_error']:.0%}) |"
        )
        save(results, args.json)


if __name__ == "__main__":
    main()
