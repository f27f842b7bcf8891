"""`/v1/adapters`: publish, list, share, retire and use tuned adapters.

An adapter of the caller's own is `NAME`, another owner's `OWNER/NAME`; either may end in `@VERSION`
or `@ALIAS`. What a key may not use does not exist for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import Response
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Connection

from craft_server import adapters
from craft_server.adapters import NoSuchAdapter, Reference
from craft_server.api import documents
from craft_server.api.addresses import ADAPTER_CALLS
from craft_server.api.answer import encode_tensors, json_response
from craft_server.api.auth import caller_with
from craft_server.api.body import Body, body_of, content_type, read_bytes, unsupported
from craft_server.api.checks import check_answer_size, check_model, checked_prompts
from craft_server.api.classification import classify, load
from craft_server.api.idempotency import Call, call_of
from craft_server.api.metering import booking, free_of_charge
from craft_server.api.outputs import checked_output, policy_for, question
from craft_server.api.pictures import load_pictures, select_pictures
from craft_server.api.rate_limits import use_predictions
from craft_server.api.services import Services, WithServices
from craft_server.clock import now_ms
from craft_server.engine import Prompts
from craft_server.ledger.charges import Work, cost_of
from craft_server.ledger.keys import Caller
from craft_server.policy import answerable
from craft_server.problems import ProblemError, invalid_field
from craft_shared import codec
from craft_shared.adapter import Adapter, AdapterError
from craft_shared.problems import (
    ADAPTER_NOT_FOUND,
    IMAGE_SET_NOT_FOUND,
    INVALID_IMAGE,
    MODEL_NOT_FOUND,
    PROMPT_LIMIT_REACHED,
    REVISION_MISMATCH,
)
from craft_shared.units import Units
from craft_shared.wire import (
    LATEST,
    AdapterCard,
    AdapterChange,
    AdapterList,
    AdapterPredictionAnswer,
    AdapterPredictionRequest,
    AdapterPublishAnswer,
    AdapterSettings,
    AdapterUsage,
    Alias,
    Cost,
    Name,
    Output,
)

router = APIRouter(prefix="/v1/adapters", tags=["adapters"])

WithPublishKey = Annotated[Caller, Depends(caller_with("publish"))]
WithPredictKey = Annotated[Caller, Depends(caller_with("predict"))]
OwnName = Annotated[str, Path(description="The adapter's name under the key's owner.")]
Version = Annotated[str, Path(description="`[OWNER/]NAME[@VERSION|@ALIAS]`; the newest version.")]
Versions = Annotated[str, Path(description="`NAME@VERSION`, or `NAME` for all of its versions.")]

_NAME: TypeAdapter[str] = TypeAdapter(Name)


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
    name: Annotated[
        str,
        Query(
            description="What the adapter is called under the key's owner.",
            json_schema_extra={"pattern": r"^([\s\S]+/)?[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
        ),
    ],
    alias: Annotated[
        list[Alias] | None, Query(description="What means this version from now on.")
    ] = None,
) -> Response:
    """Publishes the next version under a name; versions never change.

    It is the owner's alone until it is shared. It is there, with its aliases, as a whole or not at
    all, while calls that asked an earlier version go on with that.

    Charged: prompts x (classes + further texts) of `texts`, since they are encoded here, once; and
    one of `requests`.
    """
    if content_type(request) != codec.MEDIA_TYPE:
        raise unsupported(content_type(request), codec.MEDIA_TYPE)
    name, aliases = _own_new_name(caller, name), alias or []
    if LATEST in aliases:
        raise invalid_field("alias", "'latest' is always the newest version", "Leave it out.")
    body = await read_bytes(request)
    adapter, digest = await asyncio.to_thread(_parse, body)
    config = adapter.config
    check_model(services, config.model)
    _check_revision(services, config.model, config.revision)
    _check_texts(services, adapter)
    _check_output(services, caller, adapter)
    prompts = await checked_prompts(
        services,
        caller,
        classes=config.scored,
        templates=config.templates,
        context=config.context,
        codes=adapter.codes,
    )
    same = await services.database.read(adapters.find_digest, caller.owner, name, digest)
    if same is not None:

        def move(connection: Connection) -> tuple[AdapterCard, Cost]:
            version = same.card.version
            adapters.move_aliases(connection, caller.owner, name, dict.fromkeys(aliases, version))
            card = adapters.find(connection, caller, f"{name}@{version}").card
            return card, cost_of(connection, caller, None, now_ms())

        return await free_of_charge(
            services, caller, call, lambda done: _published(200, *done), move
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
            aliases=aliases,
        )


@router.get("", summary="Adapters", responses=documents.problems(*documents.SCOPED))
async def list_adapters(services: WithServices, caller: WithPredictKey) -> AdapterList:
    """All versions that the key may use: its owner's, those shared with it, and public ones. Free.

    Retired versions are left out.
    """
    return AdapterList(adapters=await services.database.read(adapters.list_cards, caller))


@router.get(
    "/{name:text}/versions",
    operation_id="list_adapter_versions",
    summary="All versions of an adapter",
    responses=documents.problems(*documents.SCOPED, ADAPTER_NOT_FOUND),
)
async def list_versions(
    services: WithServices, caller: WithPredictKey, name: OwnName
) -> AdapterList:
    """All versions of the owner's adapter, the retired ones too. Free."""
    name = _own_name(caller, name)
    return AdapterList(adapters=await services.database.read(adapters.versions, caller.owner, name))


