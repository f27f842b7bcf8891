"""Charges: a reservation before the work, then exactly one of settlement or refund.

Every function is one transaction of its caller. What holds under any concurrency and after any
crash: for each budget, spent + reserved <= limit; spent is the sum of what settled lines of its
window hold of it, and reserved the sum of what reserved ones hold. A key's lines are numbered from
1; those that were refunded leave gaps.

Calls that are reserved, or settled, at the same time share a transaction (`craft_server.together`).
Whatever a transaction locks, it locks in one order, so that no two wait for each other in a circle:
keys, lines that it closes, budgets, totals, calls, sums of stored bytes; of each kind by id.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from craft_server.clock import window_start
from craft_server.ledger import calls, notices
from craft_server.ledger.budgets import as_budget, in_order, list_budgets
from craft_server.ledger.keys import Caller
from craft_server.ledger.prices import price, prices_of
from craft_server.ledger.tables import API_KEYS, BUDGETS, CHARGES, RESERVED, TOTALS
from craft_server.ledger.users import EndUser
from craft_server.statements import Asked, Statement, run
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
    adapter: str | None = None  # the version that predicts, OWNER/NAME@VERSION


@dataclass(frozen=True)
class Allocation:
    """What a charge has set aside of a budget, in the window that began at `start`."""

    budget: int
    start: int
    amount: int
    unit: Measure


@dataclass(frozen=True)
class Order:
    """A call that asks for a reservation."""

    work: Work
    caller: Caller  # whose call it is
    payer: Caller  # whose budgets cover it
    attempt: calls.Attempt | None = None
    user: EndUser | None = None  # of the payer, for whom it makes the call

    @property
    def holders(self) -> tuple[int, int | None, int | None]:
        """Whose budgets cover it: the key's, the team's, the end user's."""
        user = None if self.user is None else self.user.holder
        return self.payer.key_id, self.payer.team_id, user


@dataclass(frozen=True)
class Reservation:
    """Units set aside."""

    charge_id: int  # of the ledger's line
    key_id: int  # of who pays
    holds: Sequence[Allocation]  # in the order of budgets' ids
    cost: Cost  # what the call will have cost when it is settled
    call: calls.Begun | None = None  # its record, where it has an idempotency key


@dataclass(frozen=True)
class Settlement:
    """What becomes of a reservation whose work is done."""

    reservation: Reservation
    cost: Cost | None = None  # of less than is reserved (`cost_of_less`); the rest is refunded
    answer: calls.StoredAnswer | None = None  # to be stored under the idempotency key
    resolution: str | None = None  # what the call was resolved to
    notify_at: Sequence[int] = ()  # percents of budgets of which a notice is to be written


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


class Contended(Exception):  # noqa: N818 - reads as what it is where it is caught
    """Others took what was there when it was looked at. Nothing was reserved; look and lock."""


def _bounding(key_id: Any, team_id: Any, user: Any) -> sa.Select[Any]:
    shared = sa.or_(BUDGETS.c.team_id == team_id, BUDGETS.c.team_id == user)
    return (
        sa.select(BUDGETS).where(sa.or_(BUDGETS.c.key_id == key_id, shared)).order_by(BUDGETS.c.id)
    )


_HOLDERS = ("of_key", "of_team", "of_user")


def _of_each_payer(locking: Callable[[sa.Select[Any]], sa.Select[Any]]) -> Statement:
    each = (sa.any_(sa.bindparam(name, type_=ARRAY(sa.BigInteger))) for name in _HOLDERS)
    of_one = _bounding(*(sa.bindparam(name) for name in _HOLDERS))
    of_all = locking(_bounding(*each))
    return Statement({"sqlite": of_one, "postgresql": of_all}, arrays=True)


_READ_BUDGETS = _of_each_payer(lambda budgets: budgets)
_LOCK_BUDGETS = _of_each_payer(lambda budgets: budgets.with_for_update())


