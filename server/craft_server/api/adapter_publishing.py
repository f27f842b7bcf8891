"""`POST /v1/adapters`: publishes the next version of a tuned adapter, whole or not at all."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Connection

from craft_server import adapters
from craft_server.api.addresses import ADAPTER_CALLS
from craft_server.api.answers import json_response
from craft_server.api.auth import policy_for
from craft_server.api.body import read_bytes, unsupported
from craft_server.api.checks import check_model, check_prompts, check_revision, counted_prompts
from craft_server.api.idempotency import Call, call_of
from craft_server.api.metering import booking, free_of_charge
from craft_server.api.middleware import media_type_of
from craft_server.api.openapi import refusals, safetensors_body
from craft_server.api.services import Services
from craft_server.clock import now_ms
from craft_server.ledger.account import cost_of
from craft_server.ledger.charges import Work
from craft_server.ledger.keys import Caller
from craft_server.problems import invalid_field, invalid_request
from craft_shared import codec, names
from craft_shared.adapter import Adapter, AdapterConfig, AdapterError
from craft_shared.problems import (
    BUDGET_EXHAUSTED,
    MODEL_NOT_FOUND,
    REVISION_MISMATCH,
    FieldError,
)
from craft_shared.units import Units
from craft_shared.wire import AdapterCard, AdapterPublishAnswer, Cost
from craft_shared.wire.adapters import LATEST, Alias
from craft_shared.wire.messages import Name

router = APIRouter(prefix="/v1/adapters", tags=["adapters"])

_NAME: TypeAdapter[str] = TypeAdapter(Name)


@router.post(
    "",
    status_code=201,
    response_model=AdapterPublishAnswer,
    summary="Publish an adapter",
    openapi_extra=safetensors_body(AdapterConfig, "`codes` and the head's"),
    responses={
        200: {
            "model": AdapterPublishAnswer,
            "description": "This very adapter is published under the name already; not charged",
        },
        **refusals(BUDGET_EXHAUSTED, MODEL_NOT_FOUND, REVISION_MISMATCH),
    },
)
async def publish_adapter(
    call: Annotated[Call, Depends(call_of("publish", repeatable=False))],
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
    services, caller = call.services, call.caller
    if (media_type := media_type_of(call.request.headers)) != codec.MEDIA_TYPE:
        raise unsupported(media_type, codec.MEDIA_TYPE)
    name, aliases = _own_new_name(caller, name), alias or []
    if LATEST in aliases:
        raise invalid_field("alias", "'latest' is always the newest version", "Leave it out.")
    body = await read_bytes(call.request)
    adapter, digest = await asyncio.to_thread(_parse, body)
    config = adapter.config
    _check_names(config)
    check_model(services, config.model)
    check_revision(services, config.model, config.revision)
    _check_texts(services, adapter)
    _check_output(services, caller, adapter)
    prompts = counted_prompts(
        services,
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

        return await free_of_charge(call, lambda done: _published(200, *done), move)
    units = Units(texts=config.prompts * len(config.scored), requests=1)
    work = Work("adapters", config.model, config.revision, units, call.run)
    async with booking(call, work) as booked:
        await check_prompts(call, prompts, config.scored)
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


def _check_names(config: AdapterConfig) -> None:
    """Reading an adapter does not ask this of it: those that were published before stay."""
    made = config.provenance
    texts = {
        **{f"adapter.classes[{i}]": name for i, name in enumerate(config.classes)},
        **{f"adapter.texts[{i}]": text for i, text in enumerate(config.texts)},
        "adapter.provenance.recipe": made.recipe or "",
        "adapter.provenance.data": made.data or "",
    }
    errors = [
        FieldError(field=field, message=f"the name {fault}", remedy=names.REMEDY)
        for field, name in texts.items()
        if (fault := names.fault(name))
    ]
    if errors:
        raise invalid_request(errors)


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
