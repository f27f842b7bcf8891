"""How long texts take: their multiply-adds, pack by pack, on so many cores.

It knows what the text engine computes of a pack (see `craft_server.engine.text`) and that packs run
side by side, each on one core, while a single wide one is shared; it does not know the model.
"""

from __future__ import annotations

import heapq

from craft_server.engine.engine import LEAST_WIDTH_TO_SHARE, MOST_THREADS, TOKENS_PER_TASK
from craft_server.engine.packs import Pack, packs
from craft_server.plan.architecture import Architecture
from craft_server.plan.constants import TextRates
from craft_server.plan.workload import Texts


def multiply_adds(architecture: Architecture, pack: Pack) -> float:
    """Of a pack whose class list the first layer remembers.

    Every token goes through all layers, but of the last one only end tokens need more than keys and
    values; attention is what the causal mask lets be seen.
    """
    width, layers = architecture.text_width, architecture.text_layers
    prompts, shared = len(pack.prompts), len(pack.prefix)
    lengths = [len(suffix) for suffix in pack.suffixes]
    own, texts = sum(lengths), len(lengths)
    tokens = prompts * (shared + own)
    square = width**2
    joint, rest = 3 * square, 9 * square
    linear = (
        prompts * shared * joint
        + (layers - 2) * tokens * joint
        + tokens * 2 * square
        + prompts * texts * square
        + (layers - 1) * tokens * rest
        + prompts * texts * (rest + width * architecture.features)
    )
    seen = shared * (shared + 1) / 2 + sum(s * shared + s * (s + 1) / 2 for s in lengths)
    seen_by_ends = sum(shared + s for s in lengths)
    attention = prompts * ((layers - 1) * seen + seen_by_ends) * 2 * width
    return linear + attention


def seconds(
    architecture: Architecture, rates: TextRates, texts: Texts, prompts: int, cores: int
) -> float:
    """Of one call's prompts.

    Args:
        architecture: of the model.
        rates: of its text tower, measured or scaled.
        texts: one a class.
        prompts: that are moved by codes, or one that is not.
        cores: that the server has.
    """
    cores = min(cores, MOST_THREADS)
    cut = list(packs(texts.sequences, prompts=prompts, max_tokens=TOKENS_PER_TASK["cpu"]))
    shares = len(cut) == 1 and cores > 1 and architecture.text_width >= LEAST_WIDTH_TO_SHARE
    if shares:
        return multiply_adds(architecture, cut[0]) / (rates.shared_per_core * cores)
    ends = [0.0] * cores
    for pack in cut:
        earliest = heapq.heappop(ends)
        heapq.heappush(ends, earliest + multiply_adds(architecture, pack) / rates.packed_per_core)
    return max(ends)
