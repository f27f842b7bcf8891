"""Charging: units are reserved before the work, settled with its answer, given back if it fails.

Which side wins when an answer was computed but the connection is lost: the answer. It is stored in
the same transaction that charges it, before its first byte is sent, so that the client is charged
exactly if the answer can be had: under its idempotency key, for as long as answers are kept. A
server that dies before that transaction has charged nothing, and its reservation ends with its
lease; one that dies after it has charged an answer that waits for the client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

import structlog
from fastapi.responses import Response
from prometheus_client import Counter
from sqlalchemy import Connection

from craft_server.api.idempotency import RECOMPUTED_HEADER, Call
from craft_server.api.services import Services
from craft_server.asked_prompts import Asking
from craft_server.clock import now_ms
from craft_server.database import Unavailable
from craft_server.ledger import account, calls, charges, keys
from craft_server.ledger.calls import StoredAnswer
from craft_server.ledger.charges import BudgetExhausted, PublisherCannotPay, Reservation, Work
from craft_server.ledger.keys import Caller
from craft_server.measurements import REGISTRY
from craft_server.problems import ProblemError
from craft_shared.problems import OVERLOADED
from craft_shared.tracing import span
from craft_shared.wire import Cost

P = ParamSpec("P")
T = TypeVar("T")

RETRY_AFTER_SECONDS = "10"

_SETTLED = Counter(
    "craft_charges_settled_total", "Charged calls that were answered.", registry=REGISTRY
)
_REFUNDED = Counter(
    "craft_charges_refunded_total",
    "Charged calls that failed or were given up, and were given back.",
    registry=REGISTRY,
)
_RECOMPUTED = Counter(
    "craft_idempotent_recomputations_total",
    "Calls that were charged before, and whose answers had to be computed anew, free of charge.",
    registry=REGISTRY,
)

_log = structlog.get_logger()


class Booking:
    """A call that is being worked on.

    Attributes:
        cost: what it will have cost its caller.
    """

    def __init__(
        self, services: Services, reserved: Reservation | None, call_id: int | None, cost: Cost
    ) -> None:
        self.cost = cost
        self._services = services
        self._reserved = reserved
        self._call_id = call_id

    @property
    def repeated(self) -> bool:
        """Whether the call was made and charged before."""
        return self._reserved is None

    async def settle(self, response: Response) -> Response:
        """Charges the call and stores its answer, both or neither."""
        return await self.settle_with(lambda _: response, _nothing)

    async def settle_with(
        self,
        build: Callable[[T], Response],
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Response:
        """Runs `function(connection, ...)`, charges the call, and stores what `build` answers.

        All of it or nothing.
        """

        def all_of_it(connection: Connection) -> Response:
            response = build(function(connection, *args, **kwargs))
            finishing = (
                [] if self._call_id is None else calls.finishing(self._call_id, _stored(response))
            )
            if self._reserved is not None:
                finished = charges.settle(connection, self._reserved, now_ms(), *finishing)
                if finishing:
                    calls.check_finished(finished)
            return response

        with span("ledger.settle"):
            response = await self._services.database.write(all_of_it)
        if self._reserved is None:
            _RECOMPUTED.inc()
            response.headers[RECOMPUTED_HEADER] = "true"
        else:
            _SETTLED.inc()
        self._services.provider.worked()
        return response

    async def give_back(self) -> None:
        """Gives everything back, unless the call was settled."""
        if self._reserved is None:
            return
        charge_id = self._reserved.charge_id
        try:
            with span("ledger.refund"):
                refunded = await self._services.database.write(_refund, charge_id, self._call_id)
            if refunded:
                _REFUNDED.inc()
        except Exception:
            # What made the call fail matters more, and is on its way to the caller.
            _log.exception("refund failed")
            self.owe()

    def owe(self) -> None:
        """Leaves what may be reserved for the lease to give back, once the database lets it."""
        if self._reserved is not None:
            self._services.lease.give_back_later(self._reserved.charge_id)


@asynccontextmanager
async def booking(
    services: Services,
    caller: Caller,
    call: Call,
    work: Work,
    payer_key_id: int | None = None,
    *,
    asking: Asking | None = None,
) -> AsyncIterator[Booking]:
    """Reserves the work for the block, which must settle; gives it back if the block raises.

    A call that was made and charged before, and whose answer is gone, is worked on free of charge.
    `payer_key_id` is of the key that is charged in the caller's place. What is `asking` is noted
    with the reservation, both or neither.

    Raises:
        ProblemError: the engine's worker is dead; nothing was reserved.
        BudgetExhausted: the key's budgets do not cover the call; nothing was reserved.
        PublisherCannotPay: those of the payer in its place do not; nothing was reserved.
        TooManyRunning: the key has as many calls running as it may; nothing was reserved.
        Struck: a simulated fault; nothing is reserved any more, or the answer waits for the client.
        PromptLimitReached: the key may not ask so many prompts; nothing was reserved.
    """
    if not services.engine.alive:
        raise ProblemError(
            OVERLOADED, "the model is not running", headers={"Retry-After": RETRY_AFTER_SECONDS}
        )
    with services.in_flight.one():
        with span("ledger.reserve"):
            booked = await _book(services, caller, call, work, payer_key_id, asking)
        try:
            await services.provider.reserved(work.units.predictions + work.units.images)
            yield booked
        except BaseException:
            await asyncio.shield(booked.give_back())
            raise


async def free_of_charge(
    services: Services,
    caller: Caller,
    call: Call,
    build: Callable[[T], Response],
    function: Callable[Concatenate[Connection, P], T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> Response:
    """Runs `function(connection, ...)` for a call that costs nothing, and stores its answer."""

    def all_of_it(connection: Connection) -> Response:
        response = build(function(connection, *args, **kwargs))
        remember(connection, services, caller, call, response)
        return response

    return await services.database.write(all_of_it)


def remember(
    connection: Connection, services: Services, caller: Caller, call: Call, response: Response
) -> None:
    """Stores the answer of a call that cost nothing, if it has an idempotency key."""
    if call.attempt is None or call.made is not None:
        return
    call_id = calls.begin(
        connection,
        caller.key_id,
        call.attempt,
        holder=services.lease.holder,
        charge_id=None,
        at=now_ms(),
    )
    calls.finish(connection, call_id, _stored(response))


def _refund(connection: Connection, charge_id: int, call_id: int | None) -> bool:
    """Gives the reservation back and forgets the call; whether it had been neither yet.

    In the order in which both are made: another attempt at the call, which holds the budgets and
    finds the record being deleted, would wait for this transaction, and this one for the budgets.
    """
    try:
        charges.refund(connection, charge_id, now_ms())
    except charges.ChargeClosed:
        # The answer is stored, or another server has given the call back.
        return False
    if call_id is not None:
        calls.abandon(connection, call_id)
    return True


def _nothing(_connection: Connection) -> None:
    pass


def _stored(response: Response) -> StoredAnswer:
    return StoredAnswer(response.status_code, response.media_type or "", bytes(response.body))


async def _book(
    services: Services,
    caller: Caller,
    call: Call,
    work: Work,
    payer_key_id: int | None,
    asking: Asking | None,
) -> Booking:
    booking_it = asyncio.ensure_future(
        _reserved(services, caller, call, work, payer_key_id, asking)
    )
    try:
        return await asyncio.shield(booking_it)
    except asyncio.CancelledError:
        # The transaction runs on its thread to the end, whatever becomes of the call.
        await asyncio.shield((await booking_it).give_back())
        raise


async def _reserved(services: Services, *args: Any) -> Booking:
    made: list[Booking] = []

    def reserve(connection: Connection) -> Booking:
        made.append(_reserve(connection, services, *args))
        return made[-1]

    try:
        return await services.database.write_deferred(reserve)
    except Unavailable as error:
        # Its transaction may have ended before the connection did.
        if error.disconnected and made:
            made[-1].owe()
        raise


def _reserve(
    connection: Connection,
    services: Services,
    caller: Caller,
    call: Call,
    work: Work,
    payer_key_id: int | None,
    asking: Asking | None,
) -> Booking:
    at, holder = now_ms(), services.lease.holder
    if call.made is not None:
        return Booking(
            services, None, None, account.cost_of(connection, caller, call.made.charge_id, at)
        )
    charges.check_concurrency(connection, caller)
    if asking is not None:
        asking.note(connection)
    if payer_key_id is None:
        reserved = charges.reserve(connection, caller, work, holder=holder, at=at)
        cost = reserved.cost
    else:
        reserved = _reserve_of_payer(connection, payer_key_id, work, holder, at)
        cost = account.cost_of(connection, caller, None, at)
    call_id = None
    if call.attempt is not None:
        call_id = calls.begin(
            connection,
            caller.key_id,
            call.attempt,
            holder=holder,
            charge_id=reserved.charge_id,
            at=at,
        )
    return Booking(services, reserved, call_id, cost)


def _reserve_of_payer(
    connection: Connection, payer_key_id: int, work: Work, holder: str, at: int
) -> Reservation:
    """Like `charges.reserve`, but tells the caller nothing of the payer's budgets."""
    payer = keys.payer(connection, payer_key_id, at)
    if payer is None:
        raise PublisherCannotPay
    try:
        return charges.reserve(connection, payer, work, holder=holder, at=at)
    except BudgetExhausted as error:
        raise PublisherCannotPay from error
