"""`/v1/adapters`: publish, list, share and retire tuned adapters.

An adapter of the caller's own is `NAME`, another owner's `OWNER/NAME`; either may end in `@VERSION`
or `@ALIAS`. What a key may not use does not exist for it. A publication is whole or not at all.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from fastapi.responses import Response
from pydantic import Field, TypeAdapter, ValidationError
from sqlalchemy import Connection

from craft_server.adapters import registry, sharing
from craft_server.adapters.tables import NoSuchAdapter, Reference
from craft_server.api.addresses import (
    ADAPTER,
    ADAPTER_CALLS,
    ADAPTER_OF_CALL,
    DIGITS,
    AnyName,
)
from craft_server.api.answers import json_response
from craft_server.api.auth import caller_with, policy_for
from craft_server.api.body import Body, body_of, read_bytes, unsupported
from craft_server.api.idempotency import Call, call_of
from craft_server.api.inputs import check_model, check_prompts, check_revision, counted_prompts
from craft_server.api.metering import booking, free_of_charge
from craft_server.api.middleware import media_type_of
from craft_server.api.openapi import refusals, safetensors_body
from craft_server.api.services import Services, WithServices
from craft_server.clock import now_ms
from craft_server.engine.hosted import on_host
from craft_server.ledger.account import cost_of
from craft_server.ledger.charges import Work
from craft_server.ledger.keys import Caller
from craft_server.problems import invalid_field, invalid_request
from craft_shared import codec, names, problems, wire
from craft_shared.adapter import Adapter, AdapterConfig, AdapterError
from craft_shared.problems import FieldError
from craft_shared.units import Units
from craft_shared.wire.adapters import LATEST, Alias
from craft_shared.wire.messages import Name

router = APIRouter(prefix="/v1/adapters", tags=["adapters"])

WithPublishKey = Annotated[Caller, Depends(caller_with("publish"))]
WithPredictKey = Annotated[Caller, Depends(caller_with("predict"))]
OwnName = Annotated[
    str, Path(description="The adapter's name under the key's owner.", examples=["digits"])
]
Versions = Annotated[
    str,
    Path(description="`NAME@VERSION`, or `NAME` for all of its versions.", examples=["digits@1"]),
]
_NAMED = refusals(problems.ADAPTER_NOT_FOUND)
_NAME: TypeAdapter[str] = TypeAdapter(Name)


@router.post(
    "",
    status_code=201,
    response_model=wire.AdapterPublishAnswer,
    summary="Publish an adapter",
    openapi_extra=safetensors_body(AdapterConfig, "`codes` and the head's"),
    responses={
        200: {
            "model": wire.AdapterPublishAnswer,
            "description": "This very adapter is published under the name already; not charged",
        },
        **refusals(problems.BUDGET_EXHAUSTED, problems.MODEL_NOT_FOUND, problems.REVISION_MISMATCH),
    },
)
async def publish_adapter(
    call: Annotated[Call, Depends(call_of("publish", repeatable=False))],
    name: Annotated[
        str,
        Query(
            description="What the adapter is called under the key's owner.",
            examples=["digits"],
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
    _check_visual(services, config)
    prompts = counted_prompts(
        services.settings.limits, config.scored, config.templates, config.context, adapter.codes
    )
    same = await services.database.read(registry.find_digest, caller.owner, name, digest)
    if same is not None:

        def move(connection: Connection) -> Response:
            version = same.card.version
            sharing.move_aliases(connection, caller.owner, name, dict.fromkeys(aliases, version))
            card = registry.find(connection, caller, f"{name}@{version}").card
            return _published(200, card, cost_of(connection, caller, None, now_ms()))

        return await free_of_charge(call, move)
    units = Units(texts=config.prompts * len(config.scored), requests=1)
    work = Work("adapters", config.model, config.revision, units, call.run)
    async with booking(call, work) as booked:
        await check_prompts(call, prompts, config.scored)
        texts = await services.engine.encode_prompts(prompts, config.scored, tenant=caller.tenant)
        text_features = await asyncio.to_thread(on_host, texts)

        def add(connection: Connection) -> Response:
            card = registry.add(
                connection,
                caller.owner,
                name,
                adapter=adapter,
                digest=digest,
                body=body,
                text_features=text_features,
                texts_in=services.engine.facts.texts_in,
                aliases=aliases,
            )
            return _published(201, card, booked.cost)

        return await booked.settle_with(add)


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


def _check_visual(services: Services, config: AdapterConfig) -> None:
    size = services.engine.image_size
    if config.visual not in (None, size):
        raise invalid_field(
            "adapter.visual",
            f"the visual prompt has {config.visual} pixels a side; the model reads {size}",
            "Tune it on this model.",
        )


def _published(status: int, card: wire.AdapterCard, cost: wire.Cost) -> Response:
    return json_response(wire.AdapterPublishAnswer(adapter=card, cost=cost), status=status)


@router.get("", summary="Adapters")
async def list_adapters(
    services: WithServices,
    caller: WithPredictKey,
    after: Annotated[
        str | None,
        Query(
            description="Adapters after this `OWNER/NAME`: the `next_after` before.",
            json_schema_extra={"pattern": "^[^\\x00]*/[^\\x00]*$"},
        ),
    ] = None,
    limit: Annotated[
        int | None,
        Field(ge=1, le=registry.MOST_A_PAGE),
        DIGITS,
        Query(description="So many adapters, not all."),
    ] = None,
) -> wire.AdapterPage:
    """All versions that the key may use: its owner's, those shared with it, and public ones. Free.

    Its owner's come first. Retired versions are left out. A page has all versions of its adapters.
    """
    read, last = services.database.read, listed_last(after)
    if limit is None:
        return wire.AdapterPage(adapters=await read(registry.list_cards, caller, after=last))
    page = await read(registry.list_page, caller, after=last, limit=limit)
    following = None if page.next_after is None else "/".join(page.next_after)
    return wire.AdapterPage(adapters=page.cards, next_after=following)


def listed_last(after: str | None) -> tuple[str, str] | None:
    """Owner and name of the adapter that ended the page before."""
    if after is None:
        return None
    owner, slash, name = after.rpartition("/")
    if not slash or "\0" in after:  # PostgreSQL takes no NUL
        raise invalid_field("after", "it is not OWNER/NAME", "Send the last page's 'next_after'.")
    return owner, name


@router.get(f"{ADAPTER_OF_CALL}/versions", summary="All versions of an adapter", responses=_NAMED)
async def list_adapter_versions(
    services: WithServices, caller: WithPredictKey, name: OwnName
) -> wire.AdapterList:
    """All versions of the owner's adapter, the retired ones too. Free."""
    name = own_name(caller, name)
    return wire.AdapterList(
        adapters=await services.database.read(registry.versions, caller.owner, name)
    )


