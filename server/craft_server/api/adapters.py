"""`/v1/adapters`: publish, list, retire and use tuned adapters."""

from __future__ import annotations

import asyncio
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from numpy.typing import NDArray

from craft_server import adapters
from craft_server.adapters import Publication, ServableAdapter
from craft_server.api import documents
from craft_server.api.answer import encode_tensors, json_response
from craft_server.api.auth import caller_with
from craft_server.api.body import Body, body_of, content_type, read_bytes, unsupported
from craft_server.api.checks import check_answer_size, check_model, checked_prompts
from craft_server.api.idempotency import Call, call_of
from craft_server.api.metering import booking, free_of_charge
from craft_server.api.pictures import load_pictures, select_pictures
from craft_server.api.rate_limits import use_predictions
from craft_server.api.services import Services, WithServices
from craft_server.api.top_classes import check_top_k, most_probable
from craft_server.clock import now_ms
from craft_server.image_sets import Features
from craft_server.ledger.charges import Work, cost_of
from craft_server.ledger.keys import Caller
from craft_server.problems import ProblemError, invalid_field
from craft_shared import codec
from craft_shared.adapter import Adapter, AdapterError
from craft_shared.problems import (
    ADAPTER_NOT_FOUND,
    IMAGE_SET_NOT_FOUND,
    INVALID_IMAGE,
    MODEL_NOT_FOUND,
    REVISION_MISMATCH,
)
from craft_shared.units import Units
from craft_shared.wire import (
    AdapterCard,
    AdapterList,
    AdapterPredictionAnswer,
    AdapterPredictionRequest,
    AdapterPublishAnswer,
    Cost,
    Name,
)

router = APIRouter(prefix="/v1/adapters", tags=["adapters"])

WithPublishKey = Annotated[Caller, Depends(caller_with("publish"))]
WithPredictKey = Annotated[Caller, Depends(caller_with("predict"))]

_SCORES_AT_ONCE = 1 << 24  # numbers [P, n, C] that one step of a prediction holds in memory


@router.post(
    "",
    status_code=201,
    response_model=AdapterPublishAnswer,
    operation_id="publish_adapter",
    summary="Publish an adapter",
    openapi_extra=documents.safetensors_body(
        "An adapter: metadata `craftbox` holds its config as JSON; tensors: `codes` and the head's"
    ),
    responses={
        200: {
            "model": AdapterPublishAnswer,
            "description": "This very adapter is published under the name already; not charged",
        },
        **documents.problems(*documents.CHARGED, MODEL_NOT_FOUND, REVISION_MISMATCH),
    },
)
async def publish(
    request: Request,
    services: WithServices,
    caller: WithPublishKey,
    call: Annotated[Call, Depends(call_of(repeatable=False))],
    name: Annotated[Name, Query(description="What the adapter is called under this owner.")],
) -> Response:
    """Publishes the next version under a name; versions never change.

    Charged: prompts x (classes + further texts) of `texts`, since they are encoded here, once; and
    one of `requests`.
    """
    if content_type(request) != codec.MEDIA_TYPE:
        raise unsupported(content_type(request), codec.MEDIA_TYPE)
    body = await read_bytes(request)
    adapter, digest = await asyncio.to_thread(_parse, body)
    config = adapter.config
    check_model(services, config.model)
    _check_revision(services, config.model, config.revision)
    _check_texts(services, adapter)
    prompts = await checked_prompts(
        services,
        classes=config.scored,
        templates=config.templates,
        context=config.context,
        codes=adapter.codes,
    )
    same = await services.database.read(adapters.find_digest, caller.owner, name, digest)
    if same is not None:
        return await free_of_charge(
            services,
            caller,
            call,
            lambda cost: _published(200, same.card, cost),
            cost_of,
            caller,
            None,
            now_ms(),
        )
    units = Units(texts=config.prompts * len(config.scored), requests=1)
    work = Work("adapters", config.model, config.revision, units, call.run)
    async with booking(services, caller, call, work) as booked:
        text_features = await services.engine.encode_prompts(
            prompts, config.scored, tenant=caller.tenant
        )
        return await booked.settle_with(
            lambda card: _published(201, card, booked.cost),
            adapters.add,
            caller.owner,
            name,
            adapter=adapter,
            digest=digest,
            body=body,
            text_features=text_features,
        )


@router.get("", summary="The owner's adapters", responses=documents.problems(*documents.SCOPED))
async def list_adapters(services: WithServices, caller: WithPredictKey) -> AdapterList:
    """All versions that are not retired. Free."""
    return AdapterList(adapters=await services.database.read(adapters.list_cards, caller.owner))


@router.get(
    "/{name}",
    operation_id="get_adapter",
    summary="An adapter",
    responses=documents.problems(*documents.SCOPED, ADAPTER_NOT_FOUND),
)
async def get(services: WithServices, caller: WithPredictKey, name: str) -> AdapterCard:
    """The newest version of `name`, or the one that `name@version` names. Free."""
    publication = await services.database.read(adapters.find, caller.owner, name)
    return publication.card


