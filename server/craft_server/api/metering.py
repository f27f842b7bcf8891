"""Charging: units are reserved before the work, settled with its answer, refunded if it fails.

Which side wins when an answer was computed but the connection is lost: the answer. It is stored in
the same transaction that charges it, before its first byte is sent, so that the client is charged
exactly if the answer can be had: under its idempotency key, for as long as answers are kept. A
server that dies before that transaction has charged nothing, and its reservation ends with its
lease; one that dies after it has charged an answer that waits for the client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

import structlog
from fastapi.responses import Response
from prometheus_client import Counter
from sqlalchemy import Connection

from craft_server.api.idempotency import RECOMPUTED_HEADER, Call, Resolution
from craft_server.api.services import Services
from craft_server.clock import now_ms
from craft_server.database import Unavailable
from craft_server.ledger import account, calls, charges, keys
from craft_server.ledger.calls import AnswerGone, Begun, StoredAnswer
from craft_server.ledger.charges import (
    BudgetExhausted,
    Order,
    PublisherCannotPay,
    Reservation,
    Settlement,
    Work,
)
from craft_server.ledger.keys import Caller
from craft_server.problems import ProblemError
from craft_server.telemetry import REGISTRY
from craft_server.threads import to_the_end
from craft_shared.problems import OVERLOADED
from craft_shared.units import Units
from craft_shared.wire import Cost

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


@dataclass
class Booking:
    """A call that is being worked on."""

    cost: Cost  # what it will have cost its caller
    repeated: bool  # it was made and charged before: it holds a reservation of nothing
    _services: Services
    _work: Work
    _reserved: Reservation
    _resolution: Resolution | None
    _less: Cost | None = None

    async def settle(self, response: Response) -> Response:
        """Charges the call and stores its answer, both or neither."""
        if self.repeated:
            return await self.settle_with(lambda _connection: response)
        await self._services.database.write_together(_settle_all, self._settlement(response))
        return self._settled(response)

    async def settle_with(self, answer: Callable[[Connection], Response]) -> Response:
        """Charges the call and stores what `answer(connection)` did and answers: all or nothing."""

        def all_of_it(connection: Connection) -> Response:
            self._less = None
            response = answer(connection)
            self._close(connection, response)
            return response

        return self._settled(await self._services.database.write(all_of_it))

    def charge_less(self, connection: Connection, units: Units) -> Cost:
        """What the call costs for these units, no more than are reserved, which it then takes.

        For the `answer` of `settle_with`.
        """
        if units != self._work.units:
            self._less = charges.cost_of_less(connection, self._reserved, self._work.model, units)
        return self._less or self.cost

    def _close(self, connection: Connection, response: Response) -> None:
        settlement = self._settlement(response)
        if not self.repeated:
            charges.settle_all(connection, [settlement], now_ms())
            return
        charges.refund(connection, self._reserved.charge_id, now_ms())
        if self._reserved.call is not None and settlement.answer is not None:
            calls.finish_anew(
                connection, self._reserved.call.id, settlement.answer, settlement.resolution
            )

    def _settlement(self, response: Response) -> Settlement:
        resolution = None if self._resolution is None else self._resolution.model_dump_json()
        notify_at = self._services.settings.notify_at
        return Settlement(self._reserved, self._less, _stored(response), resolution, notify_at)

    def _settled(self, response: Response) -> Response:
        if self.repeated:
            _RECOMPUTED.inc()
            response.headers[RECOMPUTED_HEADER] = "true"
        else:
            _SETTLED.inc()
        self._services.provider.worked()
        return response

    async def refund(self, *, given_up: bool = False) -> None:
        """Refunds what is reserved, unless the call was settled.

        Args:
            given_up: by its client, so that it may not be worked on again as if it were nothing.
        """
        charge_id = self._reserved.charge_id
        try:
            refunded = await self._services.database.write(
                _refund, charge_id, self._reserved.call, self.repeated, given_up
            )
            if refunded and not self.repeated:
                _REFUNDED.inc()
        except Exception:
            # What made the call fail matters more, and is on its way to the caller.
            _log.exception("refund failed")
            self._services.lease.give_back_later(charge_id)


@asynccontextmanager
async def booking(
    call: Call,
    work: Work,
    resolution: Resolution | None = None,
    payer_key_id: int | None = None,
) -> AsyncIterator[Booking]:
    """Reserves the work for the block, which must settle; refunds it if the block raises.

    Whatever costs the server something belongs into the block: images are decoded and texts are
    read once they are paid for. A call that was made and charged before, and whose answer is gone,
    is worked on free of charge: on what it was resolved to then, and as often as one call may be.
    It counts as running like any other.

    A call without a resolution cannot be repeated. `payer_key_id` names the key that is charged in
    the caller's place.

    Raises:
        ProblemError: the engine's worker is dead; nothing was reserved.
        BudgetExhausted: the key's budgets do not cover the call; nothing was reserved.
        PublisherCannotPay: those of the payer in its place do not; nothing was reserved.
        TooManyRunning: the key has as many calls running as it may; nothing was reserved.
        AnswerGone: it was made before and cannot be computed again; nothing was reserved.
        Struck: a simulated fault; nothing is reserved any more, or the answer waits for the client.
    """
    services = call.services
    if not services.engine.alive:
        raise ProblemError(OVERLOADED, "the model is not running", retry_after=10)
    if call.made is not None:
        if call.first is None or resolution is None:
            raise AnswerGone("it cannot be made twice")
        call.first.check_again(resolution)
    with services.in_flight.one():
        booked = await _book(call, work, resolution, payer_key_id)
        try:
            await services.provider.reserved(work.units.predictions + work.units.images)
            yield booked
        except BaseException as error:
            given_up = isinstance(error, asyncio.CancelledError)
            await to_the_end(booked.refund(given_up=given_up))
            raise


async def free_of_charge(call: Call, answer: Callable[[Connection], Response]) -> Response:
    """Runs `answer(connection)` for a call that costs nothing, and stores what it answers."""

    def all_of_it(connection: Connection) -> Response:
        response = answer(connection)
        remember(connection, call, response)
        return response

    return await call.services.database.write(all_of_it)


def remember(connection: Connection, call: Call, response: Response) -> None:
    """Stores the answer of a call that cost nothing, if it has an idempotency key."""
    if call.attempt is None or call.made is not None:
        return
    call_id = calls.begin(
        connection,
        call.caller.key_id,
        call.attempt,
        holder=call.services.lease.holder,
        charge_id=None,
        at=now_ms(),
    )
    calls.finish(connection, call_id, _stored(response))


def _refund(
    connection: Connection, charge_id: int, begun: Begun | None, repeated: bool, given_up: bool
) -> bool:
    """Refunds the reservation and forgets the call; whether neither had been done yet.

    In the order in which both are made: another attempt at the call, which holds the budgets and
    finds the record being deleted, would wait for this transaction, and this one for the budgets.
    """
    try:
        charges.refund(connection, charge_id, now_ms())
    except charges.ChargeClosed:
        # The answer is stored, or another server has given the call back.
        return False
    if begun is None:
        return True
    if not repeated:
        calls.abandon(connection, begun.id)
    elif not given_up:
        calls.abandon_anew(connection, begun.id)
    return True


def _settle_all(connection: Connection, settlements: Sequence[Settlement]) -> list[None]:
    charges.settle_all(connection, settlements, now_ms(), last=True)
    return [None] * len(settlements)


def _stored(response: Response) -> StoredAnswer:
    return StoredAnswer(response.status_code, response.media_type or "", bytes(response.body))


async def _book(
    call: Call, work: Work, resolution: Resolution | None, payer_key_id: int | None
) -> Booking:
    """`_reserve` in a transaction of its own, whose reservation is refunded if nobody waits."""
    booking_it = asyncio.ensure_future(_reserved(call, work, resolution, payer_key_id))
    try:
        return await asyncio.shield(booking_it)
    except asyncio.CancelledError:
        # The transaction runs on its thread to the end, whatever becomes of the call.
        await to_the_end(_refund_once_booked(booking_it))
        raise


@dataclass
class _Asking:
    """A call that is being booked."""

    call: Call
    work: Work
    payer_key_id: int | None
    lock: bool = False  # its budgets are contended
    reserved: Reservation | None = None  # perhaps, until its transaction has ended


async def _reserved(
    call: Call, work: Work, resolution: Resolution | None, payer_key_id: int | None
) -> Booking:
    services = call.services
    repeated = call.made is not None
    if repeated:
        work = replace(work, units=Units(), run=None)
    asking = _Asking(call, work, None if repeated else payer_key_id)
    reserving = partial(services.database.write_together, _reserve_all, asking, deferred=True)
    try:
        try:
            reserved, cost = await reserving()
        except charges.Contended:
            asking.lock = True
            reserved, cost = await reserving()
    except Unavailable as error:
        # Its transaction may have ended before the connection did.
        if error.disconnected and asking.reserved is not None:
            services.lease.give_back_later(asking.reserved.charge_id)
        raise
    return Booking(cost, repeated, services, work, reserved, resolution)


async def _refund_once_booked(booking_it: asyncio.Future[Booking]) -> None:
    try:
        booked = await booking_it
    except Exception:
        return  # it was refused, and nobody waits for that
    await booked.refund(given_up=True)


def _reserve_all(
    connection: Connection, asking: Sequence[_Asking]
) -> list[tuple[Reservation, Cost] | Exception]:
    at, holder = now_ms(), asking[0].call.services.lease.holder
    orders = [_order(connection, one, at) for one in asking]
    possible = [order for order in orders if order is not None]
    reserved = iter(
        charges.reserve_all(
            connection,
            possible,
            holder=holder,
            at=at,
            lock=any(one.lock for one in asking),
            last=all(one.call.made is None and one.payer_key_id is None for one in asking),
        )
    )
    outcomes: list[tuple[Reservation, Cost] | Exception] = []
    for one, order in zip(asking, orders, strict=True):
        outcome = PublisherCannotPay() if order is None else next(reserved)
        if isinstance(outcome, Reservation):
            one.reserved = outcome
            outcomes.append(_begun(connection, one, outcome, at))
        elif isinstance(outcome, BudgetExhausted) and one.payer_key_id is not None:
            outcomes.append(PublisherCannotPay())
        else:
            outcomes.append(outcome)
    return outcomes


def _order(connection: Connection, asking: _Asking, at: int) -> Order | None:
    """What to reserve; None where who should pay is not there any more."""
    call, work = asking.call, asking.work
    payer: Caller | None = call.caller
    if asking.payer_key_id is not None:
        payer = keys.payer(connection, asking.payer_key_id, at)
    if payer is None:
        return None
    attempt = call.attempt if call.made is None else None
    # For whom somebody else's key calls, and in which run, is nothing to who pays.
    user = call.user if call.made is None and asking.payer_key_id is None else None
    if payer.owner != call.caller.owner:
        work = replace(work, run=None)
    return Order(work, call.caller, payer, attempt, user)


def _begun(
    connection: Connection, asking: _Asking, reserved: Reservation, at: int
) -> tuple[Reservation, Cost]:
    """The reservation with its call's record, and what the call will have cost its caller."""
    call = asking.call
    user = None if call.user is None else call.user.holder
    if call.made is not None:
        record = call.made.record
        calls.begin_anew(connection, record.id)
        cost = account.cost_of(connection, call.caller, record.charge_id, at, user)
        return replace(reserved, call=Begun(record.id, repeatable=True)), cost
    if asking.payer_key_id is not None:
        # Nothing of the payer's budgets is shown.
        return reserved, account.cost_of(connection, call.caller, None, at, user)
    return reserved, reserved.cost
