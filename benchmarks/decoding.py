"""Decoding a JPEG at the scale that is needed, beside decoding it whole and then resizing.

Time: photographs of a data set, enlarged to a phone's 12 megapixels and to 1.9, with a sensor's
noise; core time of both ways, by turns. Features: images of the test splits, enlarged eightfold,
through pocket's vision tower in float32; their cosine, and the accuracy of a ridge head that was
fitted on features of training images as they are.

    python benchmarks/decoding.py --data DIR [DIR ...] --json benchmarks/results/decoding.json
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import RidgeClassifier

from craft_client.layouts import load_dataset
from craft_server.decoding.pixels import View, decode
from craft_server.engine.hosted import preprocessing_of
from craft_server.engine.models import ModelSpec, load_model
from craft_server.engine.towers import towers_of
from options import save

PHONE, SMALLER = (4000, 3000), (1600, 1200)
ENLARGED = 12
TIMED = 5
NOISE = 4.0  # standard deviation of a pixel, of 255

Features = NDArray[np.float32]


def enlarged(path: Path, size: tuple[int, int], rng: np.random.Generator) -> bytes:
    """An image in another size, with a sensor's noise, as a JPEG file."""
    with Image.open(path) as image:
        large = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    noisy = np.asarray(large) + rng.normal(0, NOISE, (size[1], size[0], 3))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=92)
    return file.getvalue()


def milliseconds(files: Sequence[bytes], view: View) -> dict[str, float]:
    """Of a core, for an image, at the median: whole and scaled, by turns."""
    took: dict[str, list[float]] = {"whole": [], "scaled": []}
    for file in files:
        for name, given in (("whole", None), ("scaled", view)):
            began = time.process_time()
            view.of(decode(file, max_pixels=10**8, view=given))
            took[name].append(1000 * (time.process_time() - began))
    return {name: statistics.median(values) for name, values in took.items()}


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--images", type=int, default=400, help="of each test split")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = load_model(ModelSpec("pocket", device="cpu"))
    view, to_tensor = preprocessing_of(model.preprocess_cfg)
    tower = towers_of(model, "float32", cores=1).vision
    rng = np.random.default_rng(1)

    def features(files: Sequence[bytes], given: View | None) -> Features:
        return np.concatenate(
            [
                tower.encode(
                    [to_tensor(np.array(view.of(decode(file, max_pixels=10**8, view=given))))]
                )
                for file in files
            ]
        )

    sets: list[dict[str, Any]] = []
    for folder in arguments.data:
        data = load_dataset(folder)
        test = [data.test[i] for i in rng.permutation(len(data.test))[: arguments.images]]
        labels = np.array([sample.label for sample in test])
        drawn = [
            sample
            for label in range(len(data.classes))
            for sample in [one for one in data.train if one.label == label][: arguments.shots]
        ]
        head = RidgeClassifier(alpha=1.0).fit(
            features([sample.path.read_bytes() for sample in drawn], None),
            [sample.label for sample in drawn],
        )
        whole, scaled = [], []
        for sample in test:
            with Image.open(sample.path) as image:
                size = (ENLARGED * image.width, ENLARGED * image.height)
            file = enlarged(sample.path, size, rng)
            whole.append(features([file], None)[0])
            scaled.append(features([file], view)[0])
        a, b = np.stack(whole), np.stack(scaled)
        cosines = (a * b).sum(axis=1)
        sets.append(
            {
                "data": data.name,
                "images": len(test),
                "cosine_mean": float(cosines.mean()),
                "cosine_least": float(cosines.min()),
                "accuracy_whole": float(100 * head.score(a, labels)),
                "accuracy_scaled": float(100 * head.score(b, labels)),
                "same_class": float(100 * (head.predict(a) == head.predict(b)).mean()),
            }
        )
        print(sets[-1])
    photographs = [sample.path for sample in data.test[:TIMED]]
    times = [
        {"size": list(size), **milliseconds([enlarged(p, size, rng) for p in photographs], view)}
        for size in (PHONE, SMALLER)
    ]
    print(times)
    save(arguments.json, {"sets": sets, "times": times})


if __name__ == "__main__":
    main()
