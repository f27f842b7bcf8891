"""Turns every exception into problem+json, and keeps what it was from whoever may not know it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from prometheus_client import Counter
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from craft_server import problems
from craft_server.adapters import NoSuchAdapter, NoSuchVersion
from craft_server.api.addresses import allowed_methods
from craft_server.api.idempotency import Replayed, replay
from craft_server.api.services import Services
from craft_server.asked_prompts import PromptLimitReached
from craft_server.database import Unavailable
from craft_server.engine import Overloaded, WorkerDied
from craft_server.exhaustion import is_exhaustion
from craft_server.image_sets import NoSuchImageSet, WrongFirstRow
from craft_server.ledger.calls import AnswerGone, KeyReused, StillRunning
from craft_server.ledger.charges import (
    BudgetExhausted,
    ChargeClosed,
    PublisherCannotPay,
    TooManyRunning,
)
from craft_server.measurements import REGISTRY
from craft_server.problems import ProblemError, database_unavailable
from craft_server.rate_limits import NotCounted, RateLimited
from craft_server.run_reports import NoSuchRun, TooManyPoints
from craft_server.simulate import Struck
from craft_shared.problems import (
    ADAPTER_NOT_FOUND,
    ANSWER_GONE,
    BUDGET_EXHAUSTED,
    CALL_IN_PROGRESS,
    IDEMPOTENCY_KEY_REUSED,
    IMAGE_SET_NOT_FOUND,
    INTERNAL_ERROR,
    MALFORMED_BODY,
    MEDIA_TYPE,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    OVERLOADED,
    PROMPT_LIMIT_REACHED,
    RATE_LIMITED,
    FieldError,
    Problem,
)
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


def install(app: FastAPI) -> None:
    """Registers the handlers with the application."""
    app.exception_handler(ProblemError)(_on_problem)
    app.exception_handler(BudgetExhausted)(_on_budget_exhausted)
    app.exception_handler(PublisherCannotPay)(_on_publisher_cannot_pay)
    app.exception_handler(PromptLimitReached)(_on_prompt_limit_reached)
    app.exception_handler(TooManyRunning)(_on_too_many_running)
    app.exception_handler(RateLimited)(_on_rate_limited)
    app.exception_handler(NotCounted)(_on_not_counted)
    app.exception_handler(ChargeClosed)(_on_charge_closed)
    app.exception_handler(Replayed)(_on_replayed)
    app.exception_handler(KeyReused)(_on_key_reused)
    app.exception_handler(StillRunning)(_on_still_running)
    app.exception_handler(AnswerGone)(_on_answer_gone)
    app.exception_handler(NoSuchImageSet)(_on_no_such_image_set)
    app.exception_handler(NoSuchAdapter)(_on_no_such_adapter)
    app.exception_handler(NoSuchVersion)(_on_no_such_version)
    app.exception_handler(NoSuchRun)(_on_no_such_run)
    app.exception_handler(TooManyPoints)(_on_too_many_points)
    app.exception_handler(Overloaded)(_on_overloaded)
    app.exception_handler(WorkerDied)(_on_overloaded)
    app.exception_handler(Unavailable)(_on_unavailable)
    app.exception_handler(OSError)(_on_os_error)
    app.exception_handler(WrongFirstRow)(_on_wrong_first_row)
    app.exception_handler(RequestValidationError)(_on_invalid_parameters)
    app.exception_handler(HTTPException)(_on_http_exception)


class UnhandledErrorsMiddleware:
    """Answers what no handler knows with `internal-error`; only the log holds the traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
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
            return _respond(request, ProblemError(OVERLOADED, detail, headers={"Retry-After": "5"}))
        error = error.__cause__ or error.__context__
    problem = Problem.of(INTERNAL_ERROR, "something went wrong inside the server")
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
    return Response(
        named.model_dump_json(),
        status_code=problem.status,
        headers=dict(headers or {}),
        media_type=MEDIA_TYPE,
    )


def _respond(request: Request, error: ProblemError) -> Response:
    return problem_response(request, error.problem, error.headers)


async def _on_problem(request: Request, error: ProblemError) -> Response:
    return _respond(request, error)


async def _on_budget_exhausted(request: Request, error: BudgetExhausted) -> Response:
    return _respond(request, problems.budget_exhausted(error.shortfalls))


async def _on_publisher_cannot_pay(request: Request, _error: PublisherCannotPay) -> Response:
    detail = "the adapter's publisher pays for its predictions, and has no budget left for this one"
    return _respond(request, ProblemError(BUDGET_EXHAUSTED, detail))


async def _on_prompt_limit_reached(request: Request, error: PromptLimitReached) -> Response:
    detail = (
        f"{error.used} of {error.limit} different prompts have been asked about these pictures, "
        f"and this call asks {error.new} more"
    )
    return _respond(request, ProblemError(PROMPT_LIMIT_REACHED, detail))


async def _on_too_many_running(request: Request, error: TooManyRunning) -> Response:
    detail = f"{error.args[0]} calls of the key are running, as many as it may have at a time"
    return _respond(request, ProblemError(RATE_LIMITED, detail, headers={"Retry-After": "1"}))


