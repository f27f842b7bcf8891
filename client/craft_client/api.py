"""The HTTP clients of API v1: one method a call, typed answers, typed errors, careful retries.

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

It knows how requests are sent; what they are is in `craft_client.operations`, what a failure means
in `craft_client.exchange`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import aclosing, closing
from functools import wraps
from inspect import Parameter, Signature, signature
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from craft_client import operations, reading
from craft_client.answers import AdapterPrediction, Prediction
from craft_client.calls import Call, Operation
from craft_client.connection import (
    COMPRESS_VARIABLE,
    DEFAULT_URL,
    KEY_FILE_VARIABLE,
    KEY_VARIABLE,
    URL_VARIABLE,
    http_options,
)
from craft_client.exceptions import CraftError
from craft_client.exchange import Exchange, Server
from craft_client.network import Route

__all__ = [
    "COMPRESS_VARIABLE",
    "DEFAULT_URL",
    "KEY_FILE_VARIABLE",
    "KEY_VARIABLE",
    "URL_VARIABLE",
    "AdapterPrediction",
    "AsyncClient",
    "Client",
    "Prediction",
]

P = ParamSpec("P")
T = TypeVar("T")


def _sent(operation: Callable[P, Operation[T]]) -> Callable[Concatenate[Client, P], T]:
    """The method of `Client` that does an operation, documented as that is."""

    @wraps(operation)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(operation(*args, **kwargs))

    method.__dict__["__signature__"] = _signature(operation)
    return method


def _awaited(
    operation: Callable[P, Operation[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """The method of `AsyncClient` that does an operation, documented as that is."""

    @wraps(operation)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(operation(*args, **kwargs))

    method.__dict__["__signature__"] = _signature(operation)
    return method


def _signature(operation: Callable[..., Operation[Any]]) -> Signature:
    """What `help` and editors show of the method: what is given, and what comes back."""
    found = signature(operation)
    this = Parameter("self", Parameter.POSITIONAL_ONLY)
    answer = found.return_annotation.removeprefix("Operation[").removesuffix("]")
    return found.replace(parameters=[this, *found.parameters.values()], return_annotation=answer)


class _Connection:
    """What both clients are: a server's address that prints, and that stays itself when copied."""

    _server: Server

    @property
    def base_url(self) -> str:
        """The server's address."""
        return self._server.url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class Client(_Connection):
    """A connection to a craftbox server under one API key.

    Use it as a context manager, or call `close`. It may be shared by threads. `copy.deepcopy` gives
    the client itself, so that scikit-learn can clone estimators that hold one.

    Args:
        base_url: the server's address; the environment's CRAFT_URL, or port 8000 of this machine,
            when None.
        api_key: the key; the environment's CRAFT_API_KEY when None, or else what the file that
            CRAFT_API_KEY_FILE names holds.
        run: what the ledger is to call the run that the calls are part of, printable ASCII.
        compress: whether large answers travel compressed (zstd), which takes processor time on both
            sides and pays on slow networks only; the environment's CRAFT_COMPRESS (1 or 0) when
            None, and no without it. Needs the extra `zstd`.
        timeout: seconds without any byte from the server after which an answer counts as lost.
        transport: where requests go instead of the network, for tests.

    Raises:
        MissingKey: there is no key, or its file cannot be read.
        MissingPackage: answers are to be compressed, and the extra `zstd` is not installed.
        CraftError: the address is not an HTTP URL, the run's name cannot be sent, CRAFT_COMPRESS is
            neither yes nor no, or what the environment says of proxies or certificates cannot be
            used.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        run: str | None = None,
        compress: bool | None = None,
        timeout: float = 300.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        options = http_options(base_url, api_key, run=run, compress=compress, timeout=timeout)
        route = Route.to(options["base_url"])
        self._server = Server(options["base_url"], route.proxy_name)
        self._http = httpx.Client(**options, transport=transport or route.transport())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    models = _sent(operations.models)
    model = _sent(operations.model)
    create_image_set = _sent(operations.create_image_set)
    image_set = _sent(operations.image_set)
    delete_image_set = _sent(operations.delete_image_set)
    upload_images = _sent(operations.upload_images)
    predict = _sent(operations.predict)
    acknowledge = _sent(operations.acknowledge)
    usage = _sent(operations.usage)
    budgets = _sent(operations.budgets)
    receipt = _sent(operations.receipt)
    receipt_keys = _sent(operations.receipt_keys)
    report_run = _sent(operations.report_run)
    report_points = _sent(operations.report_points)
    publish = _sent(operations.publish)
    adapters = _sent(operations.adapters)
    adapter = _sent(operations.adapter)
    adapter_versions = _sent(operations.adapter_versions)
    adapter_settings = _sent(operations.adapter_settings)
    change_adapter = _sent(operations.change_adapter)
    adapter_usage = _sent(operations.adapter_usage)
    retire = _sent(operations.retire)
    restore = _sent(operations.restore)
    adapter_predict = _sent(operations.adapter_predict)

    def _run(self, operation: Operation[T]) -> T:
        try:
            call = next(operation)
            while True:
                try:
                    response = self._send(call)
                except CraftError as error:
                    call = operation.throw(error)
                else:
                    call = operation.send(response)
        except StopIteration as done:
            result: T = done.value
            return result

    def _send(self, call: Call) -> httpx.Response:
        request = self._http.build_request(**call.request())
        exchange = Exchange(self._server, call, request)
        with exchange.whole():
            for attempt in exchange.attempts:
                with attempt:
                    with exchange.attempt(), closing(self._http.send(request, stream=True)) as body:
                        response = exchange.arrived(reading.read(body, call.most_bytes))
                    response = exchange.accepted(response)
        return response


class AsyncClient(_Connection):
    """`Client` for programs with an event loop: the same methods, to be awaited.

    Arguments, answers, retries and exceptions are those of `Client`, in which they are described.
    Use it as an asynchronous context manager, or await `close`. Many calls may be under way at a
    time. Pictures are read and encoded where the call is made, without the event loop's help.

    A call that is cancelled closes its connection; see the module on what it may have cost.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        run: str | None = None,
        compress: bool | None = None,
        timeout: float = 300.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        options = http_options(base_url, api_key, run=run, compress=compress, timeout=timeout)
        route = Route.to(options["base_url"])
        self._server = Server(options["base_url"], route.proxy_name)
        self._http = httpx.AsyncClient(**options, transport=transport or route.async_transport())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    models = _awaited(operations.models)
    model = _awaited(operations.model)
    create_image_set = _awaited(operations.create_image_set)
    image_set = _awaited(operations.image_set)
    delete_image_set = _awaited(operations.delete_image_set)
    upload_images = _awaited(operations.upload_images)
    predict = _awaited(operations.predict)
    acknowledge = _awaited(operations.acknowledge)
    usage = _awaited(operations.usage)
    budgets = _awaited(operations.budgets)
    receipt = _awaited(operations.receipt)
    receipt_keys = _awaited(operations.receipt_keys)
    report_run = _awaited(operations.report_run)
    report_points = _awaited(operations.report_points)
    publish = _awaited(operations.publish)
    adapters = _awaited(operations.adapters)
    adapter = _awaited(operations.adapter)
    adapter_versions = _awaited(operations.adapter_versions)
    adapter_settings = _awaited(operations.adapter_settings)
    change_adapter = _awaited(operations.change_adapter)
    adapter_usage = _awaited(operations.adapter_usage)
    retire = _awaited(operations.retire)
    restore = _awaited(operations.restore)
    adapter_predict = _awaited(operations.adapter_predict)

    async def _run(self, operation: Operation[T]) -> T:
        try:
            call = next(operation)
            while True:
                try:
                    response = await self._send(call)
                except CraftError as error:
                    call = operation.throw(error)
                else:
                    call = operation.send(response)
        except StopIteration as done:
            result: T = done.value
            return result

    async def _send(self, call: Call) -> httpx.Response:
        request = self._http.build_request(**call.request())
        exchange = Exchange(self._server, call, request)
        with exchange.whole():
            async for attempt in exchange.attempts:
                with attempt:
                    with exchange.attempt():
                        async with aclosing(await self._http.send(request, stream=True)) as body:
                            response = exchange.arrived(
                                await reading.read_async(body, call.most_bytes)
                            )
                    response = exchange.accepted(response)
        return response
