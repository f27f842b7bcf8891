"""Adapters: a list, each one's card, and a page to try one with a picture."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from craft_server.api.services import WithServices
from craft_server.console import adapter_views
from craft_server.console.access import WithPredictor
from craft_server.console.forms import WithFileForm, file_of, text_of
from craft_server.console.rendering import page, render
from craft_server.console.trial import Trial, try_adapter
from craft_shared.units import UNITS

router = APIRouter(include_in_schema=False)


@router.get("/console/adapters")
async def show_all(request: Request, services: WithServices, session: WithPredictor) -> Response:
    """The adapters that the key may use."""
    entries = await adapter_views.list_entries(services, session.caller)
    return await page(request, "adapters.html.jinja", entries=entries)


@router.get("/console/adapters/{reference:path}")
async def show(
    request: Request, services: WithServices, session: WithPredictor, reference: str
) -> Response:
    """An adapter's card."""
    view = await adapter_views.find(services, session.caller, reference)
    return await page(request, "adapter.html.jinja", view=view, units=UNITS)


@router.get("/console/try")
async def show_trial(
    request: Request,
    services: WithServices,
    session: WithPredictor,
    adapter: Annotated[str, Query(max_length=300)] = "",
) -> Response:
    """The form: an adapter and a picture."""
    entries = await adapter_views.list_entries(services, session.caller)
    return await page(request, "try.html.jinja", entries=entries, chosen=adapter, trial=None)


@router.post("/console/try")
async def run_trial(
    request: Request, services: WithServices, session: WithPredictor, form: WithFileForm
) -> Response:
    """Tries the adapter. The answer is the page itself, since the result is kept nowhere."""
    reference = text_of(form, "adapter")
    request.state.back = "/console/try"
    entries = await adapter_views.list_entries(services, session.caller)

    def build(trial: Trial) -> Response:
        return render(request, "try.html.jinja", entries=entries, chosen=reference, trial=trial)

    file = await file_of(form, "picture")
    return await try_adapter(request, services, session.caller, reference, file, build)