async def _on_rate_limited(request: Request, error: RateLimited) -> Response:
    quota = error.quota
    detail = (
        f"this call needs {error.needed} {quota.name} and {quota.remaining} of {quota.limit} "
        "a minute are left"
    )
    if error.needed > quota.limit:
        # No wait would help, so that none is told.
        return _respond(request, ProblemError(RATE_LIMITED, f"{detail}: ask for less in one call"))
    wait = {"Retry-After": str(max(1, quota.reset_seconds))}
    return _respond(request, ProblemError(RATE_LIMITED, detail, headers=wait))


async def _on_not_counted(request: Request, error: NotCounted) -> Response:
    _log.error("storage of rate limits does not answer", error=str(error))
    detail = "the server cannot count the key's rate now; nothing was charged"
    return _respond(request, ProblemError(OVERLOADED, detail, headers={"Retry-After": "5"}))


async def _on_charge_closed(request: Request, _error: ChargeClosed) -> Response:
    # This server did not renew its lease in time, so that another has given the call back.
    _log.error("call not settled: the server's lease ran out meanwhile")
    detail = "the call took longer than the server could hold it; nothing was charged"
    return _respond(request, ProblemError(OVERLOADED, detail, headers={"Retry-After": "1"}))


async def _on_replayed(_request: Request, error: Replayed) -> Response:
    _REPLAYS.inc()
    return replay(error.answer)


async def _on_key_reused(request: Request, _error: Exception) -> Response:
    detail = "a call with another address or body was made under this Idempotency-Key"
    return _respond(request, ProblemError(IDEMPOTENCY_KEY_REUSED, detail))


async def _on_still_running(request: Request, error: StillRunning) -> Response:
    services: Services = request.app.state.services
    if services.lease.owes(error.charge_id) or services.lease.ailment:
        # Nobody works on it: the database would not take its reservation back.
        return _respond(request, database_unavailable())
    detail = "this call was sent before and has not been answered yet"
    return _respond(request, ProblemError(CALL_IN_PROGRESS, detail, headers={"Retry-After": "1"}))


async def _on_answer_gone(request: Request, error: AnswerGone) -> Response:
    detail = f"the answer to this call cannot be had any more: {error}"
    return _respond(request, ProblemError(ANSWER_GONE, detail))


async def _on_no_such_image_set(request: Request, _error: Exception) -> Response:
    detail = "there is no image set with this id under the key's owner"
    return _respond(request, ProblemError(IMAGE_SET_NOT_FOUND, detail))


async def _on_no_such_adapter(request: Request, _error: Exception) -> Response:
    detail = "there is no adapter of this name and version that the key may use"
    return _respond(request, ProblemError(ADAPTER_NOT_FOUND, detail))


async def _on_no_such_version(request: Request, error: NoSuchVersion) -> Response:
    return _respond(
        request,
        problems.invalid_field(
            f"aliases.{error.alias}",
            f"version {error.version} is not published",
            "Name a version that GET /v1/adapters/{name}/versions lists and that is not retired.",
        ),
    )


async def _on_no_such_run(request: Request, _error: Exception) -> Response:
    detail = "no run of this name was reported under the key's owner"
    return _respond(request, ProblemError(NOT_FOUND, detail))


async def _on_too_many_points(request: Request, _error: Exception) -> Response:
    message = f"of one run at most {POINTS_PER_RUN} points are kept"
    return _respond(
        request, problems.invalid_field("points", message, "Report every tenth generation.")
    )


async def _on_overloaded(request: Request, error: Exception) -> Response:
    # Whatever was reserved has been refunded by now, so that the client may safely try again.
    _log.warning("call not done", error=type(error).__name__)
    detail = "the model cannot take this call now; nothing was charged"
    return _respond(request, ProblemError(OVERLOADED, detail, headers={"Retry-After": "5"}))


async def _on_unavailable(request: Request, error: Unavailable) -> Response:
    services: Services = request.app.state.services
    services.lease.doubt()
    _log.error("database has failed", error=str(error))
    return _respond(request, database_unavailable())


async def _on_os_error(request: Request, error: OSError) -> Response:
    if error.errno not in _OF_THE_MACHINE:
        raise error
    _log.error("the machine has run out of something", error=error.strerror)
    detail = "the server's machine has run out of room or files; the call was not answered"
    return _respond(request, ProblemError(OVERLOADED, detail, headers={"Retry-After": "5"}))


async def _on_wrong_first_row(request: Request, error: WrongFirstRow) -> Response:
    return _respond(
        request,
        problems.invalid_field(
            "first_row",
            f"the image set holds {error.count} pictures, so that the next row is {error.count}",
            "GET the image set for its count, and go on from there.",
        ),
    )


async def _on_invalid_parameters(request: Request, error: RequestValidationError) -> Response:
    errors = [
        FieldError(
            field=".".join(str(part) for part in item["loc"][1:]),
            message=item["msg"],
            remedy="Correct the query parameter.",
        )
        for item in error.errors()
    ]
    return _respond(request, problems.invalid_request(errors))


async def _on_http_exception(request: Request, error: HTTPException) -> Response:
    kinds = {404: NOT_FOUND, 405: METHOD_NOT_ALLOWED}
    kind = kinds.get(error.status_code, MALFORMED_BODY)
    detail = f"{request.method} {request.url.path[:200]}: {error.detail}"
    headers = dict(error.headers or {})
    if kind is METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(allowed_methods(request.app.router.routes, request.scope))
    return problem_response(request, Problem.of(kind, detail), headers)
