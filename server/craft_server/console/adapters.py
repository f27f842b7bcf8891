"""Adapters: a list, each one's page for who uses it and who owns it, and one to try an image."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from numpy.typing import NDArray
from PIL import Image
from sqlalchemy import Connection
from starlette.datastructures import FormData

from craft_server.adapters import registry, sharing
from craft_server.api.adapters import listed_last, own_name
from craft_server.api.auth import use_rate
from craft_server.api.body import Body
from craft_server.api.idempotency import Call
from craft_server.api.predictions import AdapterPrediction, load, predict
from craft_server.api.services import Services, WithServices
from craft_server.console.access import WithPredictor, WithPublisher
from craft_server.console.forms import (
    FORM_PAGE,
    WithFileForm,
    WithForm,
    amount_of,
    file_of,
    message_of,
    text_of,
)
from craft_server.console.rendering import page, redirect, render
from craft_server.console.sessions import set_notice
from craft_server.console.snippets import snippets
from craft_server.decoding.pixels import ImageError
from craft_server.ledger.keys import Caller
from craft_server.problems import invalid_field
from craft_shared.codec import Tensors
from craft_shared.output import ranked
from craft_shared.wire import (
    AdapterCard,
    AdapterChange,
    AdapterPredictionRequest,
    AdapterSettings,
    AdapterUsage,
    Cost,
)

router = APIRouter(include_in_schema=False)

_TRY = "try.html.jinja"
_SHOWN = 10
_SHOWN_ADAPTERS = 100


@dataclass(frozen=True)
class AdapterEntry:
    """An adapter in a list: the card of its newest version, and all that are not retired.

    `reference` names it in addresses and calls, without a version.
    """

    reference: str
    card: AdapterCard
    versions: list[int]
    hosted: bool


@dataclass(frozen=True)
class Owned:
    """What only its owner sees of an adapter."""

    settings: AdapterSettings
    usage: AdapterUsage
    retired: list[int]  # versions


@dataclass(frozen=True)
class Guess:
    """A class with its probabilities, tuned and untuned, in percent; None where none is shown."""

    name: str
    tuned: float | None
    untuned: float | None


@dataclass(frozen=True)
class Trial:
    """What an adapter says of an image, beside what the untuned model says.

    The most probable classes that the key's policy shows come first; `left_out` is the number of
    those that are not among the guesses. The image is a `data:` address.
    """

    guesses: list[Guess]
    left_out: int
    untuned_best: str
    image: str
    cost: Cost


@router.get("/console/adapters")
async def show_page(
    request: Request,
    services: WithServices,
    session: WithPredictor,
    after: Annotated[str | None, Query(max_length=300)] = None,
) -> Response:
    """The adapters that the key may use, some at a time."""
    entries, next_after = await _list_entries(services, session.caller, listed_last(after))
    return await page(
        request, "adapters.html.jinja", entries=entries, after=after, next_after=next_after
    )


@router.get("/console/adapters/{reference:path}")
async def show(
    request: Request, services: WithServices, session: WithPredictor, reference: str
) -> Response:
    """An adapter's card, how to use it, and for its owner what it is used for and by whom."""
    caller = session.caller
    publication = await services.database.read(registry.find, caller, reference)
    card = publication.card
    cards = await services.database.read(registry.versions, card.owner, card.name)
    living = [version for version in cards if version.retired_at is None]
    entry = _entry(services, _reference(caller, card), card, living)
    owned = None
    if card.owner == caller.owner and "publish" in caller.scopes:
        retired = [version.version for version in cards if version.retired_at is not None]
        owned = await services.database.read(_read_owned, caller, card.name, retired)
    return await page(
        request,
        "adapter.html.jinja",
        entry=entry,
        config=(await load(services, publication)).adapter.config,
        snippets=snippets(request, f"{entry.reference}@{card.version}"),
        owned=owned,
    )


@router.post("/console/adapters/{name}/share")
async def share(
    request: Request, services: WithServices, form: WithForm, session: WithPublisher, name: str
) -> Response:
    """Says who may use an adapter of the owner's, and who pays."""
    caller = session.caller
    name = own_name(caller, name)
    request.state.back = address = f"/console/adapters/{name}"
    wanted: dict[str, Any] = {
        "public": "public" in form,
        "keys": _words(form, "keys"),
        "teams": _words(form, "teams", separator=","),
    }
    settings = await services.database.read(sharing.settings, caller.owner, name)
    if (pays := text_of(form, "pays")) != settings.pays:
        # Said again, it would be this key that pays from now on.
        wanted["pays"] = pays
    change = message_of(AdapterChange, wanted)
    await services.database.write(sharing.change, caller, name, change)
    await services.database.write(set_notice, session, f"Who may use {name} is changed.")
    return redirect(address)


@router.post("/console/adapters/{name}/retire")
async def retire(
    request: Request, services: WithServices, form: WithForm, session: WithPublisher, name: str
) -> Response:
    """Takes a version of the owner's adapter out of service."""
    reference = f"{name}@{amount_of(form, 'version')}"
    await services.database.write(registry.retire, session.caller.owner, reference)
    notice = f"{reference} is retired. It comes back with: craft restore {reference}"
    await services.database.write(set_notice, session, notice)
    return redirect("/console/adapters")


