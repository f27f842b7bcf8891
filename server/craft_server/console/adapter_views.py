"""Adapters as the console shows them: found for who is signed in, with their cards and contents.

All that the console asks of `craft_server.adapters` is asked here. It does not know pages.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from craft_server import adapters
from craft_server.adapters import Publication, ServableAdapter
from craft_server.api.services import Services
from craft_server.ledger.keys import Caller
from craft_shared.adapter import Provenance
from craft_shared.wire import AdapterCard


@dataclass(frozen=True)
class AdapterEntry:
    """An adapter in a list.

    Attributes:
        reference: what names it in addresses and calls, without a version.
        card: of the newest version.
        versions: that live, the oldest first.
        hosted: whether the server still hosts the model that it was tuned on.
    """

    reference: str
    card: AdapterCard
    versions: list[int]
    hosted: bool


@dataclass(frozen=True)
class AdapterView:
    """One adapter with what is inside of it."""

    entry: AdapterEntry
    publication: Publication
    provenance: Provenance
    texts: int
    templates: list[str]
    codes: int


async def list_entries(services: Services, caller: Caller) -> list[AdapterEntry]:
    """The adapters that the caller may use, each once, by name."""
    cards = await services.database.read(adapters.list_cards, caller.owner)
    by_name: dict[str, list[AdapterCard]] = {}
    for card in cards:
        by_name.setdefault(card.name, []).append(card)
    return [_entry(services, name, versions[-1], versions) for name, versions in by_name.items()]


async def find(services: Services, caller: Caller, reference: str) -> AdapterView:
    """The adapter that `name` or `name@version` refers to.

    Raises:
        NoSuchAdapter: there is none that the caller may use.
    """
    publication = await services.database.read(adapters.find, caller.owner, reference)
    cards = await services.database.read(adapters.list_cards, caller.owner)
    name = publication.card.name
    versions = [card for card in cards if card.name == name]
    config = (await load(services, publication)).adapter.config
    return AdapterView(
        _entry(services, name, publication.card, versions),
        publication,
        config.provenance,
        len(config.texts),
        list(config.templates),
        config.codes,
    )


async def load(services: Services, publication: Publication) -> ServableAdapter:
    """What a prediction with the adapter needs."""
    servable = services.adapters.get(publication.id)
    if servable is None:
        content = await services.database.read(adapters.read_content, publication.id)
        servable = await asyncio.to_thread(adapters.servable, *content)
        services.adapters.put(publication.id, servable)
    return servable


def _entry(
    services: Services, reference: str, card: AdapterCard, versions: list[AdapterCard]
) -> AdapterEntry:
    hosted = (card.model, card.revision) == (services.engine.name, services.engine.revision)
    return AdapterEntry(reference, card, [version.version for version in versions], hosted)
