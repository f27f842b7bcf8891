"""One picture under an adapter, beside what the untuned model says: scored once, charged once.

The untuned model is the adapter's plain prompt, its first, over the class names alone. It costs
what the API's prediction with the adapter costs. This module does not know pages.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from fastapi import Request
from fastapi.responses import Response
from numpy.typing import NDArray
from PIL import Image

from craft_server import adapters
from craft_server.api.classification import adapter_question, classify, load
from craft_server.api.idempotency import Call
from craft_server.api.metering import booking
from craft_server.api.outputs import checked_output, policy_for
from craft_server.api.pictures import Selection, load_pictures
from craft_server.api.rate_limits import use_predictions, use_request
from craft_server.api.services import Services
from craft_server.console import adapter_views
from craft_server.console.adapter_views import AdapterView
from craft_server.decoding.pixels import ImageError
from craft_server.ledger.charges import Work
from craft_server.ledger.keys import Caller
from craft_server.policy import answerable
from craft_server.problems import ProblemError, invalid_field
from craft_shared.adapter import Adapter
from craft_shared.codec import Tensors
from craft_shared.counting import prediction_units
from craft_shared.head import log_softmax
from craft_shared.problems import REVISION_MISMATCH
from craft_shared.wire import Cost, Output

_SHOWN = 10


@dataclass(frozen=True)
class Guess:
    """A class with its probabilities, tuned and untuned, in percent; None where none is shown."""

    name: str
    tuned: float | None
    untuned: float | None


@dataclass(frozen=True)
class Trial:
    """What came of it.

    Attributes:
        view: of the adapter.
        guesses: the most probable classes that the key's policy shows, the best first.
        left_out: classes that are not among them.
        untuned_best: the class that the untuned model finds most probable.
        picture: that was tried, small, as a `data:` address.
        cost: what it cost.
    """

    view: AdapterView
    guesses: list[Guess]
    left_out: int
    untuned_best: str
    picture: str
    cost: Cost


async def try_adapter(
    request: Request,
    services: Services,
    caller: Caller,
    reference: str,
    file: bytes,
    build: Callable[[Trial], Response],
) -> Response:
    """Classifies a picture, charges it, and answers what `build` makes of it.

    Raises:
        NoSuchAdapter: there is none that the caller may use.
        ProblemError: the adapter's model is not hosted any more, or the picture cannot be used.
        BudgetExhausted: the key's budgets do not cover it; nothing was charged.
    """
    await use_request(request, services, caller)
    view = await adapter_views.find(services, caller, reference)
    card = view.publication.card
    if not view.entry.hosted:
        raise ProblemError(
            REVISION_MISMATCH, f"'{card.name}' was tuned on a model that is not hosted any more"
        )
    if not file:
        raise invalid_field("picture", "no picture was chosen", "Choose one.")
    units = prediction_units(card.prompts, 1, sent=1)
    await use_predictions(request, services, caller, units.predictions)
    work = Work("adapter-predictions", card.model, card.revision, units)
    policy = policy_for(services, caller)
    output = checked_output(policy, None, len(card.classes))
    async with booking(
        services,
        caller,
        Call(None, None, None),
        work,
        payer_key_id=view.publication.payer_key_id,
    ) as booked:
        selection = Selection(None, None, [file])
        pictures = await load_pictures(services, caller, selection)
        picture = _thumbnail(
            await services.engine.thumbnail(
                file, max_pixels=services.settings.limits.image_pixels, tenant=caller.tenant
            )
        )
        servable = await load(services, view.publication)
        adapter = servable.adapter
        asked = await adapter_question(
            services, caller, policy, output, view.publication, servable, selection
        )
        features = await pictures.features(services, caller)
        found = await classify(
            services, caller, servable, features, asked.noise, partial(_both, adapter)
        )
        tuned, untuned = (_visible(found[name][0], output) for name in ("tuned", "untuned"))
        best = list(tuned)[:_SHOWN]
        names = adapter.config.classes
        trial = Trial(
            view,
            [Guess(names[i], tuned[i], untuned.get(i)) for i in best],
            len(names) - len(best),
            names[next(iter(untuned))],
            picture,
            booked.cost,
        )
        response = build(trial)
        return await booked.settle_with(
            lambda _: response, adapters.count_use, view.publication.id, units
        )


def _both(adapter: Adapter, log_probs: NDArray[np.float32]) -> Tensors:
    """Of the adapter and of the plain prompt, each [n, C], from scores [P, n, C + M]."""
    classes = len(adapter.config.classes)
    return {
        "tuned": adapter.refined(log_probs),
        "untuned": log_softmax(log_probs[0, :, :classes]),
    }


def _visible(log_probs: NDArray[np.float32], output: Output) -> dict[int, float | None]:
    """The classes that an answer shows of log-probabilities [C], the most probable first.

    Their probabilities are in percent, or None where the answer has no numbers.
    """
    tensors = answerable(log_probs, output)
    if output.level == "label":
        return {int(tensors["top_classes"][0]): None}
    probs = tensors["probs"] if "probs" in tensors else np.exp(tensors["log_probs"])
    classes = tensors.get("top_classes", np.arange(len(probs)))
    order = np.argsort(-probs, kind="stable")
    return {int(classes[i]): 100 * float(probs[i]) for i in order}


def _thumbnail(pixels: NDArray[np.uint8] | ImageError) -> str:
    """The image for the page; empty where there is none."""
    if isinstance(pixels, ImageError):
        return ""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