@router.post("/console/adapters/{name}/restore")
async def restore(
    request: Request, services: WithServices, form: WithForm, session: WithPublisher, name: str
) -> Response:
    """Takes a version of the owner's adapter into service again."""
    reference = f"{name}@{amount_of(form, 'version')}"
    await services.database.write(registry.restore, session.caller.owner, reference)
    await services.database.write(set_notice, session, f"{reference} is in service again.")
    return redirect(f"/console/adapters/{reference}")


@dataclass
class TrialPage:
    """The form to try an adapter: what it offers, and which adapter is chosen."""

    entries: list[AdapterEntry]
    more: str | None
    chosen: str

    def values(self, *, refused: str = "", trial: Trial | None = None) -> dict[str, Any]:
        """What the page shows, with what came of it: a refusal, or what the adapter says."""
        return {
            "entries": self.entries,
            "more": self.more,
            "chosen": self.chosen,
            "refused": refused,
            "trial": trial,
        }


async def _trial_page(
    request: Request,
    services: WithServices,
    session: WithPredictor,
    adapter: Annotated[str, Query(max_length=300)] = "",
) -> TrialPage:
    entries, more = await _list_entries(services, session.caller)
    shown = TrialPage(entries, more, adapter)

    def with_refusal(why: str, status: int) -> Response:
        return render(request, _TRY, status=status, **shown.values(refused=why))

    # Before the form is read: a file that is too large is refused there.
    setattr(request.state, FORM_PAGE, with_refusal)
    return shown


WithTrialPage = Annotated[TrialPage, Depends(_trial_page)]


@router.get("/console/try")
async def show_trial(request: Request, shown: WithTrialPage) -> Response:
    """The form: an adapter and an image."""
    return await page(request, _TRY, **shown.values())


@router.post("/console/try")
async def run_trial(
    request: Request,
    services: WithServices,
    session: WithPredictor,
    shown: WithTrialPage,
    form: WithFileForm,
) -> Response:
    """Tries the adapter, once and charged once. The answer is the page itself: nothing keeps it."""
    caller, reference = session.caller, text_of(form, "adapter")
    shown.chosen = reference
    await use_rate(request, services, caller, "requests", 1)
    file = await file_of(form, "picture")
    if not file:
        raise invalid_field("picture", "no picture was chosen", "Choose one.")

    async def respond(prediction: AdapterPrediction) -> Response:
        pixels = await services.engine.thumbnail(
            file, max_pixels=services.settings.limits.image_pixels, tenant=caller.tenant
        )
        trial = _trial(prediction, _data_address(pixels))
        return render(request, _TRY, **shown.values(trial=trial))

    call, body = Call(request, services, caller), Body(AdapterPredictionRequest(), None, [file])
    return await predict(call, reference, body, respond, untuned=True)


async def _list_entries(
    services: Services, caller: Caller, after: tuple[str, str] | None = None
) -> tuple[list[AdapterEntry], str | None]:
    """Adapters that the caller may use, each once, by name; and after which one there are more."""
    found = await services.database.read(
        registry.list_page, caller, after=after, limit=_SHOWN_ADAPTERS
    )
    by_name: dict[str, list[AdapterCard]] = {}
    for card in found.cards:
        by_name.setdefault(_reference(caller, card), []).append(card)
    entries = [_entry(services, name, cards[-1], cards) for name, cards in by_name.items()]
    return entries, None if found.next_after is None else "/".join(found.next_after)


def _read_owned(connection: Connection, caller: Caller, name: str, retired: list[int]) -> Owned:
    return Owned(
        sharing.settings(connection, caller.owner, name),
        sharing.usage(connection, caller.owner, name),
        retired,
    )


def _words(form: FormData, name: str, *, separator: str | None = None) -> list[str]:
    """A field's list; keys stand between spaces, names that may hold some between commas."""
    return [word.strip() for word in text_of(form, name).split(separator) if word.strip()]


def _reference(caller: Caller, card: AdapterCard) -> str:
    return card.name if card.owner == caller.owner else f"{card.owner}/{card.name}"


def _entry(
    services: Services, reference: str, card: AdapterCard, versions: list[AdapterCard]
) -> AdapterEntry:
    hosted = (card.model, card.revision) == (services.engine.name, services.revision)
    return AdapterEntry(reference, card, [version.version for version in versions], hosted)


def _trial(prediction: AdapterPrediction, image: str) -> Trial:
    tuned, untuned = (
        _percentages({name: tensor[0] for name, tensor in tensors.items()})
        for tensors in (prediction.tuned, prediction.untuned)
    )
    names = prediction.card.classes
    best = list(tuned)[:_SHOWN]
    return Trial(
        [Guess(names[i], tuned[i], untuned.get(i)) for i in best],
        len(names) - len(best),
        names[next(iter(untuned))],
        image,
        prediction.cost,
    )


def _percentages(tensors: Tensors) -> dict[int, float | None]:
    """The probabilities of the classes that an answer shows of one image, the greatest first.

    In percent, or None where the answer has no numbers.
    """
    classes, probabilities = ranked(tensors)
    if probabilities is None:
        return dict.fromkeys(classes.tolist())
    return dict(zip(classes.tolist(), (100 * probabilities).tolist(), strict=True))


def _data_address(pixels: NDArray[np.uint8] | ImageError) -> str:
    """The image for the page; empty where there is none."""
    if isinstance(pixels, ImageError):
        return ""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
