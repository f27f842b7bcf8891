"""How many random codes coarse answers are worth: the closed-form head at each output level.

The head is fitted on the drawn pictures' scores under the plain prompt and so many random codes, as
coarse as the level makes them. What it is then worth is measured on training and validation
pictures that were not drawn; test pictures are not read. In process, for the answers of all levels
are made of the same ones.

    python benchmarks/codes_by_level.py --data DIR [DIR ...] \
        --json benchmarks/results/codes_by_level.json
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from craft_client.data import Dataset, Sample, few_shot
from craft_client.layouts import load_dataset
from craft_client.recipes.craftbox import fit
from craft_server.engine import Engine, ModelSpec, Prompts
from craft_shared.head import Unrefined
from craft_shared.model_card import level_words
from craft_shared.output import scores_of, shown
from craft_shared.wire import EVERYTHING, Context, Output
from options import parser_for, present, save

Array = NDArray[np.float32]

MOST_PIXELS = 50_000_000
TEMPLATE = "a photo of a {}."

LEVELS = (
    Output(level="label"),
    Output(level="top_k", k=1),
    Output(level="top_k", k=5),
    Output(level="probs", decimals=1),
    Output(level="probs", decimals=2),
    Output(level="probs", decimals=3),
    Output(level="log_probs", decimals=1),
    EVERYTHING,
)


async def scored(engine: Engine, images: Array, names: list[str], prompts: Prompts) -> Array:
    """Log-probabilities [P, N, texts], as precise as they travel."""
    texts = await engine.encode_prompts(prompts, names)
    return (await engine.score(images, texts, "float16")).astype(np.float32)


async def features(engine: Engine, samples: list[Sample]) -> Array:
    """Image features [N, width]."""
    parts = []
    for begin in range(0, len(samples), 256):
        files = [sample.path.read_bytes() for sample in samples[begin : begin + 256]]
        decoded = await engine.decode_images(files, max_pixels=MOST_PIXELS)
        parts.append(await engine.encode_images(decoded))
    return np.concatenate(parts)


async def measure(
    engine: Engine,
    data: Dataset,
    pool: dict[Sample, Array],
    shots: int,
    seed: int,
    counts: list[int],
) -> list[dict[str, Any]]:
    """All levels and counts for one draw of pictures."""
    few = few_shot(data.train, shots, seed, data.classes)
    others = tuple(pool.keys() - set(few))
    labels, other_labels = (np.array([s.label for s in part]) for part in (few, others))
    codes = np.random.default_rng([seed, 0]).standard_normal((max(counts), 512), dtype=np.float32)
    prompts = Prompts((TEMPLATE,), Context(dim=512, seed=seed, scale=3.0), codes)
    seen, unseen = [
        await scored(engine, np.stack([pool[s] for s in part]), list(data.classes), prompts)
        for part in (few, others)
    ]
    results = []
    for output in LEVELS:
        for count in counts:
            few_scores, other_scores = (
                scores_of(shown(part[: 1 + count], output), output, len(data.classes))
                for part in (seen, unseen)
            )
            fitted = fit(few_scores, labels, np.arange(len(labels)))
            plain = isinstance(fitted.head, Unrefined)
            predicted = fitted.head(other_scores[:1] if plain else other_scores)
            right = predicted.argmax(axis=1) == other_labels
            results.append(
                {
                    "data": data.name,
                    "seed": seed,
                    "output": output.model_dump(),
                    "level": level_words(output),
                    "codes": count,
                    "left_out_loss": fitted.loss,
                    "left_out_plain_loss": fitted.plain_loss,
                    "deployed": "plain" if plain else "ridge",
                    "others": len(others),
                    "accuracy_of_others": 100 * float(right.mean()),
                }
            )
            print(results[-1], file=sys.stderr, flush=True)
    return results


def print_table(results: list[dict[str, Any]], counts: list[int]) -> None:
    """A Markdown table: accuracy of the others, mean over seeds, by level and codes."""
    print(f"| data | level | {' | '.join(f'{count} codes' for count in counts)} |")
    print("|" + "---|" * (2 + len(counts)))
    for name in dict.fromkeys(one["data"] for one in results):
        for output in LEVELS:
            words = level_words(output)
            means = [
                np.mean(
                    [
                        one["accuracy_of_others"]
                        for one in results
                        if (one["data"], one["level"], one["codes"]) == (name, words, count)
                    ]
                )
                for count in counts
            ]
            print(f"| {name} | {words} | {' | '.join(f'{mean:.1f}' for mean in means)} |")


def main() -> None:
    """Runs the measurement."""
    parser = parser_for(__doc__)
    parser.add_argument("--codes", type=int, nargs="+", default=[0, 31, 127, 255, 511])
    args = parser.parse_args()
    engine = Engine.load(ModelSpec(args.model))
    results = []
    for folder in present(args.data):
        data = load_dataset(folder)
        samples = [*data.train, *data.validation]
        pool = dict(zip(samples, asyncio.run(features(engine, samples)), strict=True))
        for seed in args.seeds:
            results += asyncio.run(measure(engine, data, pool, args.shots, seed, args.codes))
            save(results, args.json)
    print_table(results, args.codes)
    engine.close()


if __name__ == "__main__":
    main()