@router.get(f"{ADAPTER_OF_CALL}/settings", summary="An adapter's settings", responses=_NAMED)
async def get_adapter_settings(
    services: WithServices, caller: WithPublishKey, name: OwnName
) -> wire.AdapterSettings:
    """Who may use the owner's adapter, who pays, and what its aliases mean. Free."""
    return await services.database.read(sharing.settings, caller.owner, own_name(caller, name))


@router.get(f"{ADAPTER_OF_CALL}/usage", summary="An adapter's usage", responses=_NAMED)
async def get_adapter_usage(
    services: WithServices, caller: WithPublishKey, name: OwnName
) -> wire.AdapterUsage:
    """What was classified with each version of the owner's adapter, by everybody. Free."""
    return await services.database.read(sharing.usage, caller.owner, own_name(caller, name))


@router.put(
    f"{ADAPTER_OF_CALL}/restore",
    status_code=204,
    summary="Restore an adapter",
    responses=_NAMED,
)
async def restore_adapter(services: WithServices, caller: WithPublishKey, name: Versions) -> None:
    """Takes retired versions of the owner's adapter into service again. Free."""
    await services.database.write(registry.restore, caller.owner, name)


@router.get(ADAPTER, summary="An adapter", responses=_NAMED)
async def get_adapter(
    services: WithServices, caller: WithPredictKey, name: AnyName
) -> wire.AdapterCard:
    """The version that a reference means now. Free."""
    publication = await services.database.read(registry.find, caller, name)
    return publication.card


@router.patch(ADAPTER, summary="Share an adapter, move its aliases", responses=_NAMED)
async def change_adapter(
    services: WithServices,
    caller: WithPublishKey,
    name: OwnName,
    body: Annotated[Body[wire.AdapterChange], Depends(body_of(wire.AdapterChange))],
) -> wire.AdapterSettings:
    """Changes what the body names, of all versions of the owner's adapter, at once. Free.

    A key or team that does not exist is kept as it is written, and means nobody.
    """
    wanted = body.message
    if LATEST in wanted.aliases:
        message = "'latest' is always the newest version"
        raise invalid_field(f"aliases.{LATEST}", message, "Give the alias another name.")
    name = own_name(caller, name)
    return await services.database.write(sharing.change, caller, name, wanted)


@router.delete(ADAPTER, status_code=204, summary="Retire an adapter", responses=_NAMED)
async def retire_adapter(services: WithServices, caller: WithPublishKey, name: Versions) -> None:
    """Takes versions of the owner's adapter out of service, until they are restored. Free."""
    await services.database.write(registry.retire, caller.owner, name)


def own_name(caller: Caller, text: str) -> str:
    """The name of an adapter of the caller's owner; raises NoSuchAdapter where it is none."""
    wanted = Reference.parse(text)
    named = wanted.owner in (None, caller.owner) and (wanted.version or wanted.alias) is None
    if not named or text.endswith(f"@{LATEST}"):
        raise NoSuchAdapter(text)
    return wanted.name
