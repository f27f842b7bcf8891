"""Puts the console into the application: its pages, what protects them, and their problems."""

from __future__ import annotations

from urllib.parse import urlencode

from fastapi import FastAPI, Request
from fastapi.responses import Response

from craft_server.console import (
    adapters,
    administration,
    api_docs,
    assets,
    cookies,
    overview,
    runs,
    sign_in,
)
from craft_server.console.access import SignedOut, WithSessionIfAny
from craft_server.console.problem_pages import problem_page
from craft_server.console.rendering import redirect
from craft_server.console.security import ConsoleMiddleware
from craft_server.problems import ProblemError
from craft_shared.problems import NOT_FOUND


def install(app: FastAPI) -> None:
    """Adds the console's routes and handlers."""
    for module in (sign_in, overview, runs, adapters, administration, api_docs, assets):
        app.include_router(module.router)
    # Last: what no page answers to is told on a page that has the menu.
    app.get("/console/{_rest:path}", include_in_schema=False)(_no_such_page)
    app.exception_handler(SignedOut)(_on_signed_out)


def add_middleware(app: FastAPI) -> None:
    """Adds what must stand outside of all that answers, errors included."""
    app.add_middleware(ConsoleMiddleware, problem_page=problem_page)


async def _no_such_page(_session: WithSessionIfAny) -> Response:
    raise ProblemError(NOT_FOUND, "there is no such page")


async def _on_signed_out(request: Request, error: SignedOut) -> Response:
    query = f"?{urlencode({'next': error.wanted})}" if error.wanted not in ("", "/") else ""
    response = redirect(f"{sign_in.ADDRESS}{query}")
    if cookies.read_token(request) is not None:
        cookies.forget_token(request, response)
    return response
