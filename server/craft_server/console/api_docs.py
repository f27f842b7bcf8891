"""`/docs`: the API's description, as Swagger UI shows it, for everybody."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from craft_server.console.rendering import render

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def show_description(request: Request) -> Response:
    """The page; its script reads `/openapi.json`."""
    return render(request, "docs.html.jinja")
