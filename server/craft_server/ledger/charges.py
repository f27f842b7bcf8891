"""Charges: a reservation before the work, then exactly one of settlement or refund.

Every function is one transaction of its caller. What holds under any concurrency and after any
crash: for each budget, spent + reserved <= limit; spent is the sum of what settled lines of its
window hold of it, and reserved the sum of what reserved ones hold. A key's lines are numbered from
1; those that were given back leave gaps.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from craft_server.clock import window_start
from craft_server.ledger.budgets import as_budget, in_order, list_budgets
from craft_server.ledger.keys import Caller
from craft_server.ledger.prices import price, price_of_units
from craft_server.ledger.tables import API_KEYS, BUDGETS, CHARGES, RESERVED, TOTALS
from craft_server.statements import Asked, Result, Statement, run
from craft_shared.units import MEASURES, Measure, Units
from craft_shared.wire import Budget, Cost


@dataclass(frozen=True)
class Work:
    """What a call is charged for."""

    call: str  # the kind of call
    model: str  # the model's name
    revision: str  # the model's
    units: Units  # what it takes
    run: str | None = None  # what the client calls the run that it is part of


@dataclass(frozen=True)
class Allocation:
    """What a charge has set aside of a budget, in the window that began at `start`."""

    budget: int
    start: int
    amount: int
    unit: Measure


@dataclass(frozen=True)
class Reservation:
    """Units set aside."""

    charge_id: int  # of the ledger's line
    key_id: int  # of who pays
    holds: Sequence[Allocation]  # in the order of budgets' ids
    cost: Cost  # what the call will have cost when it is settled


@dataclass(frozen=True)
class Shortfall:
    """One budget that does not cover a call."""

    budget: Budget
    needed: int


class BudgetExhausted(Exception):  # noqa: N818 - the problem type's name
    """The key's budgets do not cover the call. Nothing was reserved."""

    def __init__(self, shortfalls: list[Shortfall]) -> None:
        super().__init__(shortfalls)
        self.shortfalls = shortfalls


class PublisherCannotPay(Exception):  # noqa: N818 - reads as what it is where it is caught
    """Whoever pays for the call in its caller's place cannot. Nothing was reserved."""


class ChargeClosed(Exception):  # noqa: N818 - reads as what it is where it is caught
    """The charge was settled or refunded before."""


class TooManyRunning(Exception):  # noqa: N818 - reads as what it is where it is caught
    """The key has as many calls running as it may. Nothing was reserved."""


_OF_CALLER = sa.or_(
    BUDGETS.c.key_id == sa.bindparam("of_key"), BUDGETS.c.team_id == sa.bindparam("of_team")
)
_LOCK_BUDGETS = Statement(
    sa.select(BUDGETS, price_of_units().label("price"))
    .where(_OF_CALLER)
    # In the order of ids, so that two transactions never wait for each other in a circle.
    .order_by(BUDGETS.c.id)
    .with_for_update(of=BUDGETS)
)


def _hold(
    budget: sa.ColumnElement[int], start: sa.ColumnElement[int], amount: sa.ColumnElement[int]
) -> sa.Update:
    """Sets an amount aside, if it fits; in a window that begins, nothing is used yet."""
    current = BUDGETS.c.window_start >= start
    nothing: sa.ColumnElement[int] = sa.literal_column("0")
    used = sa.case((current, BUDGETS.c.spent + BUDGETS.c.reserved), else_=nothing)
    return (
        sa.update(BUDGETS)
        .where(BUDGETS.c.id == budget, used + amount <= BUDGETS.c.limit)
        .values(
            reserved=sa.case((current, BUDGETS.c.reserved), else_=nothing) + amount,
            spent=sa.case((current, BUDGETS.c.spent), else_=nothing),
            window_start=start,
        )
    )


def _release(
    budget: sa.ColumnElement[int],
    start: sa.ColumnElement[int],
    amount: sa.ColumnElement[int],
    spend: sa.ColumnElement[int],
) -> sa.Update:
    """Spends of what was set aside; of a window that has passed nothing is left to change."""
    return (
        sa.update(BUDGETS)
        .where(BUDGETS.c.id == budget, BUDGETS.c.window_start == start)
        .values(reserved=BUDGETS.c.reserved - amount, spent=BUDGETS.c.spent + spend)
    )


def _of_each_hold(change: Callable[..., sa.Update], *names: str) -> Statement:
    """The change for each of several holds: on PostgreSQL one statement, which they travel in."""
    one = change(*(sa.bindparam(name, type_=sa.BigInteger) for name in names))
    arrays = [sa.bindparam(name, type_=ARRAY(sa.BigInteger)) for name in names]
    columns = [sa.column(name, sa.BigInteger) for name in names]
    holds = sa.func.unnest(*arrays).table_valued(*columns, name="holds").render_derived()
    # Locked in the order of ids, so that two transactions never wait for each other in a circle.
    locked = (
        sa.select(BUDGETS.c.id)
        .where(BUDGETS.c.id == sa.any_(arrays[0]))
        .order_by(BUDGETS.c.id)
        .with_for_update()
        .cte("locked")
    )
    of_all = change(locked.c.id, *(holds.c[name] for name in names[1:]))
    all_at_once = of_all.where(holds.c[names[0]] == locked.c.id)
    return Statement({"sqlite": one, "postgresql": all_at_once}, arrays=True)


