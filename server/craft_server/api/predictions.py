"""`GET /v1/models`: what the server hosts. `POST /v1/predictions`: prompts x images x classes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from craft_server.api.answers import (
    answer_of_parts,
    check_answer_size,
    checked_output,
    noise_of,
    tensor_response,
)
from craft_server.api.auth import WithCaller, policy_for, use_rate
from craft_server.api.body import Body, body_of
from craft_server.api.checks import (
    check_model,
    check_prompts,
    counted_prompts,
)
from craft_server.api.idempotency import Call, call_of
from craft_server.api.images import load_images, select_images
from craft_server.api.metering import booking
from craft_server.api.openapi import refusals, tensor_answer
from craft_server.api.resolution import Resolution
from craft_server.api.services import Services, WithServices
from craft_server.image_sets import NoSuchImageSet
from craft_server.ledger.charges import Work
from craft_server.problems import ProblemError
from craft_shared.counting import prediction_units
from craft_shared.problems import (
    ANSWER_GONE,
    BUDGET_EXHAUSTED,
    IMAGE_SET_NOT_FOUND,
    INVALID_IMAGE,
    MODEL_NOT_FOUND,
    PROMPT_LIMIT_REACHED,
    REVISION_MISMATCH,
)
from craft_shared.wire import (
    ModelCard,
    ModelList,
    PredictionAnswer,
    PredictionRequest,
    ProviderProfile,
)

router = APIRouter()

# One prompt's prediction of one image and one class.
_LEAST = prediction_units(1, 1, texts=1)


@router.post(
    "/v1/predictions",
    tags=["predictions"],
    summary="Score prompts",
    response_class=Response,
    responses={
        **tensor_answer(PredictionAnswer, "[prompts, images, {}]"),
        **refusals(
            BUDGET_EXHAUSTED,
            MODEL_NOT_FOUND,
            IMAGE_SET_NOT_FOUND,
            REVISION_MISMATCH,
            INVALID_IMAGE,
            PROMPT_LIMIT_REACHED,
            ANSWER_GONE,
        ),
    },
)
async def create_prediction(
    call: Annotated[Call, Depends(call_of("predict", repeatable=True, least=_LEAST))],
    body: Annotated[Body[PredictionRequest], Depends(body_of(PredictionRequest))],
) -> Response:
    """Scores P prompts on N images over C classes.

    The answer shows what the key's policy allows, and says so in `output`. With `top_k` it holds of
    each image, under each prompt, that many classes at most: the most probable ones, their
    numbers the same as in the whole answer.

    Charged: P of `queries`, P x N of `predictions`, P x C of `texts`, one of `images` for each
    image in the body, one of `requests`; with `top_k` as without.
    """
    message, services, caller = body.message, call.services, call.caller
    check_model(services, message.model)
    policy = policy_for(services, caller)
    output = checked_output(call, policy, message.top_k, len(message.classes))
    prompts = counted_prompts(
        services,
        classes=message.classes,
        templates=message.templates,
        context=message.context,
        codes=body.codes,
    )
    engine, revision, count = services.engine, services.revision, prompts.count
    try:
        selection = await select_images(call, message, body.files)
        check_answer_size(
            call,
            rows=count * selection.count,
            classes=len(message.classes),
            output=output,
            dtype=message.dtype,
            field=selection.field,
        )
    except (ProblemError, NoSuchImageSet):
        if call.made is not None:
            raise
        # Prompts are named first, whatever else is wrong; to read them a budget must cover them.
        units = prediction_units(count, 0, texts=len(message.classes))
        work = Work("predictions", engine.name, revision, units, call.run)
        async with booking(call, work):
            await check_prompts(call, prompts, message.classes)
            raise
    units = prediction_units(
        count, selection.count, texts=len(message.classes), sent=len(selection.files)
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
        await check_prompts(call, prompts, message.classes)
        images = await load_images(call, selection)
        noise = await noise_of(
            call,
            policy,
            output,
            prompts=prompts,
            classes=message.classes,
            selection=selection,
        )
        image_features = await images.features(call)
        text_features = await engine.encode_prompts(prompts, message.classes, tenant=caller.tenant)
        if output.whole and noise is None:
            tensors = {
                "log_probs": await engine.score(
                    image_features, text_features, message.dtype, tenant=caller.tenant
                )
            }
        else:
            tensors = await answer_of_parts(
                engine.score_parts(image_features, text_features, tenant=caller.tenant),
                output,
                noise,
                prompts=len(text_features),
                images=len(image_features),
                dtype=message.dtype,
            )
        document = PredictionAnswer(
            model=engine.name, revision=revision, cost=booked.cost, output=output
        )
        return await booked.settle(await tensor_response(call.request, document, tensors))


@router.get("/v1/models", tags=["models"], summary="The hosted models")
async def list_models(services: WithServices, caller: WithCaller) -> ModelList:
    """The models, their limits, and what this key may receive. Free."""
    engine, policy = services.engine, policy_for(services, caller)
    card = ModelCard(
        name=engine.name,
        revision=services.revision,
        image_size=engine.image_size,
        limits=services.settings.limits,
        outputs=[policy.output.level],
        output=policy.output,
        prompts_per_image_set=policy.prompts_per_image_set,
        profile=_profile_of(services),
    )
    return ModelList(models=[card])


def _profile_of(services: Services) -> ProviderProfile | None:
    profile = services.provider.profile
    if profile is None:
        return None
    return ProviderProfile(name=profile.name, version=profile.version, digest=profile.digest)