@router.get(
    "/{name:text}/settings",
    operation_id="get_adapter_settings",
    summary="An adapter's settings",
    responses=documents.problems(*documents.SCOPED, ADAPTER_NOT_FOUND),
)
async def get_settings(
    services: WithServices, caller: WithPublishKey, name: OwnName
) -> AdapterSettings:
    """Who may use the owner's adapter, who pays, and what its aliases mean. Free."""
    return await services.database.read(adapters.settings, caller.owner, _own_name(caller, name))


@router.get(
    "/{name:text}/usage",
    operation_id="get_adapter_usage",
    summary="An adapter's usage",
    responses=documents.problems(*documents.SCOPED, ADAPTER_NOT_FOUND),
)
async def get_usage(services: WithServices, caller: WithPublishKey, name: OwnName) -> AdapterUsage:
    """What was classified with each version of the owner's adapter, by everybody. Free."""
    return await services.database.read(adapters.usage, caller.owner, _own_name(caller, name))


@router.put(
    "/{name:text}/restore",
    status_code=204,
    operation_id="restore_adapter",
    summary="Restore an adapter",
    responses=documents.problems(*documents.SCOPED, ADAPTER_NOT_FOUND),
)
async def restore(services: WithServices, caller: WithPublishKey, name: Versions) -> None:
    """Takes retired versions of the owner's adapter into service again. Free."""
    await services.database.write(adapters.restore, caller.owner, name)


@router.get(
    "/{name:adapter}",
    operation_id="get_adapter",
    summary="An adapter",
    responses=documents.problems(*documents.SCOPED, ADAPTER_NOT_FOUND),
)
async def get(services: WithServices, caller: WithPredictKey, name: Version) -> AdapterCard:
    """The version that a reference means now. Free."""
    publication = await services.database.read(adapters.find, caller, name)
    return publication.card


@router.patch(
    "/{name:adapter}",
    operation_id="change_adapter",
    summary="Share an adapter, move its aliases",
    openapi_extra=documents.json_body(AdapterChange),
    responses=documents.problems(*documents.WITH_BODY, ADAPTER_NOT_FOUND),
)
async def change(
    services: WithServices,
    caller: WithPublishKey,
    name: OwnName,
    body: Annotated[Body[AdapterChange], Depends(body_of(AdapterChange))],
) -> AdapterSettings:
    """Changes what the body names, of all versions of the owner's adapter, at once. Free.

    A key or team that does not exist is kept as it is written, and means nobody.
    """
    wanted = body.message
    if LATEST in wanted.aliases:
        message = "'latest' is always the newest version"
        raise invalid_field(f"aliases.{LATEST}", message, "Give the alias another name.")
    name = _own_name(caller, name)
    return await services.database.write(adapters.change, caller, name, wanted)