_HOLD = _of_each_hold(_hold, "budget", "start", "amount")
_RELEASE = _of_each_hold(_release, "budget", "start", "amount", "spend")
# Until the transaction ends the key's reservations wait for each other here, after its budgets.
_COUNT_LINE = Statement(
    sa.update(TOTALS)
    .where(TOTALS.c.key_id == sa.bindparam("of_key"))
    .values(lines=TOTALS.c.lines + sa.literal_column("1"))
)
_INSERT_CHARGE = Statement(
    sa.insert(CHARGES)
    .values(
        {
            name: sa.bindparam(name)
            for name in (
                *("key_id", "caller_key_id", "at", "call", "run", "model", "revision"),
                *("holder", "holds"),
                *MEASURES,
            )
        }
        | {
            "line": sa.select(TOTALS.c.lines)
            .where(TOTALS.c.key_id == sa.bindparam("of_key"))
            .scalar_subquery(),
            "state": sa.literal_column("'reserved'"),
        }
    )
    .returning(CHARGES.c.id)
)
_TO_CLOSED: dict[str, sa.BindParameter[object]] = {
    "state": sa.bindparam("to_state"),
    "closed_at": sa.bindparam("to_closed_at"),
}
_CLOSING = (
    sa.update(CHARGES)
    .where(
        CHARGES.c.id == sa.bindparam("charge"), CHARGES.c.state == sa.literal_column("'reserved'")
    )
    .returning(CHARGES.c.holds)
)
_CLOSE = Statement(_CLOSING.values(_TO_CLOSED))
_CLOSE_FOR_LESS = Statement(
    _CLOSING.values(
        {**_TO_CLOSED, **{name: sa.bindparam(f"to_{name}") for name in ("holds", *MEASURES)}}
    )
)
_ADD_TO_TOTALS = Statement(
    sa.update(TOTALS)
    .where(TOTALS.c.key_id == sa.bindparam("of_key"))
    .values({measure: TOTALS.c[measure] + sa.bindparam(f"add_{measure}") for measure in MEASURES})
)


def check_concurrency(connection: sa.Connection, caller: Caller) -> None:
    """Raises TooManyRunning if the key makes enough calls that hold a reservation, on all servers.

    Whoever pays for them. It holds until the transaction ends: the key's calls wait for each other
    here.
    """
    most = caller.rates.concurrency
    if most is None:
        return
    # Not FOR UPDATE, for which a line that is written to the key's account would have to wait.
    connection.execute(
        sa.select(API_KEYS.c.id)
        .where(API_KEYS.c.id == caller.key_id)
        .with_for_update(key_share=True)
    )
    count: int = connection.execute(
        sa.select(sa.func.count()).where(CHARGES.c.caller_key_id == caller.key_id, RESERVED)
    ).scalar_one()
    if count >= most:
        raise TooManyRunning(most)


def check_covered(connection: sa.Connection, caller: Caller, units: Units, at: int) -> None:
    """Raises BudgetExhausted unless the key's budgets cover these units now; reserves nothing."""
    budgets = list_budgets(connection, caller.key_id, caller.team_id, at)
    if shortfalls := _shortfalls(budgets, _amounts(units, 0)):
        raise BudgetExhausted(shortfalls)


def reserve(
    connection: sa.Connection,
    payer: Caller,
    work: Work,
    *,
    holder: str,
    at: int,
    caller: Caller | None = None,
) -> Reservation:
    """Sets the work's units and price aside in every budget of the key; writes the ledger's line.

    `caller` is whose call it is, if not the payer's own; `holder` is the server process that does
    the work, whose lease must be alive. If this raises, the transaction must be undone.

    Raises:
        BudgetExhausted: a budget does not cover it.
    """
    units = work.units.model_dump()
    asked = {"of_key": payer.key_id, "of_team": payer.team_id, "model": work.model, **units}
    rows = run(connection, (_LOCK_BUDGETS, asked))[0].rows
    cost_micros = rows[0].price if rows else price(connection, work.model, work.units)
    needed = _amounts(work.units, cost_micros)
    budgets = [as_budget(row, at) for row in rows]
    holds = [
        Allocation(
            row.id, max(row.window_start, window_start(row.window, at)), needed[row.unit], row.unit
        )
        for row in rows
        if needed[row.unit]
    ]
    held_as = [_held(hold, hold.amount) for hold in holds]
    key = {"of_key": payer.key_id}
    line = {
        **key,
        "key_id": payer.key_id,
        "caller_key_id": (caller or payer).key_id,
        "at": at,
        "call": work.call,
        "run": work.run,
        "model": work.model,
        "revision": work.revision,
        "holder": holder,
        "holds": _as_json(held_as),
        **needed,
    }
    held, _, written = run(connection, (_HOLD, held_as), (_COUNT_LINE, key), (_INSERT_CHARGE, line))
    if held.count < len(holds):
        raise BudgetExhausted(_shortfalls(in_order(budgets), needed))
    # What is left does not change when the reservation becomes spending.
    after = [_after(budget, needed[budget.unit]) for budget in budgets]
    cost = Cost(charged=work.units, cost_micros=cost_micros, budgets=in_order(after))
    return Reservation(written.rows[0].id, payer.key_id, holds, cost)


