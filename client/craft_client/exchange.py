"""One call over all its attempts: what a failure means, and whether the call is sent again.

Every POST carries an `Idempotency-Key` of its own, which stays the same when the call is sent
again: the server does and charges a call once, however often it arrives, and gives the same answer
each time. So every call may be sent again, and is, byte for byte:

- when no connection could be made, or it broke before the answer was there;
- when the server asks for it: still at work on the call (409), rate limit reached (429) or
  overloaded (503), each after its Retry-After. Without Retry-After no wait would help;
- when the server failed (500), for a short while, since what failed may fail again;
- when a gateway answers in the server's place (429, 500, 502, 503, 504 or 529 without a problem
  document), after its Retry-After or, where it names none, stamina's waits. What a gateway says
  of a call says nothing of whether the server has done it.

Waits between attempts are stamina's or the server's. Patience counts from a call's first failure;
when it is over, the last failure is raised. An exhausted budget (402) is never tried again.

A call that is cut short, by Ctrl-C or as a cancelled task, may have been charged: the exception has
a note with the idempotency key under which the same call fetches the answer without a new charge.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import stamina

from craft_client.calls import IDEMPOTENCY_HEADER, Call, error_of, request_id
from craft_client.exceptions import (
    AnswerLost,
    CallInProgress,
    ConnectionFailed,
    CraftError,
    GatewayFailed,
    InternalError,
    NotFound,
    Overloaded,
    ProtocolError,
    RateLimited,
    RequestTimeout,
)
from craft_client.network import CA_FILE_VARIABLE, URL_VARIABLE
from craft_shared import problems
from craft_shared.printing import printable

_log = logging.getLogger(__name__)

_UNREACHED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
_PROXY_VARIABLES = (
    "HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names it; what NO_PROXY names is reached without one."
)

# Seconds. A server that was never reached is probably not there; one that was is worth a wait. A
# rate limit of a sliding minute may need two of them until a call as large as the limit fits; a
# call that a dead server was at work on runs, to its successor, until the dead one's lease ends. A
# server that failed once may have stumbled; one that goes on failing at a call will not do it.
FIRST_PATIENCE = 2.0
SHORT_PATIENCE = 15.0
PATIENCE = 60.0
LONG_PATIENCE = 180.0


@dataclass
class Server:
    """A server's addresses, and whether it has ever been reached."""

    url: str
    proxy: str | None = None  # of what stands in between
    reached: bool = False


class Exchange:
    """One call's attempts, as `attempts` gives them.

    Each is made within `attempt`, which gives failures their names, and ends in `accepted`.
    """

    def __init__(self, server: Server, call: Call, request: httpx.Request) -> None:
        self._server = server
        self._request = request
        self._lost: AnswerLost | GatewayFailed | None = None
        self._began = time.perf_counter()
        self.attempts = stamina.retry_context(
            on=_Patience(server) if call.again else (),
            attempts=None,
            timeout=None,
            wait_initial=0.2,
            wait_jitter=0.2,
        )

    @contextmanager
    def whole(self) -> Iterator[None]:
        """All attempts; where they are cut short, the exception names the key to continue with."""
        try:
            yield
        except BaseException as error:
            key = self._request.headers.get(IDEMPOTENCY_HEADER)
            # Ctrl-C, or a cancelled task: no failure of the call, which may have been charged.
            if key and not isinstance(error, Exception):
                error.add_note(
                    f"The server may have done {self._request.method} "
                    f"{self._request.url.path}. The same call under the idempotency key {key} "
                    "is answered as it was, and is not charged again."
                )
            raise

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """One attempt, in which `arrived` is given the answer.

        Raises:
            ConnectionFailed: no connection was made, and none before.
            AnswerLost: it broke, now or in an earlier attempt that the server may have done.
            ProtocolError: the answer cannot be decoded.
        """
        self._began = time.perf_counter()
        try:
            yield
        except CraftError as error:
            self._log(error.message)
            raise
        except (httpx.TransportError, httpx.DecodingError) as error:
            failure = self._named(error)
            self._log(failure.message)
            if isinstance(failure, AnswerLost):
                self._lost = failure
            elif isinstance(failure, ConnectionFailed) and self._lost is not None:
                # The server has not seen this attempt, but perhaps the one before.
                raise self._lost from error
            raise failure from error

    def arrived(self, response: httpx.Response) -> httpx.Response:
        """Notes an answer that was read whole, and gives it."""
        self._server.reached = True
        self._log(f"{response.status_code}, {len(response.content):,} bytes")
        return response

    def accepted(self, response: httpx.Response) -> httpx.Response:
        """The answer, if it is a success; otherwise raises `craft_client.calls.error_of` it."""
        if response.is_success:
            return response
        refusal = error_of(response)
        if isinstance(refusal, GatewayFailed):
            self._lost = refusal
        if self._request.method == "DELETE" and self._lost and isinstance(refusal, NotFound):
            return response  # The attempt whose answer was lost has deleted it.
        raise refusal

    def _log(self, outcome: str) -> None:
        """A line on an attempt, for whoever debugs: neither keys nor bodies."""
        _log.debug(
            "%s %s: %s (%.0f ms, request %s)",
            self._request.method,
            self._request.url.raw_path.decode(),
            printable(outcome),
            1000 * (time.perf_counter() - self._began),
            request_id(self._request),
        )

    def _named(self, error: httpx.TransportError | httpx.DecodingError) -> CraftError:
        """What httpx raises, in the client's terms."""
        url = self._server.url
        if isinstance(error, _UNREACHED):
            return _unreachable(self._server, error)
        if isinstance(error, httpx.DecodingError):
            return ProtocolError(f"{url} sent an answer that cannot be decoded: {_words(error)}.")
        self._server.reached = True
        call = f"{self._request.method} {self._request.url.path}"
        names = [f"request {request_id(self._request)}"]
        if key := self._request.headers.get(IDEMPOTENCY_HEADER):
            names.append(f"idempotency key {key}")
        return AnswerLost(
            f"The connection to the craftbox server at {url} broke before {call} "
            f"was answered: {_words(error)}.",
            remedy="The server may have done the call: 'craft usage' shows what was charged. "
            f"({', '.join(names)})",
        )