def _hold(
    budget: sa.ColumnElement[int], start: sa.ColumnElement[int], amount: sa.ColumnElement[int]
) -> sa.Update:
    """Sets an amount aside; in a window that begins, nothing is used yet.

    The table's constraints refuse what does not fit, and a window that has passed.
    """
    current = BUDGETS.c.window_start == start
    passed = BUDGETS.c.window_start > start
    return (
        sa.update(BUDGETS)
        .where(BUDGETS.c.id == budget)
        .values(
            reserved=sa.case(
                (current, BUDGETS.c.reserved + amount),
                (passed, sa.literal_column("-1")),
                else_=amount,
            ),
            spent=sa.case((current, BUDGETS.c.spent), else_=sa.literal_column("0")),
            window_start=start,
        )
        .returning(BUDGETS)
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
_COUNT_LINES = Statement(
    sa.update(TOTALS)
    .where(TOTALS.c.key_id == sa.bindparam("of_key"))
    .values(lines=TOTALS.c.lines + sa.bindparam("add_lines", type_=sa.BigInteger))
)
# The number of a line that was counted just now, and after which so many more were.
_LINE = (
    sa.select(TOTALS.c.lines - sa.bindparam("more", type_=sa.BigInteger))
    .where(TOTALS.c.key_id == sa.bindparam("of_key"))
    .scalar_subquery()
)
_INSERT_CHARGE = Statement(
    sa.insert(CHARGES)
    .values(
        {
            name: sa.bindparam(name)
            for name in (
                *("key_id", "caller_key_id", "at", "call", "run", "end_user"),
                *("model", "revision", "adapter", "holder", "holds"),
                *MEASURES,
            )
        }
        | {"line": _LINE, "state": sa.literal_column("'reserved'")}
    )
    .returning(CHARGES.c.id)
)
_BEGIN_CALL = calls.beginning(
    sa.select(CHARGES.c.id)
    .where(CHARGES.c.key_id == sa.bindparam("of_key"), CHARGES.c.line == _LINE)
    .scalar_subquery()
)
# What is closed already becomes what the table's constraint on states refuses.
_RESERVED = CHARGES.c.state == sa.literal_column("'reserved'")
_CLOSED: dict[str, Any] = {
    "state": sa.case((_RESERVED, sa.bindparam("to_state")), else_=sa.literal_column("'closed'")),
    "closed_at": sa.bindparam("to_closed_at"),
}
_CHARGED_LESS: dict[str, Any] = {name: sa.bindparam(f"to_{name}") for name in ("holds", *MEASURES)}
_CLOSE, _CLOSE_FOR_LESS = (
    Statement(
        sa.update(CHARGES)
        .where(CHARGES.c.id == sa.bindparam("charge"))
        .values(values)
        .returning(CHARGES.c.holds)
    )
    for values in (_CLOSED, _CLOSED | _CHARGED_LESS)
)
_ADD_TO_TOTALS = Statement(
    sa.update(TOTALS)
    .where(TOTALS.c.key_id == sa.bindparam("of_key"))
    .values({measure: TOTALS.c[measure] + sa.bindparam(f"add_{measure}") for measure in MEASURES})
)


def count_running(connection: sa.Connection, key_id: int) -> int:
    """How many calls of the key hold a reservation, on all servers, whoever pays for them.

    It holds until the transaction ends: the key's calls wait for each other here.
    """
    # Not FOR UPDATE, for which a line that is written to the key's account would have to wait.
    connection.execute(
        sa.select(API_KEYS.c.id).where(API_KEYS.c.id == key_id).with_for_update(key_share=True)
    )
    count: int = connection.execute(
        sa.select(sa.func.count()).where(CHARGES.c.caller_key_id == key_id, RESERVED)
    ).scalar_one()
    return count


def check_covered(
    connection: sa.Connection, caller: Caller, user: EndUser | None, units: Units, at: int
) -> None:
    """Raises BudgetExhausted unless the budgets cover these units now; reserves nothing."""
    holder = None if user is None else user.holder
    budgets = list_budgets(connection, caller.key_id, caller.team_id, at, holder)
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
    """Like `reserve_all` for one call; `caller` is whose call it is, if not the payer's own.

    Raises:
        BudgetExhausted: a budget does not cover it.
        TooManyRunning: the caller has as many calls running as it may.
    """
    order = Order(work, caller or payer, payer)
    (reserved,) = reserve_all(connection, [order], holder=holder, at=at, lock=True)
    if isinstance(reserved, Exception):
        raise reserved
    return reserved


def reserve_all(
    connection: sa.Connection,
    orders: Sequence[Order],
    *,
    holder: str,
    at: int,
    lock: bool,
    last: bool = False,
) -> list[Reservation | BudgetExhausted | TooManyRunning]:
    """Sets each order's units and price aside in every budget of who pays; writes its line.

    Each order finds what those before it have left, and one that is refused takes nothing. `holder`
    is the server process that does the work, whose lease must be alive. Unless it is to `lock` the
    budgets before it looks at them, the constraints on them say whether they have changed until it
    takes of them, and nobody waits for the way there and back. The transaction is committed with
    the `last` statements. If this raises, it must be undone.

    Raises:
        Contended: budgets were not locked, and others have taken of them.
        StillRunning: another attempt at one of the calls was faster.
    """
    limited = {
        order.caller.key_id for order in orders if order.caller.rates.concurrency is not None
    }
    running = {key_id: count_running(connection, key_id) for key_id in sorted(limited)}
    payers = [
        dict(zip(_HOLDERS, holders, strict=True)) for holders in {one.holders for one in orders}
    ]
    models = {order.work.model: prices_of(order.work.model) for order in orders}
    found, *priced = run(
        connection, (_LOCK_BUDGETS if lock else _READ_BUDGETS, payers), *models.values()
    )
    prices = dict(zip(models, (result.rows for result in priced), strict=True))
    room = _Room({row.id: row for row in found.rows}, running, at)
    outcomes = [room.take(order, prices[order.work.model]) for order in orders]
    taken = [outcome for outcome in outcomes if isinstance(outcome, _Taken)]
    reserved = iter(_write_lines(connection, taken, holder, at, last) if taken else ())
    return [next(reserved) if isinstance(one, _Taken) else one for one in outcomes]


@dataclass(frozen=True)
class _Taken:
    """What an order takes, before its line is written."""

    order: Order
    needed: Mapping[str, int]
    holds: Sequence[Allocation]
    budgets: Mapping[int, Budget]  # that bound who pays, as it found them, by their ids


class _Room:
    """What there is of budgets, and how many calls run: each order leaves less for the next."""

    def __init__(self, rows: Mapping[int, Any], running: dict[int, int], at: int) -> None:
        self._rows = rows.values()
        self._budgets = {row.id: as_budget(row, at) for row in self._rows}
        self._running = running
        self._at = at

    def take(
        self, order: Order, prices: Sequence[Any]
    ) -> _Taken | BudgetExhausted | TooManyRunning:
        caller, units = order.caller, order.work.units
        most = caller.rates.concurrency
        if most is not None and self._running[caller.key_id] >= most:
            return TooManyRunning(most)
        needed = _amounts(units, price(prices, units))
        key_id, *shared = order.holders
        bounding = [
            row
            for row in self._rows
            if row.key_id == key_id or (row.team_id and row.team_id in shared)
        ]
        budgets = [self._budgets[row.id] for row in bounding]
        if shortfalls := _shortfalls(in_order(budgets), needed):
            return BudgetExhausted(shortfalls)
        for row, budget in zip(bounding, budgets, strict=True):
            self._budgets[row.id] = _after(budget, needed[row.unit], "reserved")
        if most is not None:
            self._running[caller.key_id] += 1
        return _Taken(
            order,
            needed,
            [
                Allocation(
                    row.id,
                    max(row.window_start, window_start(row.window, self._at)),
                    needed[row.unit],
                    row.unit,
                )
                for row in bounding
                if needed[row.unit]
            ],
            {row.id: budget for row, budget in zip(bounding, budgets, strict=True)},
        )


def _write_lines(
    connection: sa.Connection, taken: Sequence[_Taken], holder: str, at: int, last: bool
) -> list[Reservation]:
    """Holds what the orders take; writes their lines, and the records of their calls."""
    held = _sums(_held(hold, hold.amount) for one in taken for hold in one.holds)
    more = Counter(one.order.payer.key_id for one in taken)
    counted = [{"of_key": key_id, "add_lines": n} for key_id, n in sorted(more.items())]
    written: list[Asked] = []
    begun: list[tuple[int, str, int, Asked]] = []
    for number, one in enumerate(taken):
        work, caller_id, key_id = one.order.work, one.order.caller.key_id, one.order.payer.key_id
        more[key_id] -= 1
        which = {"of_key": key_id, "more": more[key_id]}
        line = {
            **which,
            "key_id": key_id,
            "caller_key_id": caller_id,
            "at": at,
            "call": work.call,
            "run": work.run,
            "end_user": None if one.order.user is None else one.order.user.name,
            "model": work.model,
            "revision": work.revision,
            "adapter": work.adapter,
            "holder": holder,
            "holds": _as_json([_held(hold, hold.amount) for hold in one.holds]),
            **one.needed,
        }
        written.append((_INSERT_CHARGE, line))
        if (attempt := one.order.attempt) is not None:
            record = {**which, **calls.record(caller_id, attempt, holder, at)}
            begun.append((caller_id, attempt.key, number, (_BEGIN_CALL, record)))
    begun.sort(key=lambda call: call[:3])
    try:
        left, _, *results = run(
            connection,
            (_HOLD, held),
            (_COUNT_LINES, counted),
            *written,
            *(call[3] for call in begun),
            last=last,
        )
    except sa.exc.IntegrityError as error:
        if "ck_budgets_" in str(error.orig):
            raise Contended from error
        if calls.is_running(error):
            raise calls.StillRunning from error
        raise
    record_ids = {
        number: result.rows[0].id
        for (_, _, number, _), result in zip(begun, results[len(taken) :], strict=True)
    }
    costs = _costs(taken, {row.id: as_budget(row, at) for row in left.rows})
    return [
        Reservation(
            results[number].rows[0].id,
            one.order.payer.key_id,
            one.holds,
            costs[number],
            None
            if one.order.attempt is None
            else calls.Begun(record_ids[number], one.order.attempt.repeatable),
        )
        for number, one in enumerate(taken)
    ]


def _costs(taken: Sequence[_Taken], left: dict[int, Budget]) -> list[Cost]:
    """What each call will have cost, and what it then leaves, of what all of them have left."""
    costs = []
    for one in reversed(taken):
        shown = dict(one.budgets)
        for hold in one.holds:
            if hold.budget not in left:  # removed since it was looked at
                shown.pop(hold.budget)
                continue
            # What is left does not change when the reservation becomes spending.
            before = _after(left[hold.budget], -hold.amount, "reserved")
            shown[hold.budget] = _after(before, hold.amount, "spent")
            left[hold.budget] = before
        costs.append(
            Cost(
                charged=one.order.work.units,
                cost_micros=one.needed["cost_micros"],
                budgets=in_order(list(shown.values())),
            )
        )
    return costs[::-1]


def cost_of_less(
    connection: sa.Connection, reservation: Reservation, model: str, units: Units
) -> Cost:
    """What the call will have cost if it turns out to take fewer units than are reserved."""
    reserved = reservation.cost
    prices = run(connection, prices_of(model))[0].rows
    micros = min(price(prices, units), reserved.cost_micros)
    before, after = _amounts(reserved.charged, reserved.cost_micros), _amounts(units, micros)
    budgets = [
        _after(budget, after[budget.unit] - before[budget.unit]) for budget in reserved.budgets
    ]
    return Cost(charged=units, cost_micros=micros, budgets=budgets)


def settle(
    connection: sa.Connection, reservation: Reservation, at: int, *, cost: Cost | None = None
) -> None:
    """Like `settle_all` for one reservation of a call that has no answer to store."""
    settle_all(connection, [Settlement(reservation, cost)], at)


def settle_all(
    connection: sa.Connection,
    settlements: Sequence[Settlement],
    at: int,
    *,
    last: bool = False,
) -> None:
    """Turns reservations into spending, and stores the answers of their calls.

    The transaction is committed with the `last` statements. If this raises, it must be undone.

    Raises:
        ChargeClosed: one of them was settled or refunded before.
    """
    closed: list[Asked] = []
    released, totals = [], []
    for one in sorted(settlements, key=lambda one: one.reservation.charge_id):
        reserved = one.reservation
        done = one.cost or reserved.cost
        charged = _amounts(done.charged, done.cost_micros)
        close = {"charge": reserved.charge_id, "to_state": "settled", "to_closed_at": at}
        if one.cost is None:
            closed.append((_CLOSE, close))
        else:
            spent = [_held(hold, charged[hold.unit]) for hold in reserved.holds]
            less = {"to_holds": _as_json(spent), **_prefixed("to_", charged)}
            closed.append((_CLOSE_FOR_LESS, {**close, **less}))
        released += [
            {**_held(hold, hold.amount), "spend": charged[hold.unit]} for hold in reserved.holds
        ]
        totals.append({"of_key": reserved.key_id, **_prefixed("add_", charged)})
    released = _sums(released)
    percents = {percent for one in settlements for percent in one.notify_at}
    finished = [
        (one.reservation.call, one.answer, one.resolution)
        for one in settlements
        if one.reservation.call is not None and one.answer is not None
    ]
    with _closing():
        run(
            connection,
            *closed,
            (_RELEASE, released),
            *notices.crossings(sorted(percents), released, at),
            (_ADD_TO_TOTALS, _sums(totals)),
            # Whoever takes a call's record away from it refunds the charge first.
            *calls.finishing(finished),
            last=last,
        )


@contextmanager
def _closing() -> Iterator[None]:
    try:
        yield
    except sa.exc.IntegrityError as error:
        if "ck_charges_known_state" in str(error.orig):
            raise ChargeClosed from error
        raise


def refund(connection: sa.Connection, charge_id: int, at: int) -> None:
    """Gives a reservation back, whoever made it.

    Raises:
        ChargeClosed: it was settled or refunded before.
    """
    close = {"charge": charge_id, "to_state": "refunded", "to_closed_at": at}
    with _closing():
        (closed,) = run(connection, (_CLOSE, close))
    holds = json.loads(closed.rows[0].holds)
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


def _after(budget: Budget, amount: int, how: str = "spent") -> Budget:
    changed = {how: getattr(budget, how) + amount, "remaining": budget.remaining - amount}
    return budget.model_copy(update=changed)


def _amounts(units: Units, cost_micros: int) -> dict[str, int]:
    return {**units.model_dump(), "cost_micros": cost_micros}


def _held(hold: Allocation, amount: int) -> dict[str, int]:
    return {"budget": hold.budget, "start": hold.start, "amount": amount}


def _as_json(holds: Sequence[Mapping[str, int]]) -> str:
    return json.dumps(holds, separators=(",", ":"))


_WHICH = ("budget", "start", "of_key")


def _sums(changes: Iterable[dict[str, int]]) -> list[dict[str, int]]:
    """The changes of one row of a table added up; in the order of rows."""
    sums: dict[tuple[int, ...], dict[str, int]] = {}
    for change in changes:
        row = tuple(change[name] for name in _WHICH if name in change)
        before = sums.setdefault(row, change)
        if before is not change:
            for name in change.keys() - _WHICH:
                before[name] += change[name]
    return [sums[row] for row in sorted(sums)]


def _prefixed(prefix: str, amounts: Mapping[str, int]) -> dict[str, int]:
    # A parameter may not be called like the column that it changes.
    return {prefix + name: amount for name, amount in amounts.items()}
