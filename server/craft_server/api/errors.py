"""Turns every exception into problem+json, and keeps what it was from whoever may not know it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from prometheus_client import Counter
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from craft_server.adapters.sharing import NoSuchVersion
from craft_server.adapters.tables import NoSuchAdapter
from craft_server.api.addresses import allowed_methods
from craft_server.api.idempotency import REPLAYED_HEADER, Replayed
from craft_server.api.middleware import Middleware
from craft_server.api.services import Services
from craft_server.database import Unavailable
from craft_server.engine import NotFinite, Overloaded, WorkerDied
from craft_server.exhaustion import is_exhaustion
from craft_server.image_sets import NoSuchImageSet, WrongFirstRow
from craft_server.ledger import budgets, calls, charges, keys, users
from craft_server.policy import PromptLimitReached
from craft_server.problems import ProblemError, invalid_field, invalid_request
from craft_server.rate_limits import NotCounted, RateLimited
from craft_server.receipts import StillReserved
from craft_server.root_path import root_path
from craft_server.run_reports import NoSuchRun, TooManyPoints
from craft_server.simulate.provider import Struck
from craft_server.telemetry import REGISTRY
from craft_shared import problems
from craft_shared.problems import MEDIA_TYPE, FieldError, Problem
from craft_shared.run_reports import POINTS_PER_RUN

_OF_THE_MACHINE = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
)

# Where a request's state holds how its problems become pages, if they do.
PROBLEM_PAGE = "problem_page"
ProblemPage = Callable[[Request, Problem, dict[str, str]], Response]

_PROBLEMS = Counter(
    "craft_problems_total",
    "Calls that were refused or failed, by problem.",
    ["type"],
    registry=REGISTRY,
)
_REPLAYS = Counter(
    "craft_idempotent_replays_total",
    "Calls that were made before and were given the answer of then.",
    registry=REGISTRY,
)

_log = structlog.get_logger()


_MODEL_IS_BUSY = ProblemError(
    problems.OVERLOADED, "the model cannot take this call now; nothing was charged", retry_after=5
)
# A call that is sent again is charged once, whatever became of it.
_DATABASE_UNAVAILABLE = ProblemError(
    problems.OVERLOADED,
    "the server's database cannot be used now; the call was not answered",
    retry_after=5,
)


_OF_WHOM = {
    "key": "",
    "team": " in the team's budget",
    "user": " in the budget of the end user whom Craft-User names",
}


def _budget_exhausted(error: charges.BudgetExhausted) -> ProblemError:
    parts = []
    for short in error.shortfalls:
        budget = short.budget
        of_whom = _OF_WHOM[budget.of]
        until = f" until {budget.resets_at}" if budget.resets_at else ""
        parts.append(
            f"this call needs {short.needed} {budget.unit} and {budget.remaining} are left"
            f"{of_whom}{until}"
        )
    return ProblemError(problems.BUDGET_EXHAUSTED, "; ".join(parts))


def _rate_limited(error: RateLimited) -> ProblemError:
    quota = error.quota
    detail = (
        f"this call needs {error.needed} {quota.name} and {quota.remaining} of {quota.limit} "
        "a minute are left"
    )
    if error.needed > quota.limit:
        # Waiting would not help.
        return ProblemError(problems.RATE_LIMITED, f"{detail}: ask for less in one call")
    return ProblemError(problems.RATE_LIMITED, detail, retry_after=max(1, quota.reset_seconds))


# What each error of a lower layer is answered with, by the API and the console alike.
_REFUSALS: dict[type[Exception], Callable[[Any], ProblemError]] = {
    ProblemError: lambda error: error,
    charges.BudgetExhausted: lambda error: _budget_exhausted(error),
    charges.PublisherCannotPay: lambda _: ProblemError(
        problems.BUDGET_EXHAUSTED,
        "the adapter's publisher pays for its predictions, and has no budget left for this one",
    ),
    PromptLimitReached: lambda error: ProblemError(
        problems.PROMPT_LIMIT_REACHED,
        f"{error.used} of {error.limit} different prompts have been asked about these images, "
        f"and this call asks {error.new} more",
    ),
    charges.TooManyRunning: lambda error: ProblemError(
        problems.RATE_LIMITED,
        f"{error.args[0]} calls of the key are running, as many as it may have at a time",
        retry_after=1,
    ),
    RateLimited: lambda error: _rate_limited(error),
    calls.KeyReused: lambda _: ProblemError(
        problems.IDEMPOTENCY_KEY_REUSED,
        "a call with another address or body was made under this Idempotency-Key",
    ),
    calls.AnswerGone: lambda error: ProblemError(
        problems.ANSWER_GONE, f"the answer to this call cannot be had any more: {error}"
    ),
    StillReserved: lambda error: ProblemError(
        problems.RUN_IN_PROGRESS,
        f"{error.calls} calls that the receipt would cover have not been answered yet",
        retry_after=5,
    ),
    NoSuchImageSet: lambda _: ProblemError(
        problems.IMAGE_SET_NOT_FOUND, "there is no image set with this id under the key's owner"
    ),
    WrongFirstRow: lambda error: invalid_field(
        "first_row",
        f"the image set holds {error.count} images, so that the next row is {error.count}",
        "GET the image set for its count, and go on from there.",
    ),
    NoSuchAdapter: lambda _: ProblemError(
        problems.ADAPTER_NOT_FOUND,
        "there is no adapter of this name and version that the key may use",
    ),
    NoSuchVersion: lambda error: invalid_field(
        f"aliases.{error.alias}",
        f"version {error.version} is not published",
        "Name a version that GET /v1/adapters/{name}/versions lists and that is not retired.",
    ),
    NoSuchRun: lambda _: ProblemError(
        problems.NOT_FOUND, "no run of this name was reported under the key's owner"
    ),
    TooManyPoints: lambda _: invalid_field(
        "points",
        f"of one run at most {POINTS_PER_RUN} points are kept",
        "Report every tenth generation.",
    ),
    users.TooManyUsers: lambda error: ProblemError(
        problems.USER_LIMIT_REACHED,
        f"calls were made for {error.args[0]} end users of the key, as many as it may name",
    ),
    users.TeamHasNoUsers: lambda _: invalid_field(
        "budgets", "a team has no end users", "Set the budget for each of the team's keys."
    ),
    keys.UnknownKey: lambda _: ProblemError(problems.NOT_FOUND, "there is no key with this prefix"),
    keys.UnknownTeam: lambda _: ProblemError(
        problems.NOT_FOUND, "there is no team of this name; the first key with it makes one"
    ),
    keys.RevokedKey: lambda _: invalid_field("prefix", "the key is revoked", "Make a new key."),
    budgets.NoSuchBudget: lambda error: invalid_field(
        "budgets",
        f"there is no budget on {error.unit} ({error.window}): it is not bounded",
        "Set a budget with PUT, or leave the unit out.",
    ),
    budgets.LimitTooLarge: lambda error: invalid_field("budgets", str(error), "Add less."),
    budgets.LimitBelowUse: lambda error: invalid_field(
        "budgets",
        f"{error.used} {error.unit} ({error.window}) are spent or reserved already",
        "Set a limit of at least that.",
    ),
    # By the time that these arrive, whatever was reserved has been refunded.
    NotCounted: lambda _: ProblemError(
        problems.OVERLOADED,
        "the server cannot count the key's rate now; nothing was charged",
        retry_after=5,
    ),
    charges.ChargeClosed: lambda _: ProblemError(
        problems.OVERLOADED,
        "the call took longer than the server could hold it; nothing was charged",
        retry_after=1,
    ),
    Overloaded: lambda _: _MODEL_IS_BUSY,
    WorkerDied: lambda _: _MODEL_IS_BUSY,
    NotFinite: lambda _: ProblemError(
        problems.INTERNAL_ERROR,
        "the model's numbers for this call are not finite, as those of a damaged model or of codes "
        "far too large; nothing was charged",
    ),
}
# Operators are to see these in the log.
_FAILURES = frozenset((NotCounted, charges.ChargeClosed, Overloaded, WorkerDied, NotFinite))


def install(app: FastAPI) -> None:
    """Registers the handlers with the application."""
    for kind in _REFUSALS:
        app.exception_handler(kind)(_on_refusal)
    app.exception_handler(Replayed)(_on_replayed)
    app.exception_handler(calls.StillRunning)(_on_still_running)
    app.exception_handler(Unavailable)(_on_unavailable)
    app.exception_handler(OSError)(_on_os_error)
    app.exception_handler(RequestValidationError)(_on_invalid_parameters)
    app.exception_handler(HTTPException)(_on_http_exception)


class UnhandledErrorsMiddleware(Middleware):
    """Answers what no handler knows with `internal-error`; only the log holds the traceback."""

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_noting_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_noting_start)
        except Struck:
            raise  # what becomes of the call is decided on its way to the client
        except Exception as error:
            _log.exception("unhandled error", error=type(error).__name__)
            if started:
                raise
            await _of_unhandled(Request(scope), error)(scope, receive, send)


def _of_unhandled(request: Request, error: BaseException | None) -> Response:
    while error is not None:
        if is_exhaustion(error):
            detail = "the server has no more memory or files to open now; nothing was charged"
            return _respond(request, ProblemError(problems.OVERLOADED, detail, retry_after=5))
        error = error.__cause__ or error.__context__
    problem = Problem.of(problems.INTERNAL_ERROR, "something went wrong inside the server")
    return problem_response(request, problem)


def problem_response(
    request: Request, problem: Problem, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer that carries a problem and the call's id: a document, or a page for people."""
    _PROBLEMS.labels(problem.type.rpartition(":")[2]).inc()
    named = problem.model_copy(update={"request_id": request.state.request_id})
    as_page: ProblemPage | None = getattr(request.state, PROBLEM_PAGE, None)
    if as_page is not None:
        return as_page(request, named, dict(headers or {}))
    return Response(named.model_dump_json(), problem.status, dict(headers or {}), MEDIA_TYPE)


