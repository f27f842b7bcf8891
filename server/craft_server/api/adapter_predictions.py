"""`POST /v1/adapters/{name}/predictions`: classifies pictures with a published adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import Response
from numpy.typing import NDArray

from craft_server import adapters
from craft_server.api import documents
from craft_server.api.addresses import ADAPTER_OF_CALL
from craft_server.api.answer_body import encode_tensors
from craft_server.api.auth import caller_with
from craft_server.api.body import Body, body_of
from craft_server.api.checks import check_answer_size, check_revision
from craft_server.api.classification import adapter_question, classify, load
from craft_server.api.idempotency import Call, call_of
from craft_server.api.metering import booking
from craft_server.api.outputs import checked_output, policy_for
from craft_server.api.pictures import load_pictures, select_pictures
from craft_server.api.rate_limits import use_predictions
from craft_server.api.resolution import Resolution
from craft_server.api.services import WithServices
from craft_server.ledger.charges import Work
from craft_server.ledger.keys import Caller
from craft_server.policy import answerable
from craft_server.problems import invalid_field
from craft_shared import codec
from craft_shared.adapter import Adapter
from craft_shared.counting import prediction_units
from craft_shared.problems import (
    ADAPTER_NOT_FOUND,
    ANSWER_GONE,
    IMAGE_SET_NOT_FOUND,
    INVALID_IMAGE,
    PROMPT_LIMIT_REACHED,
    REVISION_MISMATCH,
)
from craft_shared.wire import (
    AdapterPredictionAnswer,
    AdapterPredictionRequest,
    Output,
)

router = APIRouter(prefix="/v1/adapters", tags=["adapters"])


@router.post(
    f"{ADAPTER_OF_CALL}/predictions",
    operation_id="create_adapter_prediction",
    summary="Predict with an adapter",
    response_class=Response,
    openapi_extra=documents.body(
        AdapterPredictionRequest,
        "`files` uint8 [bytes of all pictures] and `file_sizes` int64 [pictures]",
    ),
    responses={
        **documents.tensor_answer(AdapterPredictionAnswer, "float32 [images, {}]"),
        **documents.problems(
            *documents.CHARGED,
            ADAPTER_NOT_FOUND,
            IMAGE_SET_NOT_FOUND,
            REVISION_MISMATCH,
            INVALID_IMAGE,
            PROMPT_LIMIT_REACHED,
            ANSWER_GONE,
        ),
    },
)
async def predict(
    request: Request,
    services: WithServices,
    caller: Annotated[Caller, Depends(caller_with("predict"))],
    call: Annotated[Call, Depends(call_of(repeatable=True))],
    name: Annotated[str, Path(description="`[OWNER/]NAME[@VERSION|@ALIAS]`; the newest version.")],
    body: Annotated[Body[AdapterPredictionRequest], Depends(body_of(AdapterPredictionRequest))],
) -> Response:
    """Classifies pictures with an adapter of P prompts.

    The answer shows what the caller's policy allows, and says so in `output`. With `top_k` it holds
    of each picture that many classes at most: the most probable ones, their numbers the same as in
    the whole answer. With a threshold it says of which pictures the adapter does not know what they
    are, unless the answer has no numbers.

    Charged, to the caller unless the adapter's publisher pays: P of `queries`, P x N of
    `predictions`, one of `images` for each picture in the body, one of `requests`; with `top_k` as
    without. The adapter's texts were charged when it was published.
    """
    first, message = call.first, body.message
    publication = await services.database.read(
        adapters.resolve, caller, name, None if first is None else first.adapter
    )
    card = publication.card
    check_revision(services, card.model, card.revision)
    policy = policy_for(services, caller)
    output = checked_output(policy, message.top_k, len(card.classes), first)
    if output.level == "label" and message.abstain_below is not None:
        raise invalid_field(
            "abstain_below",
            "the answer has no probabilities, by the key's policy",
            "Leave it out.",
        )
    selection = await select_pictures(services, caller, message, body.files, first)
    check_answer_size(
        request,
        services,
        rows=selection.count,
        classes=len(card.classes),
        output=output,
        dtype="float32",
        field=selection.field,
    )
    units = prediction_units(card.prompts, selection.count, sent=len(selection.files))
    await use_predictions(request, services, caller, units.predictions)
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
    async with booking(
        services, caller, call, work, resolution, publication.payer_key_id
    ) as booked:
        pictures = await load_pictures(services, caller, selection)
        servable = await load(services, publication)
        asked = await adapter_question(
            services, caller, policy, output, publication, servable, selection
        )
        features = await pictures.features(services, caller)
        refine = _refining(servable.adapter, output, abstain_below)
        tensors = await classify(services, caller, servable, features, asked.noise, refine)
        answer = await encode_tensors(request, tensors)
        response = await answer.with_document(
            AdapterPredictionAnswer(
                adapter=card.name,
                version=card.version,
                classes=card.classes,
                cost=booked.cost,
                output=output,
            )
        )
        if booked.repeated:
            return await booked.settle(response)
        return await booked.settle_with(
            lambda _: response, adapters.count_use, publication.id, units
        )


def _refining(
    adapter: Adapter, output: Output, abstain_below: float | None
) -> Callable[[NDArray[np.float32]], codec.Tensors]:
    def refine(log_probs: NDArray[np.float32]) -> codec.Tensors:
        tensors = answerable(adapter.refined(log_probs), output)
        if abstain_below is not None and output.level != "label":
            # By what is answered: a threshold must not find out more.
            best = (tensors["probs"] if "probs" in tensors else np.exp(tensors["log_probs"])).max(
                axis=-1
            )
            tensors["abstained"] = (best < abstain_below).astype(np.uint8)
        return tensors

    return refine
