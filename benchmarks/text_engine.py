"""The text engine beside the straightforward encoder, and how far it is from what must be computed.

The straightforward encoder reads each class's text whole, 77 tokens, one prompt after the other, as
CraFT's released code does. The engine is asked as the server asks it, with new codes every time, so
that nothing is remembered. Both read the same codes of the same context on the same threads, in
turn; times are medians.

The architectures are those of the published weights (with QuickGELU), their weights random. In
bfloat16 the engine is beside the encoder in float32, and beside the floor in bfloat16.

The floor is the multiply-adds of the tokens that no exact method can leave out, at the rate of a
large matrix product on this machine, measured in the same minute:

- each prompt's shared tokens once, and every class's own tokens under every prompt, through all
  layers; in the last layer keys and values, and the rest for end tokens alone;
- in the first layer, own tokens' queries, keys and values once for all prompts;
- attention as far as the causal mask lets it see.

    python benchmarks/text_engine.py --json benchmarks/results/text_engine.json
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from craft_client.presets import common_nouns
from craft_server.engine import Engine, ModelSpec, Prompts
from craft_server.engine.models import load_model
from craft_server.engine.precision import Precision
from craft_server.engine.tokens import Ids, shared_length
from craft_server.engine.worker import Task
from craft_shared.wire import Context
from options import save
from tuning_run import DTD
from white_box import in_own_process

CONTEXT = Context(init="a photo of a", dim=512, seed=1, scale=3.0)
RATE_SIDE = 1024


@torch.inference_mode()
def straightforward(
    model: Any, engine: Engine, codes: NDArray[np.float32], classes: Sequence[str]
) -> NDArray[np.float32]:
    """Unit features [P, C, width]: all 77 tokens of each text, one prompt after the other."""
    tower = getattr(model, "text", model)
    ids = torch.zeros(len(classes), tower.positional_embedding.shape[0], dtype=torch.long)
    for row, sequence in zip(ids, sequences_of(engine, classes), strict=True):
        row[: len(sequence)] = torch.tensor(sequence)
    embeddings = tower.token_embedding(ids)
    features = []
    for words in engine._contexts.embeddings(CONTEXT, codes):
        prompts = embeddings.clone()
        prompts[:, 1 : 1 + len(words)] = words
        x = prompts + tower.positional_embedding
        x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask))
        ends: Tensor = x[torch.arange(len(ids)), ids.argmax(dim=-1)] @ tower.text_projection
        features.append(functional.normalize(ends, dim=-1))
    return torch.stack(features).numpy()


def sequences_of(engine: Engine, classes: Sequence[str]) -> list[Ids]:
    """The texts' tokens."""
    return [engine._tokenizer.of().context(CONTEXT.init, name) for name in classes]


def unavoidable(engine: Engine, prompts: int, classes: Sequence[str]) -> float:
    """Multiply-adds of what no exact method can leave out; see the top."""
    sequences = sequences_of(engine, classes)
    shared = shared_length(sequences)
    lengths = [len(sequence) - shared for sequence in sequences]
    own, layers = sum(lengths), len(engine._tower._blocks)  # type: ignore[union-attr] # pocket has it
    square = engine._tower.width**2
    joint, mix, mlp = 3 * square, square, 8 * square  # of a token in a layer
    tokens = prompts * (shared + own)
    ends = prompts * len(classes)
    linear = (
        (prompts * shared + own) * joint  # the first layer's
        + (layers - 2) * tokens * joint
        + tokens * 2 * square  # the last layer's keys and values,
        + ends * square  # and queries
        + (layers - 1) * tokens * (mix + mlp)
        + ends * (mix + mlp)
        + ends * engine._tower.width * engine._features
    )
    seen = shared * (shared + 1) / 2 + sum(s * shared + s * (s + 1) / 2 for s in lengths)
    seen_by_ends = sum(shared + s for s in lengths)
    attention = prompts * ((layers - 1) * seen + seen_by_ends) * 2 * engine._tower.width
    return linear + attention


