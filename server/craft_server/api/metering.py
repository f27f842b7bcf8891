"""Reserve, work, settle: how a call is charged, and given back if it fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Concatenate, ParamSpec, TypeVar

import structlog
from sqlalchemy import Connection

from craft_server.api.services import Services
from craft_server.database import Database
from craft_server.ledger import charges
from craft_server.ledger.keys import Caller
from craft_server.problems import ProblemError
from craft_shared.problems import OVERLOADED
from craft_shared.units import Units
from craft_shared.wire import Cost

P = ParamSpec("P")
T = TypeVar("T")

RETRY_AFTER_SECONDS = "10"

_log = structlog.get_logger()


class Reservation:
    """Units that were set aside for a call until it is settled, once."""

    def __init__(self, database: Database, charge_id: int, units: Units) -> None:
        self._database = database
        self._charge_id = charge_id
        self._units = units

    async def settle(self) -> Cost:
        """Charges the call; what it cost and what is left."""
        budgets = await self._database.write(charges.settle, self._charge_id)
        return Cost(charged=self._units, budgets=budgets)

    async def settle_with(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> tuple[T, Cost]:
        """Charges the call and runs `function(connection, ...)`, both or neither."""

        def both(connection: Connection) -> tuple[T, Cost]:
            result = function(connection, *args, **kwargs)
            budgets = charges.settle(connection, self._charge_id)
            return result, Cost(charged=self._units, budgets=budgets)

        return await self._database.write(both)

    async def refund(self) -> None:
        """Gives everything back, unless the call was settled."""
        try:
            await self._database.write(charges.refund, self._charge_id)
        except charges.ChargeClosed:
            _log.warning("a settled call was not delivered", charge=self._charge_id)
        except Exception:
            # What made the call fail matters more, and is on its way to the caller.
            _log.exception("refund failed", charge=self._charge_id)


@asynccontextmanager
async def reservation(
    services: Services, caller: Caller, *, call: str, model: str, units: Units
) -> AsyncIterator[Reservation]:
    """Reserves `units` for the block, which must settle; refunds them if the block raises.

    Raises:
        ProblemError: the engine's worker is dead; nothing was reserved.
        BudgetExhausted: the key's budgets do not cover the call; nothing was reserved.
    """
    if not services.engine.alive:
        raise ProblemError(
            OVERLOADED, "the model is not running", headers={"Retry-After": RETRY_AFTER_SECONDS}
        )
    with services.in_flight.one():
        reserved = Reservation(
            services.database, await _reserve(services.database, caller, call, model, units), units
        )
        try:
            yield reserved
        except BaseException:
            await asyncio.shield(reserved.refund())
            raise


async def _reserve(database: Database, caller: Caller, call: str, model: str, units: Units) -> int:
    reserving = asyncio.ensure_future(
        database.write(charges.reserve, caller.key_id, call=call, model=model, units=units)
    )
    try:
        return await asyncio.shield(reserving)
    except asyncio.CancelledError:
        # The transaction runs on its thread to the end, whatever becomes of the call.
        abandoned = Reservation(database, await reserving, units)
        await asyncio.shield(abandoned.refund())
        raise