@router.delete(
    "/{name:adapter}",
    status_code=204,
    operation_id="retire_adapter",
    summary="Retire an adapter",
    responses=documents.problems(*documents.SCOPED, ADAPTER_NOT_FOUND),
)
async def retire(services: WithServices, caller: WithPublishKey, name: Versions) -> None:
    """Takes versions of the owner's adapter out of service, until they are restored. Free."""
    await services.database.write(adapters.retire, caller.owner, name)


@router.post(
    "/{name:text}/predictions",
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
        ),
    },
)
async def predict(
    request: Request,
    services: WithServices,
    caller: WithPredictKey,
    call: Annotated[Call, Depends(call_of(repeatable=True))],
    name: Version,
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
    publication = await services.database.read(adapters.resolve, caller, name)
    card, message = publication.card, body.message
    _check_revision(services, card.model, card.revision)
    policy = policy_for(services, caller)
    output = checked_output(policy, message.top_k, len(card.classes))
    if output.level == "label" and message.abstain_below is not None:
        raise invalid_field(
            "abstain_below",
            "the answer has no probabilities, by the key's policy",
            "Leave it out.",
        )
    selection = await select_pictures(services, caller, message, body.files)
    check_answer_size(
        request,
        services,
        rows=selection.count,
        classes=len(card.classes),
        output=output,
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
    servable = await load(services, publication)
    config = servable.adapter.config
    asked = await question(
        services,
        caller,
        policy,
        output,
        prompts=Prompts(tuple(config.templates), config.context, servable.adapter.codes),
        classes=config.scored,
        selection=selection,
        counted=card.owner == caller.owner,
    )
    await use_predictions(request, services, caller, units.predictions)
    work = Work("adapter-predictions", card.model, card.revision, units, call.run)
    async with booking(
        services, caller, call, work, publication.payer_key_id, asking=asked.asking
    ) as booked:
        features = await pictures.features(services, caller)
        refine = _refining(servable.adapter, output, message, card.abstain_below)
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


def _own_new_name(caller: Caller, name: str) -> str:
    owner, _, own = name.rpartition("/")
    if owner and owner != caller.owner:
        raise invalid_field(
            "name",
            "an adapter is published under the name of the key's own owner",
            f"Leave out the owner: '{own[:64]}'.",
        )
    if own in ADAPTER_CALLS:
        raise invalid_field("name", f"'{own}' means something else", "Choose another name.")
    try:
        return _NAME.validate_python(own)
    except ValidationError as error:
        raise invalid_field(
            "name",
            "a name has up to 64 letters, digits, '.', '_' and '-', and begins with one of the "
            "first two",
            "Choose another name.",
        ) from error


def _own_name(caller: Caller, text: str) -> str:
    wanted = Reference.parse(text)
    named = wanted.owner in (None, caller.owner) and (wanted.version or wanted.alias) is None
    if not named or text.endswith(f"@{LATEST}"):
        raise NoSuchAdapter(text)
    return wanted.name


def _check_revision(services: Services, model: str, revision: str) -> None:
    hosted, current = services.engine.name, services.revision
    if (model, revision) != (hosted, current):
        raise ProblemError(
            REVISION_MISMATCH,
            f"the adapter was tuned on '{model}' revision {revision}; "
            f"the server hosts '{hosted}' revision {current}",
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


def _check_output(services: Services, caller: Caller, adapter: Adapter) -> None:
    wanted, policy = adapter.config.output, policy_for(services, caller)
    if not policy.reads(wanted):
        raise invalid_field(
            "adapter.output",
            f"its head reads answers of level '{wanted.level}'; the key's policy shows it others, "
            f"of level '{policy.output.level}'",
            "Tune again with this key, or publish with one that may see such answers.",
        )


def _published(status: int, card: AdapterCard, cost: Cost) -> Response:
    return json_response(AdapterPublishAnswer(adapter=card, cost=cost), status=status)


def _refining(
    adapter: Adapter,
    output: Output,
    message: AdapterPredictionRequest,
    abstain_below: float | None,
) -> Callable[[NDArray[np.float32]], codec.Tensors]:
    if message.abstain_below is not None:
        abstain_below = message.abstain_below

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