@router.delete(
    "/{name}",
    status_code=204,
    operation_id="retire_adapter",
    summary="Retire an adapter",
    responses=documents.problems(*documents.SCOPED, ADAPTER_NOT_FOUND),
)
async def retire(services: WithServices, caller: WithPublishKey, name: str) -> None:
    """Retires all versions of `name`, or the one that `name@version` names. Free."""
    await services.database.write(adapters.retire, caller.owner, name)


@router.post(
    "/{name}/predictions",
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
        ),
    },
)
async def predict(
    request: Request,
    services: WithServices,
    caller: WithPredictKey,
    call: Annotated[Call, Depends(call_of(repeatable=True))],
    name: str,
    body: Annotated[Body[AdapterPredictionRequest], Depends(body_of(AdapterPredictionRequest))],
) -> Response:
    """Classifies pictures with an adapter of P prompts.

    With `top_k` the answer holds of each picture that many classes: the most probable ones, their
    log-probabilities the same as in the whole answer.

    Charged: P of `queries`, P x N of `predictions`, one of `images` for each picture in the body,
    one of `requests`; with `top_k` as without. The adapter's texts were charged when it was
    published.
    """
    publication = await services.database.read(adapters.find, caller.owner, name)
    card = publication.card
    _check_revision(services, card.model, card.revision)
    top_k = body.message.top_k
    check_top_k(top_k, len(card.classes))
    selection = await select_pictures(services, caller, body.message, body.files)
    check_answer_size(
        request,
        services,
        rows=selection.count,
        classes=len(card.classes),
        top_k=top_k,
        dtype="float32",
        field=selection.field,
    )
    pictures = await load_pictures(services, selection)
    units = Units(
        queries=card.prompts,
        predictions=card.prompts * selection.count,
        images=len(selection.files),
        requests=1,
    )
    await use_predictions(request, services, caller, units.predictions)
    work = Work("adapter-predictions", card.model, card.revision, units, call.run)
    async with booking(services, caller, call, work) as booked:
        servable = await _load(services, publication)
        features = await pictures.features(services, caller)
        tensors = await _refined(services, caller, servable, features, top_k)
        answer = await encode_tensors(request, tensors)
        response = await answer.with_document(
            AdapterPredictionAnswer(
                adapter=card.name, version=card.version, classes=card.classes, cost=booked.cost
            )
        )
        return await booked.settle(response)


def _parse(body: bytes) -> tuple[Adapter, str]:
    remedy = "Publish what craftbox's tuner wrote."
    try:
        adapter = Adapter.from_bytes(body)
        return adapter, adapter.digest
    except AdapterError as error:
        raise invalid_field("adapter", str(error)[:500], remedy) from error
    except UnicodeEncodeError as error:
        message = "a text holds half of a surrogate pair"
        raise invalid_field("adapter", message, remedy) from error


def _check_revision(services: Services, model: str, revision: str) -> None:
    hosted = services.engine
    if (model, revision) != (hosted.name, hosted.revision):
        raise ProblemError(
            REVISION_MISMATCH,
            f"the adapter was tuned on '{model}' revision {revision}; "
            f"the server hosts '{hosted.name}' revision {hosted.revision}",
        )


def _check_texts(services: Services, adapter: Adapter) -> None:
    texts = adapter.config.prompts * len(adapter.config.scored)
    allowed = services.settings.texts_per_adapter
    if texts > allowed:
        raise invalid_field(
            "adapter",
            f"prompts x (classes + texts) is {texts}; {allowed} are allowed",
            "Tune with fewer kept prompts.",
        )


def _published(status: int, card: AdapterCard, cost: Cost) -> Response:
    return json_response(AdapterPublishAnswer(adapter=card, cost=cost), status=status)


async def _load(services: Services, publication: Publication) -> ServableAdapter:
    servable = services.adapters.get(publication.id)
    if servable is None:
        content = await services.database.read(adapters.read_content, publication.id)
        servable = await asyncio.to_thread(adapters.servable, *content)
        services.adapters.put(publication.id, servable)
    return servable


async def _refined(
    services: Services,
    caller: Caller,
    servable: ServableAdapter,
    features: Features,
    top_k: int | None,
) -> codec.Tensors:
    def refine(log_probs: NDArray[np.float32]) -> codec.Tensors:
        refined = servable.adapter.head(log_probs)
        return {"log_probs": refined} if top_k is None else most_probable(refined, top_k)

    prompts, texts, _ = servable.text_features.shape
    step = max(1, _SCORES_AT_ONCE // (prompts * texts))
    parts = []
    for start in range(0, len(features), step):
        log_probs = await services.engine.score(
            features[start : start + step],
            servable.text_features,
            "float32",
            tenant=caller.tenant,
        )
        parts.append(await asyncio.to_thread(refine, log_probs))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
