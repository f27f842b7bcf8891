"""Adapters as the console shows them: found for who is signed in, with their cards and contents.

All that the console asks of `craft_server.adapters` is asked here. It does not know pages.
"""

from __future__ import annotations

from dataclasses import dataclass

from craft_server import adapters
from craft_server.adapters import Publication
from craft_server.api.classification import load
from craft_server.api.services import Services
from craft_server.ledger.keys import Caller
from craft_shared.wire import AdapterCard, Provenance


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
    cards = await services.database.read(adapters.list_cards, caller)
    by_name: dict[str, list[AdapterCard]] = {}
    for card in cards:
        by_name.setdefault(_reference(caller, card), []).append(card)
    return [_entry(services, name, versions[-1], versions) for name, versions in by_name.items()]


async def find(services: Services, caller: Caller, reference: str) -> AdapterView:
    """The adapter that a reference means now.

    Raises:
        NoSuchAdapter: there is none that the caller may use.
    """
    publication = await services.database.read(adapters.find, caller, reference)
    cards = await services.database.read(adapters.list_cards, caller)
    name = _reference(caller, publication.card)
    versions = [card for card in cards if _reference(caller, card) == name]
    config = (await load(services, publication)).adapter.config
    return AdapterView(
        _entry(services, name, publication.card, versions),
        publication,
        config.provenance,
        len(config.texts),
        list(config.templates),
        config.codes,
    )


def _reference(caller: Caller, card: AdapterCard) -> str:
    return card.name if card.owner == caller.owner else f"{card.owner}/{card.name}"


def _entry(
    services: Services, reference: str, card: AdapterCard, versions: list[AdapterCard]
) -> AdapterEntry:
    hosted = (card.model, card.revision) == (services.engine.name, services.engine.revision)
    return AdapterEntry(reference, card, [version.version for version in versions], hosted)
