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
async def show_all(request: Request, services: WithServices, session: WithPredictor) -> Response:
    """The adapters that the key may use."""
    entries = await _list_entries(services, session.caller)
    return await page(request, "adapters.html.jinja", entries=entries)


@router.get("/console/adapters/{reference:path}")
async def show(
    request: Request, services: WithServices, session: WithPredictor, reference: str
) -> Response:
    """An adapter's card."""
    caller = session.caller
    publication = await services.database.read(registry.find, caller, reference)
    cards = await services.database.read(registry.list_cards, caller)
    name = _reference(caller, publication.card)
    versions = [card for card in cards if _reference(caller, card) == name]
    entry = _entry(services, name, publication.card, versions)
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
    entries = await _list_entries(services, session.caller)
    return await page(request, "try.html.jinja", entries=entries, chosen=adapter, trial=None)


@router.post("/console/try")
async def run_trial(
    request: Request, services: WithServices, session: WithPredictor, form: WithFileForm
) -> Response:
    """Tries the adapter, once and charged once. The answer is the page itself: nothing keeps it."""
    caller, reference = session.caller, text_of(form, "adapter")
    request.state.back = "/console/try"
    await use_rate(request, services, caller, "requests", 1)
    entries = await _list_entries(services, caller)
    file = await file_of(form, "picture")
    if not file:
        raise invalid_field("picture", "no picture was chosen", "Choose one.")

    async def respond(prediction: AdapterPrediction) -> Response:
        pixels = await services.engine.thumbnail(
            file, max_pixels=services.settings.limits.image_pixels, tenant=caller.tenant
        )
        trial = _trial(prediction, _data_address(pixels))
        return render(request, "try.html.jinja", entries=entries, chosen=reference, trial=trial)

    call, body = Call(request, services, caller), Body(AdapterPredictionRequest(), None, [file])
    return await predict(call, reference, body, respond, untuned=True)


async def _list_entries(services: Services, caller: Caller) -> list[AdapterEntry]:
    """The adapters that the caller may use, each once, by name."""
    cards = await services.database.read(registry.list_cards, caller)
    by_name: dict[str, list[AdapterCard]] = {}
    for card in cards:
        by_name.setdefault(_reference(caller, card), []).append(card)
    return [_entry(services, name, versions[-1], versions) for name, versions in by_name.items()]


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