class _Patience:
    """How long one call is sent again: stamina's hook, which is given each failure.

    It says whether to try again after stamina's wait, or how many seconds to wait instead.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._first_failure: float | None = None

    def __call__(self, error: Exception) -> bool | float:
        now = time.monotonic()
        if self._first_failure is None:
            self._first_failure = now
        waited = now - self._first_failure
        if isinstance(error, CallInProgress | RateLimited | Overloaded):
            wait = error.retry_after
            patience = PATIENCE if isinstance(error, Overloaded) else LONG_PATIENCE
            if wait is None or waited + wait > patience:
                return False
            return wait or True  # A server that names no time at all is not to be hammered.
        if isinstance(error, GatewayFailed):
            wait = error.retry_after or 0.0
            patience = LONG_PATIENCE if error.status == problems.RATE_LIMITED.status else PATIENCE
            return waited + wait < patience and (wait or True)
        if isinstance(error, InternalError | RequestTimeout):
            return waited < SHORT_PATIENCE
        patience = PATIENCE if self._server.reached else FIRST_PATIENCE
        return isinstance(error, ConnectionFailed) and waited < patience


def _unreachable(server: Server, error: httpx.TransportError) -> ConnectionFailed:
    """Why the server has seen nothing, by what httpx says of it."""
    url, proxy, words = server.url, server.proxy, _words(error)
    failure = _tls_failure(error)
    if isinstance(failure, ssl.SSLCertVerificationError):
        return ConnectionFailed(
            f"The certificate of {url} cannot be trusted: {failure.verify_message}.",
            remedy=f"If an authority of your own has signed it, let {CA_FILE_VARIABLE} name the "
            "authority's certificate (PEM). Otherwise somebody else may be answering.",
        )
    if failure is not None:
        return ConnectionFailed(
            f"No encrypted connection comes about with {url}: {words}.",
            remedy="If the server speaks plain HTTP, its address begins with http://.",
        )
    if isinstance(error, httpx.ProxyError):
        return ConnectionFailed(
            f"The proxy at {proxy} does not connect to {url}: {words}.",
            remedy=f"{_PROXY_VARIABLES} A proxy's user and password stand in its address.",
        )
    if proxy is not None:
        return ConnectionFailed(
            f"Cannot connect to the proxy at {proxy}, through which {url} is to be reached: "
            f"{words}.",
            remedy=f"Is the proxy running? {_PROXY_VARIABLES}",
        )
    return ConnectionFailed(
        f"Cannot connect to the craftbox server at {url}: {words}.",
        remedy="Is craft-server running there? If it runs elsewhere, name its address "
        f"with --url or {URL_VARIABLE}.",
    )


def _tls_failure(error: BaseException | None) -> ssl.SSLError | None:
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error


def _words(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
