"""`POST /v1/adapters/{name}/predictions`: classifies images with a published adapter.

The console tries adapters by the same function, `predict`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Path
from fastapi.responses import Response
from numpy.typing import NDArray

from craft_server import adapters
from craft_server.adapters import Publication, ServableAdapter
from craft_server.api.addresses import ADAPTER_OF_CALL
from craft_server.api.answers import check_answer_size, checked_output, noise_of, tensor_response
from craft_server.api.auth import policy_for, use_rate
from craft_server.api.body import Body, body_of
from craft_server.api.checks import check_revision
from craft_server.api.idempotency import Call, call_of
from craft_server.api.images import load_images, select_images
from craft_server.api.metering import booking
from craft_server.api.openapi import refusals, tensor_answer
from craft_server.api.resolution import Resolution
from craft_server.api.services import Services
from craft_server.engine import Prompts
from craft_server.image_sets import Features
from craft_server.ledger.charges import Work
from craft_server.ledger.keys import Caller
from craft_server.policy import answerable, noisy
from craft_server.problems import invalid_field
from craft_shared.codec import Tensors
from craft_shared.counting import prediction_units
from craft_shared.head import log_softmax
from craft_shared.problems import (
    ADAPTER_NOT_FOUND,
    ANSWER_GONE,
    BUDGET_EXHAUSTED,
    IMAGE_SET_NOT_FOUND,
    INVALID_IMAGE,
    PROMPT_LIMIT_REACHED,
    REVISION_MISMATCH,
)
from craft_shared.wire import (
    AdapterCard,
    AdapterPredictionAnswer,
    AdapterPredictionRequest,
    Cost,
    Output,
)

_SCORES_AT_ONCE = 1 << 24  # numbers [P, n, C + M] that one step holds in memory

router = APIRouter(prefix="/v1/adapters", tags=["adapters"])


@router.post(
    f"{ADAPTER_OF_CALL}/predictions",
    summary="Predict with an adapter",
    response_class=Response,
    responses={
        **tensor_answer(AdapterPredictionAnswer, "float32 [images, {}]"),
        **refusals(
            BUDGET_EXHAUSTED,
            ADAPTER_NOT_FOUND,
            IMAGE_SET_NOT_FOUND,
            REVISION_MISMATCH,
            INVALID_IMAGE,
            PROMPT_LIMIT_REACHED,
            ANSWER_GONE,
        ),
    },
)
async def create_adapter_prediction(
    call: Annotated[Call, Depends(call_of("predict", repeatable=True))],
    name: Annotated[str, Path(description="`[OWNER/]NAME[@VERSION|@ALIAS]`; the newest version.")],
    body: Annotated[Body[AdapterPredictionRequest], Depends(body_of(AdapterPredictionRequest))],
) -> Response:
    """Classifies images with an adapter of P prompts.

    The answer shows what the caller's policy allows, and says so in `output`. With `top_k` it holds
    of each image that many classes at most: the most probable ones, their numbers the same as in
    the whole answer. With a threshold it says of which images the adapter does not know what they
    are, unless the answer has no numbers.

    Charged, to the caller unless the adapter's publisher pays: P of `queries`, P x N of
    `predictions`, one of `images` for each image in the body, one of `requests`; with `top_k` as
    without. The adapter's texts were charged when it was published.
    """

    async def respond(prediction: AdapterPrediction) -> Response:
        card = prediction.card
        document = AdapterPredictionAnswer(
            adapter=card.name,
            version=card.version,
            classes=card.classes,
            cost=prediction.cost,
            output=prediction.output,
        )
        return await tensor_response(call.request, document, prediction.tuned)

    return await predict(call, name, body, respond)


@dataclass(frozen=True)
class AdapterPrediction:
    """What an adapter says of N images, as far as the caller may see it.

    `untuned` is what the plain prompt says over the class names alone, if that was wanted.
    """

    card: AdapterCard
    output: Output
    tuned: Tensors
    untuned: Tensors
    cost: Cost


async def predict(
    call: Call,
    name: str,
    body: Body[AdapterPredictionRequest],
    respond: Callable[[AdapterPrediction], Awaitable[Response]],
    *,
    untuned: bool = False,
) -> Response:
    """Classifies images with the adapter, charges it, and answers what `respond` makes of it.

    With `untuned` it shows what the plain prompt, the adapter's first, says too. If `respond`
    raises, the call is refunded.

    Raises:
        NoSuchAdapter: there is none that the caller may use.
        ProblemError: its model is not hosted, or the message or an image cannot be used.
        BudgetExhausted: the payer's budgets do not cover it; nothing was charged.
    """
    services, caller, first, message = call.services, call.caller, call.first, body.message
    publication = await services.database.read(
        adapters.resolve, caller, name, None if first is None else first.adapter
    )
    card = publication.card
    check_revision(services, card.model, card.revision)
    policy = policy_for(services, caller)
    output = checked_output(call, policy, message.top_k, len(card.classes))
    if output.level == "label" and message.abstain_below is not None:
        raise invalid_field(
            "abstain_below",
            "the answer has no probabilities, by the key's policy",
            "Leave it out.",
        )
    selection = await select_images(call, message, body.files)
    check_answer_size(
        call,
        rows=selection.count,
        classes=len(card.classes),
        output=output,
        dtype="float32",
        field=selection.field,
    )
    units = prediction_units(card.prompts, selection.count, sent=len(selection.files))
    await use_rate(call.request, services, caller, "predictions", units.predictions)
    abstain_below = card.abstain_below if first is None else first.abstain_below
    if message.abstain_below is not None:
        abstain_below = message.abstain_below
    resolution = Resolution(
        model=card.model,
        revision=card.revision,
        units=units,
        output=output,
        prompts_per_image_set=policy.prompts_per_image_set,
        rows=selection.resolved,
        adapter=publication.id,
        abstain_below=abstain_below,
    )
    work = Work("adapter-predictions", card.model, card.revision, units, call.run)
    async with booking(call, work, resolution, publication.payer_key_id) as booked:
        images = await load_images(call, selection)
        servable = await load(services, publication)
        config = servable.adapter.config
        noise = await noise_of(
            call,
            policy,
            output,
            prompts=Prompts(tuple(config.templates), config.context, servable.adapter.codes),
            classes=config.scored,
            selection=selection,
            # They are the caller's choice if the adapter is its owner's.
            counted=card.owner == caller.owner,
        )
        features = await images.features(call)

        def shown(log_probs: NDArray[np.float32], columns: slice) -> tuple[Tensors, Tensors]:
            added = None if noise is None else noise.at(slice(None), columns)
            log_probs = noisy(log_probs, added)
            tuned = answerable(servable.adapter.refined(log_probs), output)
            if abstain_below is not None and output.level != "label":
                tuned["abstained"] = _abstained(tuned, abstain_below)
            if not untuned:
                return tuned, {}
            plain = log_softmax(log_probs[0, :, : len(config.classes)])
            return tuned, answerable(plain, output)

        parts = [
            await asyncio.to_thread(shown, *part)
            async for part in _scores(services, caller, servable, features)
        ]
        prediction = AdapterPrediction(
            card,
            output,
            _concatenated([tuned for tuned, _ in parts]),
            _concatenated([plain for _, plain in parts]),
            booked.cost,
        )
        response = await respond(prediction)
        if booked.repeated:
            return await booked.settle(response)
        return await booked.settle_with(
            lambda _: response, adapters.count_use, publication.id, units
        )


async def load(services: Services, publication: Publication) -> ServableAdapter:
    """The version as it is served; cached."""
    servable = services.adapters.get(publication.id)
    if servable is None:
        content = await services.database.read(adapters.read_content, publication.id)
        servable = await asyncio.to_thread(adapters.servable, *content)
        services.adapters.put(publication.id, servable)
    return servable


async def _scores(
    services: Services, caller: Caller, servable: ServableAdapter, features: Features
) -> AsyncIterator[tuple[NDArray[np.float32], slice]]:
    """Log-probabilities [P, n, C + M] of some images at a time, and which images they are."""
    prompts, texts, _ = servable.text_features.shape
    step = max(1, _SCORES_AT_ONCE // (prompts * texts))
    for start in range(0, len(features), step):
        images = slice(start, start + step)
        yield (
            await services.engine.score(
                features[images], servable.text_features, "float32", tenant=caller.tenant
            ),
            images,
        )


def _abstained(tensors: Tensors, below: float) -> NDArray[np.uint8]:
    # By what is answered: a threshold must not find out more.
    probs = tensors["probs"] if "probs" in tensors else np.exp(tensors["log_probs"])
    best: NDArray[np.float32] = probs.max(axis=-1)
    return (best < below).astype(np.uint8)


def _concatenated(parts: Sequence[Tensors]) -> Tensors:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
