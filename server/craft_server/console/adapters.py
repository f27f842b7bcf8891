"""Adapters: a list, each one's card, and a page to try one with an image."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from numpy.typing import NDArray
from PIL import Image

from craft_server.adapters import registry
from craft_server.api.adapters import listed_last
from craft_server.api.auth import use_rate
from craft_server.api.body import Body
from craft_server.api.idempotency import Call
from craft_server.api.predictions import AdapterPrediction, load, predict
from craft_server.api.services import Services, WithServices
from craft_server.console.access import WithPredictor
from craft_server.console.forms import WithFileForm, file_of, text_of
from craft_server.console.rendering import page, render
from craft_server.decoding.pixels import ImageError
from craft_server.ledger.keys import Caller
from craft_server.problems import invalid_field
from craft_shared.codec import Tensors
from craft_shared.units import UNITS
from craft_shared.wire import AdapterCard, AdapterPredictionRequest, Cost, Output

router = APIRouter(include_in_schema=False)

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
    """An adapter's card."""
    caller = session.caller
    publication = await services.database.read(registry.find, caller, reference)
    card = publication.card
    cards = await services.database.read(registry.versions, card.owner, card.name)
    living = [version for version in cards if version.retired_at is None]
    entry = _entry(services, _reference(caller, card), card, living)
    config = (await load(services, publication)).adapter.config
    return await page(request, "adapter.html.jinja", entry=entry, config=config, units=UNITS)


@router.get("/console/try")
async def show_trial(
    request: Request,
    services: WithServices,
    session: WithPredictor,
    adapter: Annotated[str, Query(max_length=300)] = "",
) -> Response:
    """The form: an adapter and an image."""
    entries, more = await _list_entries(services, session.caller)
    return await page(
        request, "try.html.jinja", entries=entries, more=more, chosen=adapter, trial=None
    )


@router.post("/console/try")
async def run_trial(
    request: Request, services: WithServices, session: WithPredictor, form: WithFileForm
) -> Response:
    """Tries the adapter, once and charged once. The answer is the page itself: nothing keeps it."""
    caller, reference = session.caller, text_of(form, "adapter")
    request.state.back = "/console/try"
    await use_rate(request, services, caller, "requests", 1)
    entries, more = await _list_entries(services, caller)
    file = await file_of(form, "picture")
    if not file:
        raise invalid_field("picture", "no picture was chosen", "Choose one.")

    async def respond(prediction: AdapterPrediction) -> Response:
        pixels = await services.engine.thumbnail(
            file, max_pixels=services.settings.limits.image_pixels, tenant=caller.tenant
        )
        trial = _trial(prediction, _data_address(pixels))
        return render(
            request, "try.html.jinja", entries=entries, more=more, chosen=reference, trial=trial
        )

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


def _reference(caller: Caller, card: AdapterCard) -> str:
    return card.name if card.owner == caller.owner else f"{card.owner}/{card.name}"


def _entry(
    services: Services, reference: str, card: AdapterCard, versions: list[AdapterCard]
) -> AdapterEntry:
    hosted = (card.model, card.revision) == (services.engine.name, services.revision)
    return AdapterEntry(reference, card, [version.version for version in versions], hosted)


def _trial(prediction: AdapterPrediction, image: str) -> Trial:
    tuned, untuned = (
        _percentages({name: tensor[0] for name, tensor in tensors.items()}, prediction.output)
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


def _percentages(tensors: Tensors, output: Output) -> dict[int, float | None]:
    """The probabilities of the classes that an answer shows of one image, the greatest first.

    In percent, or None where the answer has no numbers.
    """
    if output.level == "label":
        return {int(tensors["top_classes"][0]): None}
    probs = tensors["probs"] if "probs" in tensors else np.exp(tensors["log_probs"])
    classes = tensors.get("top_classes", np.arange(len(probs)))
    order = np.argsort(-probs, kind="stable")
    return {int(classes[i]): 100 * float(probs[i]) for i in order}


def _data_address(pixels: NDArray[np.uint8] | ImageError) -> str:
    """The image for the page; empty where there is none."""
    if isinstance(pixels, ImageError):
        return ""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
