"""`/v1/adapters`: list, share and retire tuned adapters.

An adapter of the caller's own is `NAME`, another owner's `OWNER/NAME`; either may end in `@VERSION`
or `@ALIAS`. What a key may not use does not exist for it. How adapters come here is in
`adapter_publishing`, how they are used in `adapter_predictions`.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path

from craft_server import adapters
from craft_server.adapters import NoSuchAdapter, Reference
from craft_server.api.addresses import ADAPTER, ADAPTER_OF_CALL
from craft_server.api.auth import caller_with
from craft_server.api.body import Body, body_of
from craft_server.api.openapi import refusals
from craft_server.api.services import WithServices
from craft_server.ledger.keys import Caller
from craft_server.problems import invalid_field
from craft_shared.problems import (
    ADAPTER_NOT_FOUND,
)
from craft_shared.wire import AdapterCard, AdapterChange, AdapterList, AdapterSettings, AdapterUsage
from craft_shared.wire.adapters import LATEST

router = APIRouter(prefix="/v1/adapters", tags=["adapters"])

WithPublishKey = Annotated[Caller, Depends(caller_with("publish"))]
WithPredictKey = Annotated[Caller, Depends(caller_with("predict"))]
OwnName = Annotated[str, Path(description="The adapter's name under the key's owner.")]
Version = Annotated[str, Path(description="`[OWNER/]NAME[@VERSION|@ALIAS]`; the newest version.")]
_NAMED = refusals(ADAPTER_NOT_FOUND)
Versions = Annotated[str, Path(description="`NAME@VERSION`, or `NAME` for all of its versions.")]


@router.get("", summary="Adapters")
async def list_adapters(services: WithServices, caller: WithPredictKey) -> AdapterList:
    """All versions that the key may use: its owner's, those shared with it, and public ones. Free.

    Retired versions are left out.
    """
    return AdapterList(adapters=await services.database.read(adapters.list_cards, caller))


@router.get(f"{ADAPTER_OF_CALL}/versions", summary="All versions of an adapter", responses=_NAMED)
async def list_adapter_versions(
    services: WithServices, caller: WithPredictKey, name: OwnName
) -> AdapterList:
    """All versions of the owner's adapter, the retired ones too. Free."""
    name = _own_name(caller, name)
    return AdapterList(adapters=await services.database.read(adapters.versions, caller.owner, name))


@router.get(f"{ADAPTER_OF_CALL}/settings", summary="An adapter's settings", responses=_NAMED)
async def get_adapter_settings(
    services: WithServices, caller: WithPublishKey, name: OwnName
) -> AdapterSettings:
    """Who may use the owner's adapter, who pays, and what its aliases mean. Free."""
    return await services.database.read(adapters.settings, caller.owner, _own_name(caller, name))


@router.get(f"{ADAPTER_OF_CALL}/usage", summary="An adapter's usage", responses=_NAMED)
async def get_adapter_usage(
    services: WithServices, caller: WithPublishKey, name: OwnName
) -> AdapterUsage:
    """What was classified with each version of the owner's adapter, by everybody. Free."""
    return await services.database.read(adapters.usage, caller.owner, _own_name(caller, name))


@router.put(
    f"{ADAPTER_OF_CALL}/restore",
    status_code=204,
    summary="Restore an adapter",
    responses=_NAMED,
)
async def restore_adapter(services: WithServices, caller: WithPublishKey, name: Versions) -> None:
    """Takes retired versions of the owner's adapter into service again. Free."""
    await services.database.write(adapters.restore, caller.owner, name)


@router.get(ADAPTER, summary="An adapter", responses=_NAMED)
async def get_adapter(services: WithServices, caller: WithPredictKey, name: Version) -> AdapterCard:
    """The version that a reference means now. Free."""
    publication = await services.database.read(adapters.find, caller, name)
    return publication.card


@router.patch(ADAPTER, summary="Share an adapter, move its aliases", responses=_NAMED)
async def change_adapter(
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


@router.delete(ADAPTER, status_code=204, summary="Retire an adapter", responses=_NAMED)
async def retire_adapter(services: WithServices, caller: WithPublishKey, name: Versions) -> None:
    """Takes versions of the owner's adapter out of service, until they are restored. Free."""
    await services.database.write(adapters.retire, caller.owner, name)


def _own_name(caller: Caller, text: str) -> str:
    wanted = Reference.parse(text)
    named = wanted.owner in (None, caller.owner) and (wanted.version or wanted.alias) is None
    if not named or text.endswith(f"@{LATEST}"):
        raise NoSuchAdapter(text)
    return wanted.name
