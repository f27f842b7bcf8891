"""Classifying with an adapter: image features in, what its head makes of all prompts' scores out.

It knows how much is held in memory at a time, and what is kept between calls. It does not know who
may use an adapter, nor what that costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from craft_server import adapters
from craft_server.adapters import Publication, ServableAdapter
from craft_server.api.outputs import Question, question
from craft_server.api.pictures import Selection
from craft_server.api.services import Services
from craft_server.engine import Prompts
from craft_server.image_sets import Features
from craft_server.ledger.keys import Caller
from craft_server.noise import Noise
from craft_server.policy import Policy, noisy
from craft_shared.codec import Tensors
from craft_shared.wire import Output

_SCORES_AT_ONCE = 1 << 24  # numbers [P, n, C + M] that one step holds in memory


async def load(services: Services, publication: Publication) -> ServableAdapter:
    """The version as it is served, kept between calls."""
    servable = services.adapters.get(publication.id)
    if servable is None:
        content = await services.database.read(adapters.read_content, publication.id)
        servable = await asyncio.to_thread(adapters.servable, *content)
        services.adapters.put(publication.id, servable)
    return servable


async def adapter_question(
    services: Services,
    caller: Caller,
    policy: Policy,
    output: Output,
    publication: Publication,
    servable: ServableAdapter,
    selection: Selection,
) -> Question:
    """`question` of an adapter's prompts, which are the caller's choice if it is its owner's."""
    config = servable.adapter.config
    return await question(
        services,
        caller,
        policy,
        output,
        prompts=Prompts(tuple(config.templates), config.context, servable.adapter.codes),
        classes=config.scored,
        selection=selection,
        counted=publication.card.owner == caller.owner,
    )


async def classify(
    services: Services,
    caller: Caller,
    servable: ServableAdapter,
    features: Features,
    noise: Noise | None,
    answer: Callable[[NDArray[np.float32]], Tensors],
) -> Tensors:
    """What `answer` makes of the prompts' log-probabilities.

    Args:
        services: of the server.
        caller: whose turn of the engine it is.
        servable: P prompts, C classes, M further texts.
        features: of N pictures.
        noise: that is added to log-probabilities; None for none.
        answer: from log-probabilities [P, n, C + M] of some pictures to tensors [n, ...], which are
            concatenated; runs on a thread.
    """

    def noisy_answer(log_probs: NDArray[np.float32], pictures: slice) -> Tensors:
        added = None if noise is None else noise.at(slice(None), pictures)
        return answer(noisy(log_probs, added))

    prompts, texts, _ = servable.text_features.shape
    step = max(1, _SCORES_AT_ONCE // (prompts * texts))
    parts = []
    for start in range(0, len(features), step):
        pictures = slice(start, start + step)
        log_probs = await services.engine.score(
            features[pictures],
            servable.text_features,
            "float32",
            tenant=caller.tenant,
        )
        parts.append(await asyncio.to_thread(noisy_answer, log_probs, pictures))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