def _respond(request: Request, error: ProblemError) -> Response:
    return problem_response(request, error.problem, error.headers)


async def _on_refusal(request: Request, error: Exception) -> Response:
    kind = next(kind for kind in type(error).mro() if kind in _REFUSALS)
    refusal = _REFUSALS[kind](error)
    if kind in _FAILURES:
        _log.warning("call not done", error=kind.__name__, detail=str(error))
    return _respond(request, refusal)


async def _on_replayed(_request: Request, error: Replayed) -> Response:
    _REPLAYS.inc()
    kept = error.answer
    return Response(kept.body, kept.status, {REPLAYED_HEADER: "true"}, kept.media_type)


async def _on_still_running(request: Request, error: calls.StillRunning) -> Response:
    services: Services = request.app.state.services
    if services.lease.owes(error.charge_id) or services.lease.ailment:
        # Nobody works on it: the database would not take its reservation back.
        return _respond(request, _DATABASE_UNAVAILABLE)
    detail = "this call was sent before and has not been answered yet"
    return _respond(request, ProblemError(problems.CALL_IN_PROGRESS, detail, retry_after=1))


async def _on_unavailable(request: Request, error: Unavailable) -> Response:
    services: Services = request.app.state.services
    services.lease.doubt()
    _log.error("database has failed", error=str(error))
    return _respond(request, _DATABASE_UNAVAILABLE)


async def _on_os_error(request: Request, error: OSError) -> Response:
    if error.errno not in _OF_THE_MACHINE:
        raise error
    _log.error("the machine has run out of something", error=error.strerror)
    detail = "the server's machine has run out of room or files; the call was not answered"
    return _respond(request, ProblemError(problems.OVERLOADED, detail, retry_after=5))


async def _on_invalid_parameters(request: Request, error: RequestValidationError) -> Response:
    errors = [
        FieldError(
            field=".".join(str(part) for part in item["loc"][1:]),
            message=item["msg"],
            remedy="Correct the query parameter.",
        )
        for item in error.errors()
    ]
    return _respond(request, invalid_request(errors))


async def _on_http_exception(request: Request, error: HTTPException) -> Response:
    kinds = {404: problems.NOT_FOUND, 405: problems.METHOD_NOT_ALLOWED}
    kind = kinds.get(error.status_code, problems.MALFORMED_BODY)
    path = root_path(request) + request.url.path[:200]
    detail = f"{request.method} {path}: {error.detail}"
    headers = dict(error.headers or {})
    if kind is problems.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(allowed_methods(request.app.router.routes, request.scope))
    return problem_response(request, Problem.of(kind, detail), headers)
