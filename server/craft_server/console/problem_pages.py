"""Problems as pages: what went wrong and what to do about it, in words for people.

It knows problems; it does not know what caused them.
"""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import Response

from craft_server.console.rendering import render
from craft_shared import problems
from craft_shared.problems import Problem, ProblemType

# Where the API's own words are for programs.
_REMEDIES: dict[ProblemType, str] = {
    problems.NOT_FOUND: "Check the address, or start from the overview.",
    problems.ADAPTER_NOT_FOUND: "Choose one from the list of adapters.",
    problems.METHOD_NOT_ALLOWED: "Start from the overview.",
    problems.BUDGET_EXHAUSTED: (
        "Nothing was charged. Ask your provider for a top-up, or wait until the budget begins anew "
        "if it has a date. The overview shows what is left."
    ),
    problems.FORBIDDEN: "Sign in with a key that may do this, or ask your provider for the scope.",
    problems.RATE_LIMITED: "Nothing was charged. Wait a minute and try again.",
    problems.OVERLOADED: "Nothing was charged. Try again in a few seconds.",
    problems.BODY_TOO_LARGE: "Choose a smaller file.",
    problems.INVALID_IMAGE: "Nothing was charged. Choose another picture.",
    problems.INVALID_REQUEST: "Nothing was changed. Go back and correct what is named here.",
    problems.INTERNAL_ERROR: (
        "Nothing was charged. Try again; if it happens again, tell your provider the number below."
    ),
}
_BY_URI = {kind.uri: remedy for kind, remedy in _REMEDIES.items()}


def problem_page(request: Request, problem: Problem, headers: dict[str, str]) -> Response:
    """The page of a problem, with the problem's status."""
    detail = problem.detail[:1].upper() + problem.detail[1:]
    response = render(
        request,
        "problem.html.jinja",
        status=problem.status,
        problem=problem,
        detail=detail if detail.endswith((".", "!", "?")) else f"{detail}.",
        remedy=_BY_URI.get(problem.type, problem.remedy),
        back=getattr(request.state, "back", "/"),
    )
    response.headers.update(headers)
    return response
