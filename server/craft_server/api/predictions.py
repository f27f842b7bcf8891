"""`POST /v1/predictions`: prompts x images x classes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from craft_server.api import documents
from craft_server.api.answer import encode_log_probs
from craft_server.api.auth import caller_with
from craft_server.api.body import Body, body_of
from craft_server.api.checks import check_answer_size, check_model, checked_prompts
from craft_server.api.idempotency import Call, call_of
from craft_server.api.metering import booking
from craft_server.api.pictures import load_pictures, select_pictures
from craft_server.api.rate_limits import use_predictions
from craft_server.api.services import WithServices
from craft_server.ledger.charges import Work
from craft_server.ledger.keys import Caller
from craft_shared.problems import (
    IMAGE_SET_NOT_FOUND,
    INVALID_IMAGE,
    MODEL_NOT_FOUND,
)
from craft_shared.units import Units
from craft_shared.wire import PredictionAnswer, PredictionRequest

router = APIRouter(tags=["predictions"])


@router.post(
    "/v1/predictions",
    summary="Score prompts",
    response_class=Response,
    openapi_extra=documents.body(
        PredictionRequest,
        "`codes` float32 [prompts, dim]; `files` uint8 [bytes] and `file_sizes` int64 [pictures]",
    ),
    responses={
        **documents.tensor_answer(PredictionAnswer, "[prompts, images, classes]"),
        **documents.problems(
            *documents.CHARGED, MODEL_NOT_FOUND, IMAGE_SET_NOT_FOUND, INVALID_IMAGE
        ),
    },
)
async def predict(
    request: Request,
    services: WithServices,
    caller: Annotated[Caller, Depends(caller_with("predict"))],
    call: Annotated[Call, Depends(call_of(repeatable=True))],
    body: Annotated[Body[PredictionRequest], Depends(body_of(PredictionRequest))],
) -> Response:
    """Scores P prompts on N pictures over C classes.

    Charged: P of `queries`, P x N of `predictions`, P x C of `texts`, one of `images` for each
    picture in the body, one of `requests`.
    """
    message = body.message
    check_model(services, message.model)
    prompts = await checked_prompts(
        services,
        classes=message.classes,
        templates=message.templates,
        context=message.context,
        codes=body.codes,
    )
    selection = await select_pictures(services, caller, message, body.files)
    count = prompts.count
    check_answer_size(
        request,
        services,
        numbers=count * selection.count * len(message.classes),
        dtype=message.dtype,
        field=selection.field,
    )
    pictures = await load_pictures(services, selection)
    units = Units(
        queries=count,
        predictions=count * selection.count,
        images=len(selection.files),
        texts=count * len(message.classes),
        requests=1,
    )
    engine = services.engine
    await use_predictions(request, services, caller, units.predictions)
    work = Work("predictions", engine.name, engine.revision, units, call.run)
    async with booking(services, caller, call, work) as booked:
        image_features = await pictures.features(services, caller)
        text_features = await engine.encode_prompts(prompts, message.classes, tenant=caller.tenant)
        log_probs = await engine.score(
            image_features, text_features, message.dtype, tenant=caller.tenant
        )
        answer = await encode_log_probs(request, log_probs)
        response = await answer.with_document(
            PredictionAnswer(model=engine.name, revision=engine.revision, cost=booked.cost)
        )
        return await booked.settle(response)