def seconds_of(
    engine: Engine, threads: int, function: Callable[..., object], *arguments: object
) -> float:
    """Wall time of one call on the engine's own thread.

    Threads that compute in turn keep each other's helpers from their cores.
    """

    def timed(_: object) -> list[float]:
        torch.set_num_threads(threads)
        began = time.perf_counter()
        function(*arguments)
        return [time.perf_counter() - began]

    (future,) = engine._worker.submit(timed, [Task(None, 0.0, wide=True)])
    return future.result()


def product(left: Tensor, right: Tensor) -> object:
    """A large matrix product."""
    return left @ right


def measure(
    name: str,
    precision: Precision,
    threads: int,
    classes: Sequence[str],
    prompts: int,
    repetitions: int,
    baselines: int,
) -> dict[str, Any]:
    """One line of the table; the straightforward encoder runs `baselines` times.

    In a process of its own, since a server hosts one model too.
    """
    spec = ModelSpec(name, device="cpu", precision=precision)
    engine, loop, model = Engine.load(spec), asyncio.Runner(), load_model(spec).module
    sides = torch.randn(2, RATE_SIDE, RATE_SIDE).to(getattr(torch, precision))
    rng = np.random.default_rng(1)

    def new_codes() -> NDArray[np.float32]:
        return rng.standard_normal((prompts, CONTEXT.dim), dtype=np.float32)

    def ask(codes: NDArray[np.float32]) -> NDArray[np.float32]:
        return loop.run(engine.encode_prompts(Prompts((), CONTEXT, codes), classes))

    codes = new_codes()
    found, expected = ask(codes)[:1], np.zeros(0, np.float32)

    def check() -> None:
        nonlocal expected
        expected = straightforward(model, engine, codes[:1], classes)

    seconds_of(engine, threads, check)
    error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    times: dict[str, list[float]] = {"engine": [], "straightforward": [], "product": []}
    for repetition in range(repetitions):
        codes = new_codes()
        times["product"] += [seconds_of(engine, threads, product, *sides) for _ in range(10)]
        began = time.perf_counter()
        ask(codes)
        times["engine"].append(time.perf_counter() - began)
        if repetition < baselines:
            one = seconds_of(engine, threads, straightforward, model, engine, codes[:1], classes)
            times["straightforward"].append(prompts * one)
    median = {name: statistics.median(values) for name, values in times.items()}
    rate = RATE_SIDE**3 / median["product"]
    floor = unavoidable(engine, prompts, classes) / rate
    return {
        "model": engine.name,
        "precision": precision,
        "classes": len(classes),
        "prompts": prompts,
        "threads": threads,
        "relative_error": error,
        "straightforward_ms": 1000 * median["straightforward"],
        "engine_ms": 1000 * median["engine"],
        "speedup": median["straightforward"] / median["engine"],
        "floor_ms": 1000 * floor,
        "above_floor": median["engine"] / floor,
        "multiply_adds_a_second": rate,
    }


def print_table(results: list[dict[str, Any]]) -> None:
    """A Markdown table."""
    print(
        "| model | precision | classes | prompts | threads | straightforward, ms | engine, ms ",
        end="",
    )
    print("| speedup | floor, ms | above floor | relative error |")
    print("|" + "---|" * 11)
    for line in results:
        print(
            f"| {line['model']} | {line['precision']} | {line['classes']:,} "
            f"| {line['prompts']} | {line['threads']} "
            f"| {line['straightforward_ms']:,.0f} | {line['engine_ms']:,.1f} "
            f"| {line['speedup']:.1f} | {line['floor_ms']:,.1f} | {line['above_floor']:.2f} "
            f"| {line['relative_error']:.1e} |"
        )


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    nouns = list(common_nouns())
    cases = [
        ("RN50-quickgelu", DTD, 1, 21, 7),
        ("RN50-quickgelu", DTD, 40, 5, 3),
        ("ViT-B-16-quickgelu", nouns[:100], 1, 15, 5),
        ("ViT-B-16-quickgelu", nouns, 1, 5, 2),
        ("pocket", DTD, 40, 5, 3),
    ]
    results = []
    for threads in args.threads:
        for name, classes, *counts in cases:
            for precision in ("float32", "bfloat16"):
                line = in_own_process(measure, name, precision, threads, classes, *counts)
                results.append(line)
                print_table(results[-1:])
                save(results, args.json)
    print_table(results)


if __name__ == "__main__":
    main()
