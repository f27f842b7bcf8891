"""The closed form by itself: its time and memory, from answers to head, by the number of images.

Each size is measured in a process of its own, on scores of random embeddings: sixteen images a
class, the class names and 512 further texts under one prompt.

    python benchmarks/closed_form.py --json docs/closed_form.json
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax

from craft_client.refine import fit_ridge
from options import save

SHOTS, TEXTS, WIDTH = 16, 512, 256


def measure(classes: int) -> dict[str, Any]:
    """One fit; memory is the most above what the answers took already."""
    random = np.random.default_rng(0)
    texts = random.normal(size=(classes + TEXTS, WIDTH)).astype(np.float32)
    labels = np.repeat(np.arange(classes), SHOTS)
    images = 0.35 * texts[labels] + random.normal(size=(len(labels), WIDTH)).astype(np.float32)
    for vectors in (images, texts):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    answers = log_softmax(60 * (images @ texts.T), axis=1)[None]
    before, cpu, wall = peak(), time.process_time(), time.monotonic()
    fit_ridge(answers, labels)
    return {
        "classes": classes,
        "images": len(labels),
        "inputs": answers.shape[2],
        "cpu_s": round(time.process_time() - cpu, 1),
        "wall_s": round(time.monotonic() - wall, 1),
        "peak_mib": peak(),
        "peak_before_mib": before,
    }


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[100, 200, 400, 1000])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    print("| classes | images | inputs | CPU s | s | peak MiB |\n|---|---|---|---|---|---|")
    for classes in options.classes:
        with multiprocessing.get_context("spawn").Pool(1) as process:
            row = process.apply(measure, (classes,))
        rows.append(row)
        told = (
            row[name] for name in ("classes", "images", "inputs", "cpu_s", "wall_s", "peak_mib")
        )
        print("|", " | ".join(f"{value:,}" for value in told), "|", flush=True)
    save(rows, options.json)


if __name__ == "__main__":
    main()
