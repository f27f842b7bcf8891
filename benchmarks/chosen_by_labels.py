"""Whether prompts and texts should be chosen by the labels: the leave-one-out loss of the head.

Of many random codes that were all paid for, some are chosen one after another, each the one that
lowers the leave-one-out loss of the closed-form head on all chosen most. The same of a vocabulary's
texts, by how much of the labels they explain beside those chosen. What the head is then worth is
measured on training and validation pictures that were not drawn; test pictures are not read.

Computed in process, for it takes thousands of heads and no further answer of the model.

    python benchmarks/chosen_by_labels.py --data DIR [DIR ...] --json docs/chosen_by_labels.json
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from craft_client.data import Dataset, Sample, few_shot
from craft_client.layouts import load_dataset
from craft_client.open_text import beside, common_nouns, spanning_texts
from craft_client.refine import REGULARISATIONS, fit_ridge
from craft_server.engine import Engine, ModelSpec, Prompts
from craft_shared.head import centred_inputs, log_softmax
from craft_shared.wire import Context
from options import parser_for, present, save

Array = NDArray[np.float32]
Labels = NDArray[np.int64]

MOST_PIXELS = 50_000_000
TEMPLATE = "a photo of a {}."
CODES = 64
CHOSEN = (4, 8, 16)
KEPT_TEXTS = 64
# For choosing; what is reported has the whole path.
FEW_REGULARISATIONS = REGULARISATIONS[2:7:2]


async def scored(
    engine: Engine, images: Array, names: list[str], prompts: Prompts, dtype: Any = "float16"
) -> Array:
    """Log-probabilities [P, N, texts], as precise as they travel."""
    texts = await engine.encode_prompts(prompts, names)
    return (await engine.score(images, texts, dtype)).astype(np.float32)


async def features(engine: Engine, samples: list[Sample]) -> Array:
    """Image features [N, width]."""
    parts = []
    for begin in range(0, len(samples), 256):
        files = [sample.path.read_bytes() for sample in samples[begin : begin + 256]]
        decoded = await engine.decode_images(files, max_pixels=MOST_PIXELS)
        parts.append(await engine.encode_images(decoded))
    return np.concatenate(parts)


def chosen_codes(log_probs: Array, labels: Labels, count: int) -> list[int]:
    """Prompts, the plain one first, each of which lowers the leave-one-out loss most."""
    chosen = [0]
    while len(chosen) <= count:
        losses = {
            prompt: fit_ridge(log_probs[[*chosen, prompt]], labels, FEW_REGULARISATIONS).loss
            for prompt in range(1, len(log_probs))
            if prompt not in chosen
        }
        chosen.append(min(losses, key=lambda prompt: losses[prompt] or np.inf))
    return chosen


def explaining_texts(log_probs: Array, labels: Labels, classes: int, keep: int) -> list[int]:
    """Texts, each of which explains most of what is left of the labels (forward regression)."""
    scores = centred_inputs(log_probs).astype(np.float64)
    scores -= scores.mean(axis=0)
    targets = np.eye(classes)[labels]
    targets -= targets.mean(axis=0)
    names, new = scores[:, :classes], scores[:, classes:].copy()
    penalty = 1e-4 * (names**2).sum()
    solved = np.linalg.solve(names.T @ names + penalty * np.eye(classes), names.T)
    new -= names @ (solved @ new)
    targets -= names @ (solved @ targets)
    chosen: list[int] = []
    for _ in range(keep):
        sizes = (new**2).sum(axis=0)
        gains = ((targets.T @ new) ** 2).sum(axis=0) / (sizes + penalty)
        gains[chosen] = -1
        text = int(gains.argmax())
        chosen.append(text)
        direction = new[:, text] / np.sqrt(sizes[text] + penalty)
        targets -= np.outer(direction, direction @ targets)
        new -= np.outer(direction, direction @ new)
    return chosen


async def measure(
    engine: Engine, data: Dataset, pool: dict[Sample, Array], shots: int, seed: int
) -> list[dict[str, Any]]:
    """All choices for one draw of pictures; `pool` has the features of those to draw from."""
    few = few_shot(data.train, shots, seed, data.classes)
    others = tuple(pool.keys() - set(few))
    labels, other_labels = (np.array([s.label for s in part]) for part in (few, others))
    images, other_images = (np.stack([pool[s] for s in part]) for part in (few, others))
    names, nouns = list(data.classes), list(beside(data.classes, common_nouns()))
    codes = np.random.default_rng([seed, 0]).standard_normal((CODES, 512), dtype=np.float32)
    results: list[dict[str, Any]] = []

    def report(choice: str, count: int, log_probs: Array, of_others: Array) -> None:
        fit = fit_ridge(log_probs, labels)
        right = fit.head(of_others).argmax(axis=1) == other_labels
        result = {
            "data": data.name,
            "seed": seed,
            "choice": choice,
            "count": count,
            "left_out_accuracy": fit.accuracy,
            "left_out_loss": fit.loss,
            "others": len(others),
            "accuracy_of_others": 100 * float(right.mean()),
        }
        print(result, file=sys.stderr, flush=True)
        results.append(result)

    prompts = Prompts((TEMPLATE,), Context(dim=512, seed=seed, scale=3.0), codes)
    seen, unseen = [await scored(engine, x, names, prompts) for x in (images, other_images)]
    for count in (*CHOSEN, CODES):
        report("codes, unchosen", count, seen[: 1 + count], unseen[: 1 + count])
    chosen = chosen_codes(seen, labels, max(CHOSEN))
    for count in CHOSEN:
        report("codes, by labels", count, seen[chosen[: 1 + count]], unseen[chosen[: 1 + count]])

    plain = Prompts((TEMPLATE,), None, codes[:0])
    seen, unseen = [
        await scored(engine, x, [*names, *nouns], plain) for x in (images, other_images)
    ]
    spanning = spanning_texts(seen[0], len(names), KEPT_TEXTS).tolist()
    by_labels = explaining_texts(seen, labels, len(names), KEPT_TEXTS)
    for choice, texts in (("texts, spanning", spanning), ("texts, by labels", by_labels)):
        columns = [*range(len(names)), *(len(names) + text for text in texts)]
        report(choice, KEPT_TEXTS, *(log_softmax(x[:, :, columns]) for x in (seen, unseen)))
    return results


def main() -> None:
    """Runs the measurement."""
    parser = parser_for(__doc__)
    args = parser.parse_args()
    engine = Engine.load(ModelSpec(args.model))
    results = []
    for folder in present(args.data):
        data = load_dataset(folder)
        samples = [*data.train, *data.validation]
        pool = dict(zip(samples, asyncio.run(features(engine, samples)), strict=True))
        for seed in args.seeds:
            results += asyncio.run(measure(engine, data, pool, args.shots, seed))
            save(results, args.json)
    print("| data | choice | count | seed | left-out accuracy | left-out loss | others |")
    print("|" + "---|" * 7)
    for one in results:
        print(
            f"| {one['data']} | {one['choice']} | {one['count']} | {one['seed']} "
            f"| {one['left_out_accuracy']:.2f} | {one['left_out_loss']:.3f} "
            f"| {one['accuracy_of_others']:.2f} |"
        )
    engine.close()


if __name__ == "__main__":
    main()
