"""What compressing an answer saves and takes: zstd on the log-probabilities of real pictures.

Scores class names and a vocabulary under the plain prompt, which is all that `craft tune` asks, and
compresses the safetensors answers at several levels, as the server does: in one piece, on one
thread. Prints a table, writes JSON.

    python benchmarks/answer_compression.py --data DIR... \
        --json benchmarks/results/answer_compression.json
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from craft_client.data import few_shot
from craft_client.layouts import load_dataset
from craft_client.presets import beside, common_nouns
from craft_client.settings import TuneSettings
from craft_server.engine import Engine, ModelSpec, Prompts
from craft_shared import codec
from options import parser_for, present, save

LEVELS = (-1, 1, 3, 6)
ROUNDS = 5
MEGABYTE = 1e6
MOST_PIXELS = 50_000_000


def log_probs_of(engine: Engine, data: Path, shots: int, seed: int) -> np.ndarray[Any, Any]:
    """A run's answer, float32 [1, pictures, classes + texts]."""
    dataset = load_dataset(data)
    samples = few_shot(dataset.split("train"), shots, seed, dataset.classes)
    files = [sample.path.read_bytes() for sample in samples]
    settings = TuneSettings(seed=seed)
    prompts = Prompts((settings.template,), None, np.zeros((0, settings.dim), np.float32))
    texts = [*dataset.classes, *beside(dataset.classes, common_nouns())]

    async def score() -> np.ndarray[Any, Any]:
        return await engine.score(
            await engine.encode_images(await engine.decode_images(files, max_pixels=MOST_PIXELS)),
            await engine.encode_prompts(prompts, texts),
        )

    return asyncio.run(score())


def rate(action: Callable[[], object], size: int) -> float:
    """Megabytes a second, the median of some rounds."""
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return size / MEGABYTE / statistics.median(seconds)


def measure(answer: bytes, level: int) -> dict[str, float]:
    """Ratio and rates of one answer, in bytes that are not compressed."""
    compressed = zstandard.ZstdCompressor(level).compress(answer)
    return {
        "ratio": len(answer) / len(compressed),
        "compress_mb_s": rate(
            lambda: zstandard.ZstdCompressor(level).compress(answer), len(answer)
        ),
        "decompress_mb_s": rate(lambda: zstandard.decompress(compressed), len(answer)),
    }


def main() -> None:
    """Measures every data set in both precisions."""
    args = parser_for(__doc__).parse_args()
    engine = Engine.load(ModelSpec(name=args.model))
    results: list[dict[str, Any]] = []
    for data in present(args.data):
        log_probs = log_probs_of(engine, data, args.shots, args.seeds[0])
        for dtype in ("float16", "float32"):
            answer = codec.encode({}, {"log_probs": log_probs.astype(dtype)})
            results += [
                {
                    "data": data.name,
                    "dtype": dtype,
                    "megabytes": len(answer) / MEGABYTE,
                    "level": level,
                    **measure(answer, level),
                }
                for level in LEVELS
            ]
    engine.close()
    print("| answer | MB | level | ratio | compress, MB/s | decompress, MB/s |")
    print("|---|---|---|---|---|---|")
    for r in results:
        print(
            f"| {r['data']}, {r['dtype']} | {r['megabytes']:.1f} | {r['level']} | {r['ratio']:.2f} "
            f"| {r['compress_mb_s']:,.0f} | {r['decompress_mb_s']:,.0f} |"
        )
    save(results, args.json)


if __name__ == "__main__":
    main()