def cost_of_less(
    connection: sa.Connection, reservation: Reservation, model: str, units: Units
) -> Cost:
    """What the call will have cost if it turns out to take fewer units than are reserved."""
    reserved = reservation.cost
    micros = min(price(connection, model, units), reserved.cost_micros)
    before, after = _amounts(reserved.charged, reserved.cost_micros), _amounts(units, micros)
    budgets = [
        _after(budget, after[budget.unit] - before[budget.unit]) for budget in reserved.budgets
    ]
    return Cost(charged=units, cost_micros=micros, budgets=budgets)


def settle(
    connection: sa.Connection,
    reservation: Reservation,
    at: int,
    *along: Asked,
    cost: Cost | None = None,
) -> list[Result]:
    """Turns the reservation into spending.

    The statements `along` travel to the database with this one's. Where less was done, `cost` says
    what (`cost_of_less`), and the rest is refunded. If this raises, the transaction must be undone.

    Returns:
        The results of `along`.

    Raises:
        ChargeClosed: it was settled or refunded before.
    """
    done = cost or reservation.cost
    charged = _amounts(done.charged, done.cost_micros)
    less: dict[str, str | int] = {}
    if cost is not None:
        spent = [_held(hold, charged[hold.unit]) for hold in reservation.holds]
        less = {"to_holds": _as_json(spent), **_prefixed("to_", charged)}
    _close(connection, reservation.charge_id, "settled", at, less)
    _, _, *results = run(
        connection,
        (
            _RELEASE,
            [
                {**_held(hold, hold.amount), "spend": charged[hold.unit]}
                for hold in reservation.holds
            ],
        ),
        (_ADD_TO_TOTALS, {"of_key": reservation.key_id, **_prefixed("add_", charged)}),
        *along,
    )
    return results


def refund(connection: sa.Connection, charge_id: int, at: int) -> None:
    """Gives a reservation back, whoever made it.

    Raises:
        ChargeClosed: it was settled or refunded before.
    """
    holds = json.loads(_close(connection, charge_id, "refunded", at))
    run(connection, (_RELEASE, [{**hold, "spend": 0} for hold in holds]))


def refund_all(connection: sa.Connection, held: sa.ColumnElement[bool], at: int) -> int:
    """Gives back all reservations that meet a condition on `CHARGES`; how many they were.

    One that another transaction is closing just now is left to it.
    """
    rows = connection.execute(
        sa.select(CHARGES.c.id, CHARGES.c.holds)
        .where(RESERVED, held)
        # Not the id alone, in whose order SQLite would rather walk through all lines.
        .order_by(CHARGES.c.id + sa.literal_column("0"))
        .with_for_update(skip_locked=True)
    ).all()
    # Reservations of several keys share a team's budgets, so that one after the other would not
    # lock them in the order of ids.
    budgets = {hold["budget"] for row in rows for hold in json.loads(row.holds)}
    connection.execute(
        sa.select(BUDGETS.c.id)
        .where(BUDGETS.c.id.in_(budgets))
        .order_by(BUDGETS.c.id)
        .with_for_update()
    )
    for row in rows:
        refund(connection, row.id, at)
    return len(rows)


def _shortfalls(budgets: Sequence[Budget], needed: Mapping[str, int]) -> list[Shortfall]:
    return [
        Shortfall(budget, needed[budget.unit])
        for budget in budgets
        if needed[budget.unit] > budget.remaining
    ]


def _after(budget: Budget, amount: int) -> Budget:
    return budget.model_copy(
        update={"spent": budget.spent + amount, "remaining": budget.remaining - amount}
    )


def _amounts(units: Units, cost_micros: int) -> dict[str, int]:
    return {**units.model_dump(), "cost_micros": cost_micros}


def _held(hold: Allocation, amount: int) -> dict[str, int]:
    return {"budget": hold.budget, "start": hold.start, "amount": amount}


def _as_json(holds: Sequence[Mapping[str, int]]) -> str:
    return json.dumps(holds, separators=(",", ":"))


def _close(
    connection: sa.Connection,
    charge_id: int,
    state: str,
    at: int,
    less: Mapping[str, str | int] = types.MappingProxyType({}),
) -> str:
    """Closes the ledger's line, with `less` on it where that is given; what it holds, as JSON."""
    change = {"charge": charge_id, "to_state": state, "to_closed_at": at, **less}
    rows = run(connection, (_CLOSE_FOR_LESS if less else _CLOSE, change))[0].rows
    if not rows:
        raise ChargeClosed(charge_id)
    holds: str = rows[0].holds
    return holds


def _prefixed(prefix: str, amounts: Mapping[str, int]) -> dict[str, int]:
    # A parameter may not be called like the column that it changes.
    return {prefix + name: amount for name, amount in amounts.items()}
