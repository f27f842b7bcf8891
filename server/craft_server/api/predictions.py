"""Predictions: prompts x images x classes, or an adapter's of images; and what the server hosts.

The console tries adapters by the same function, `predict`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends
from fastapi.responses import Response
from numpy.typing import NDArray
from sqlalchemy import Connection

from craft_server.adapters import registry, sharing
from craft_server.adapters.registry import Publication, ServableAdapter
from craft_server.api.addresses import ADAPTER_OF_CALL, AnyName
from craft_server.api.answers import (
    answer_of_parts,
    check_answer_size,
    checked_output,
    labels_json,
    labels_response,
    noise_of,
    tensor_response,
)
from craft_server.api.auth import WithCaller, policy_for, use_rate
from craft_server.api.body import Body, body_of, file_from_base64
from craft_server.api.idempotency import Call, Resolution, call_of
from craft_server.api.inputs import (
    check_model,
    check_prompts,
    check_revision,
    counted_prompts,
    load_images,
    select_images,
)
from craft_server.api.metering import booking
from craft_server.api.middleware import JSON_TYPE
from craft_server.api.openapi import refusals, tensor_answer
from craft_server.api.services import Services, WithServices
from craft_server.engine import Prompts
from craft_server.engine.hosted import on_host
from craft_server.image_sets import Features, NoSuchImageSet
from craft_server.ledger.charges import Work
from craft_server.policy import answerable, noisy
from craft_server.problems import ProblemError, fields_called, invalid_field
from craft_shared import problems, wire
from craft_shared.codec import Tensors
from craft_shared.counting import prediction_units
from craft_shared.head import log_softmax
from craft_shared.problems import ProblemType

# One prompt's prediction of one image and one class.
_LEAST = prediction_units(1, 1, texts=1)
# A prediction's fields, as a zero-shot call has them.
_ZERO_SHOT_FIELDS = {
    "classes": "parameters.candidate_labels",
    "templates[0]": "parameters.hypothesis_template",
    "images[0]": "inputs",
    "images": "inputs",
}
_SCORES_AT_ONCE = 1 << 24  # numbers [P, n, C + M] that one step holds in memory

router = APIRouter()
adapters_router = APIRouter(prefix="/v1/adapters", tags=["adapters"])


def _refusals(not_found: ProblemType) -> dict[int | str, dict[str, Any]]:
    return refusals(
        problems.BUDGET_EXHAUSTED,
        not_found,
        problems.IMAGE_SET_NOT_FOUND,
        problems.REVISION_MISMATCH,
        problems.INVALID_IMAGE,
        problems.PROMPT_LIMIT_REACHED,
        problems.ANSWER_GONE,
    )


@router.get("/v1/models", tags=["models"], summary="The hosted models")
async def list_models(services: WithServices, caller: WithCaller) -> wire.ModelList:
    """The models, their limits, and what this key may receive. Free."""
    engine, policy, profile = services.engine, policy_for(services, caller), None
    if (simulated := services.provider.profile) is not None:
        profile = wire.ProviderProfile(
            name=simulated.name, version=simulated.version, digest=simulated.digest
        )
    card = wire.ModelCard(
        name=engine.name,
        revision=services.revision,
        image_size=engine.image_size,
        resize_mode=engine.view.resize_mode,
        interpolation="bilinear" if engine.view.bilinear else "bicubic",
        limits=services.settings.limits,
        outputs=[policy.output.level],
        output=policy.output,
        prompts_per_image_set=policy.prompts_per_image_set,
        profile=profile,
    )
    return wire.ModelList(models=[card])


@router.post(
    "/v1/predictions",
    tags=["predictions"],
    summary="Score prompts",
    response_class=Response,
    responses={
        **tensor_answer(wire.PredictionAnswer, "[prompts, images, {}]"),
        **_refusals(problems.MODEL_NOT_FOUND),
    },
)
async def create_prediction(
    call: Annotated[Call, Depends(call_of("predict", repeatable=True, least=_LEAST))],
    body: Annotated[Body[wire.PredictionRequest], Depends(body_of(wire.PredictionRequest))],
) -> Response:
    """Scores P prompts on N images over C classes.

    The answer shows what the key's policy allows, and says so in `output`. With `top_k` it holds of
    each image, under each prompt, that many classes at most: the most probable ones, their
    numbers the same as in the whole answer. With the format `labels` it names the classes.

    Charged: P of `queries`, P x N of `predictions`, P x C of `texts`, one of `images` for each
    image in the body, one of `requests`; with `top_k` as without.
    """

    async def respond(document: wire.PredictionAnswer, tensors: Tensors) -> Response:
        if body.message.format == "labels":
            return await labels_response(document, tensors, body.message.classes)
        return await tensor_response(call.request, document, tensors)

    return await score(call, body, respond)


@router.post(
    "/v1/zero-shot-image-classification",
    tags=["predictions"],
    summary="Classify an image by labels",
    response_model=list[wire.LabelScore],
    responses=refusals(
        problems.BUDGET_EXHAUSTED,
        problems.INVALID_IMAGE,
        problems.PROMPT_LIMIT_REACHED,
        problems.ANSWER_GONE,
    ),
)
async def classify_image(
    call: Annotated[
        Call,
        Depends(call_of("predict", repeatable=True, least=prediction_units(1, 1, texts=1, sent=1))),
    ],
    body: Annotated[Body[wire.ZeroShotRequest], Depends(body_of(wire.ZeroShotRequest))],
) -> Response:
    """Says how well each of C labels fits an image, the best first, as Hugging Face's API does.

    The answer shows what the key's policy allows: with the level `label` one label whose score is
    null, with k as many labels at most.

    Charged as a prediction: 1 of `queries`, of `predictions`, of `images` and of `requests`, and C
    of `texts`.
    """
    wanted = body.message.parameters
    asked = wire.PredictionRequest(
        model=call.services.engine.name,
        classes=wanted.candidate_labels,
        templates=[wanted.hypothesis_template],
        format="labels",
    )

    async def respond(_document: wire.PredictionAnswer, tensors: Tensors) -> Response:
        one = {name: tensor[0, 0] for name, tensor in tensors.items()}
        labels = await asyncio.to_thread(labels_json, one, asked.classes)
        return Response(labels, media_type=JSON_TYPE)

    with fields_called(_ZERO_SHOT_FIELDS):
        file = await asyncio.to_thread(file_from_base64, body.message.inputs)
        return await score(call, Body(asked, None, [file]), respond)


async def score(
    call: Call,
    body: Body[wire.PredictionRequest],
    respond: Callable[[wire.PredictionAnswer, Tensors], Awaitable[Response]],
) -> Response:
    """Scores prompts on images, charges it, and answers what `respond` makes of it.

    Raises:
        ProblemError: the model is not hosted, or the message or an image cannot be used.
        BudgetExhausted: the key's budgets do not cover it; nothing was charged.
    """
    message, services, caller = body.message, call.services, call.caller
    classes, engine, revision = message.classes, services.engine, services.revision
    check_model(services, message.model)
    policy = policy_for(services, caller)
    output = checked_output(call, policy, message.top_k, len(classes))
    prompts = counted_prompts(
        services.settings.limits, classes, message.templates, message.context, body.codes
    )
    try:
        selection = await select_images(call, message, body.files)
        rows = prompts.count * selection.count
        check_answer_size(
            call,
            rows,
            classes,
            output,
            selection.field,
            dtype=message.dtype,
            labels=message.format == "labels",
        )
    except (ProblemError, NoSuchImageSet):
        if call.made is not None:
            raise
        # Prompts are named first, whatever else is wrong; to read them a budget must cover them.
        units = prediction_units(prompts.count, 0, texts=len(classes))
        work = Work("predictions", engine.name, revision, units, call.run)
        async with booking(call, work):
            await check_prompts(call, prompts, classes)
            raise
    units = prediction_units(
        prompts.count, selection.count, texts=len(classes), sent=len(selection.files)
    )
    await use_rate(call.request, services, caller, "predictions", units.predictions)
    resolution = Resolution(
        model=engine.name,
        revision=revision,
        units=units,
        output=output,
        prompts_per_image_set=policy.prompts_per_image_set,
        rows=selection.resolved,
    )
    work = Work("predictions", engine.name, revision, units, call.run)
    async with booking(call, work, resolution) as booked:
        await check_prompts(call, prompts, classes)
        images = await load_images(call, selection)
        noise = await noise_of(call, policy, output, prompts, classes, selection)
        image_features = await images.features(call)
        text_features = await engine.encode_prompts(prompts, classes, tenant=caller.tenant)
        if output.whole and noise is None:
            scores = await engine.score(
                image_features, text_features, message.dtype, tenant=caller.tenant
            )
            tensors = {"log_probs": scores}
        else:
            tensors = await answer_of_parts(
                engine.score_parts(image_features, text_features, tenant=caller.tenant),
                output,
                noise,
                prompts=prompts.count,
                images=selection.count,
                dtype=message.dtype,
            )
        document = wire.PredictionAnswer(
            model=engine.name, revision=revision, cost=booked.cost, output=output
        )
        return await booked.settle(await respond(document, tensors))


@adapters_router.post(
    f"{ADAPTER_OF_CALL}/predictions",
    summary="Predict with an adapter",
    response_class=Response,
    responses={
        **tensor_answer(wire.AdapterPredictionAnswer, "float32 [images, {}]"),
        **_refusals(problems.ADAPTER_NOT_FOUND),
    },
)
async def create_adapter_prediction(
    call: Annotated[Call, Depends(call_of("predict", repeatable=True))],
    name: AnyName,
    body: Annotated[
        Body[wire.AdapterPredictionRequest], Depends(body_of(wire.AdapterPredictionRequest))
    ],
) -> Response:
    """Classifies images with an adapter of P prompts.

    The answer shows what the caller's policy allows, and says so in `output`. With `top_k` it holds
    of each image that many classes at most: the most probable ones, their numbers the same as in
    the whole answer. With a threshold it says of which images the adapter does not know what they
    are, unless the answer has no numbers. With the format `labels` it names the classes.

    Charged, to the caller unless the adapter's publisher pays: P of `queries`, P x N of
    `predictions`, one of `images` for each image in the body, one of `requests`; with `top_k` as
    without. The adapter's texts were charged when it was published.
    """

    async def respond(prediction: AdapterPrediction) -> Response:
        card = prediction.card
        document = wire.AdapterPredictionAnswer(
            adapter=card.name,
            version=card.version,
            classes=card.classes,
            cost=prediction.cost,
            output=prediction.output,
        )
        if body.message.format == "labels":
            return await labels_response(document, prediction.tuned, card.classes)
        return await tensor_response(call.request, document, prediction.tuned)

    return await predict(call, name, body, respond)


@dataclass(frozen=True)
class AdapterPrediction:
    """What an adapter says of N images, as far as the caller may see it.

    `untuned` is what the plain prompt says over the class names alone, if that was wanted.
    """

    card: wire.AdapterCard
    output: wire.Output
    tuned: Tensors
    untuned: Tensors
    cost: wire.Cost


async def predict(
    call: Call,
    name: str,
    body: Body[wire.AdapterPredictionRequest],
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
        registry.resolve, caller, name, None if first is None else first.adapter
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
    if card.visual and selection.image_set is not None:
        raise invalid_field(
            "image_set",
            "the adapter adds a visual prompt to pixels, which an image set does not keep",
            "Send the images in the call's body.",
        )
    check_answer_size(
        call,
        selection.count,
        card.classes,
        output,
        selection.field,
        labels=message.format == "labels",
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
    work = Work(
        "adapter-predictions", card.model, card.revision, units, call.run, adapter=card.reference
    )
    async with booking(call, work, resolution, publication.payer_key_id) as booked:
        servable = await load(services, publication)
        images = await load_images(call, selection, servable.adapter.visual)
        config = servable.adapter.config
        prompts = Prompts(tuple(config.templates), config.context, servable.adapter.codes)
        # They are the caller's choice if the adapter is its owner's.
        chosen = card.owner == caller.owner
        noise = await noise_of(
            call,
            policy,
            output,
            prompts,
            config.scored,
            selection,
            visual=servable.adapter.visual,
            counted=chosen,
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
            async for part in _scores(call, servable, features)
        ]
        prediction = AdapterPrediction(
            card,
            output,
            _concatenated([tuned for tuned, _ in parts]),
            _concatenated([plain for _, plain in parts]),
            booked.cost,
        )
        response = await respond(prediction)

        def answer(connection: Connection) -> Response:
            if not booked.repeated:
                sharing.count_use(connection, publication.id, units)
            return response

        return await booked.settle_with(answer)


async def load(services: Services, publication: Publication) -> ServableAdapter:
    """The version as it is served; cached.

    Where it was published in another precision its texts are read anew.
    """
    servable = services.adapters.get(publication.id)
    if servable is None:
        content = await services.database.read(registry.read_content, publication.id)
        servable = await asyncio.to_thread(registry.servable, *content)
        if publication.texts_in != services.engine.facts.texts_in:
            config = servable.adapter.config
            prompts = Prompts(tuple(config.templates), config.context, servable.adapter.codes)
            texts = await services.engine.encode_prompts(prompts, config.scored)
            servable = replace(servable, text_features=await asyncio.to_thread(on_host, texts))
        services.adapters.put(publication.id, servable)
    return servable


async def _scores(
    call: Call, servable: ServableAdapter, features: Features
) -> AsyncIterator[tuple[NDArray[np.float32], slice]]:
    """Log-probabilities [P, n, C + M] of some images at a time, and which images they are."""
    engine, texts = call.services.engine, servable.text_features
    step = max(1, _SCORES_AT_ONCE // (texts.shape[0] * texts.shape[1]))
    for start in range(0, len(features), step):
        images = slice(start, start + step)
        yield await engine.score(features[images], texts, tenant=call.caller.tenant), images


def _abstained(tensors: Tensors, below: float) -> NDArray[np.uint8]:
    # By what is answered: a threshold must not find out more.
    probs = tensors["probs"] if "probs" in tensors else np.exp(tensors["log_probs"])
    best: NDArray[np.float32] = probs.max(axis=-1)
    return (best < below).astype(np.uint8)


def _concatenated(parts: Sequence[Tensors]) -> Tensors:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
