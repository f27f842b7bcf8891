"""The closed form by itself: its time and memory, from answers to head, by the number of images.

Each size is measured in a process of its own, on scores of random embeddings: 1,000 class names and
1,000 kept texts under one prompt.

    python benchmarks/closed_form.py --json benchmarks/results/closed_form.json
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

from craft_client.recipes.craftbox import fit
from options import save

CLASSES, TEXTS, WIDTH = 1000, 1000, 256


def measure(images: int, classes: int = CLASSES, kept: int = TEXTS) -> dict[str, Any]:
    """One fit, its time and the process's peak."""
    random = np.random.default_rng(0)
    texts = random.normal(size=(classes + kept, WIDTH)).astype(np.float32)
    labels = np.arange(images) % classes
    seen = 0.35 * texts[labels] + random.normal(size=(images, WIDTH)).astype(np.float32)
    for vectors in (seen, texts):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    answers = log_softmax(60 * (seen @ texts.T), axis=1)[None]
    before, cpu, wall = peak(), time.process_time(), time.monotonic()
    fit(answers, labels, np.arange(images))
    return {
        "classes": classes,
        "images": images,
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
    parser.add_argument("--images", type=int, nargs="+", default=[1600, 3200, 6400, 16_000])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    print("| classes | images | inputs | CPU s | s | peak MiB |\n|---|---|---|---|---|---|")
    for images in options.images:
        with multiprocessing.get_context("spawn").Pool(1) as process:
            row = process.apply(measure, (images,))
        rows.append(row)
        told = (
            row[name] for name in ("classes", "images", "inputs", "cpu_s", "wall_s", "peak_mib")
        )
        print("|", " | ".join(f"{value:,}" for value in told), "|", flush=True)
    save(rows, options.json)


if __name__ == "__main__":
    main()
