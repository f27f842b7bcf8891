"""What predicting through an adapter takes beside encoding the pictures alone.

A craft-server process and one client. In turns, pictures that the server has never seen are added
to an image set, which encodes them and does nothing else, and as many others are classified with a
published adapter. Both are one call with the pictures in its body. Prints a table and writes JSON.

    python benchmarks/adapter_serving.py --json benchmarks/results/adapter_serving.json
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from craft_client.api import Client
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import LinearHead
from craft_shared.wire import Context
from options import save
from serving import serving

ROUNDS = 12
SIDE = 256


class Pictures:
    """JPEG files, no two alike, about as hard to decode as photographs."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(1)

    def take(self, count: int) -> list[bytes]:
        return [self._one() for _ in range(count)]

    def _one(self) -> bytes:
        coarse = self._rng.integers(0, 256, (16, 16, 3), np.uint8)
        image = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90)
        return file.getvalue()


def adapter_of(model: str, revision: str, prompts: int, classes: int) -> Adapter:
    """A random one of the shape that `craft tune` makes."""
    rng = np.random.default_rng(2)
    config = AdapterConfig(
        model=model,
        revision=revision,
        classes=[f"thing number {number}" for number in range(classes)],
        templates=["a photo of a {}."],
        context=Context(dim=512, seed=1, scale=3.0),
        codes=prompts - 1,
        head="ridge",
    )
    weight = rng.normal(0, 0.01, (prompts * classes, classes)).astype(np.float32)
    head = LinearHead(weight, np.zeros(classes, np.float32), 10.0, 0.5)
    return Adapter(config, rng.normal(size=(prompts - 1, 512)).astype(np.float32), head)


def seconds(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def measure(client: Client, prompts: int, classes: int, batch: int) -> dict[str, Any]:
    """Medians over pairs of calls, and the median of the pairs' ratios."""
    (card,) = client.models()
    name = f"random-{prompts}-{classes}"
    client.publish(name, adapter_of(card.name, card.revision, prompts, classes))
    pictures = Pictures()
    pairs = []
    for number in range(ROUNDS + 2):
        alone, through = pictures.take(batch), pictures.take(batch)
        image_set = client.create_image_set(card.name)
        tasks = [
            lambda some=alone, to=image_set: client.upload_images(to, some),
            lambda some=through: client.adapter_predict(name, images=some),
        ]
        order = (0, 1) if number % 2 else (1, 0)
        took = {which: seconds(tasks[which]) for which in order}
        client.delete_image_set(image_set.id)
        if number >= 2:  # after the first ones everything is loaded
            pairs.append((took[0], took[1]))
    alone_ms, through_ms = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "prompts": prompts,
        "classes": classes,
        "pictures": batch,
        "encoding_ms": alone_ms,
        "adapter_ms": through_ms,
        "ratio": statistics.median(through / alone for alone, through in pairs),
        "ratios": [through / alone for alone, through in pairs],
    }


def main() -> None:
    """Measures several shapes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = []
    print("| prompts | classes | pictures a call | encoding alone, ms | adapter, ms | ratio |")
    print("|" + "---|" * 6)
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(args.model, Path(folder)) as env,
        Client(env["CRAFT_URL"], env["CRAFT_API_KEY"]) as client,
    ):
        for prompts, classes, batch in ((32, 102, 64), (32, 102, 8), (8, 1000, 64)):
            result = measure(client, prompts, classes, batch)
            results.append(result)
            print(
                f"| {prompts} | {classes} | {batch} | {result['encoding_ms']:.0f} "
                f"| {result['adapter_ms']:.0f} | {result['ratio']:.3f} |",
                flush=True,
            )
    save({"model": args.model, "rounds": ROUNDS, "shapes": results}, args.json)


if __name__ == "__main__":
    main()
