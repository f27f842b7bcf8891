"""The ledger in any order of events is what a few plain lines of Python say it is.

The model keeps every call in a list and counts anew at each question; it knows no running counts,
transactions or rows, so that it cannot share the ledger's mistakes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from craft_server.database import Database
from craft_server.ledger import calls, leases
from craft_server.ledger.account import usage
from craft_server.ledger.budgets import LimitBelowUse, list_budgets, set_budget, top_up
from craft_server.ledger.calls import Attempt, KeyReused, StillRunning, StoredAnswer
from craft_server.ledger.charges import (
    BudgetExhausted,
    ChargeClosed,
    Order,
    Reservation,
    Work,
    refund,
    reserve_all,
    settle,
)
from craft_server.ledger.keys import Caller, authenticate, create_key
from craft_server.ledger.prices import set_prices
from craft_server.ledger.tables import CALLS, CHARGES, HOLDERS
from craft_server.ledger.users import (
    EndUser,
    admit,
    list_user_budgets,
    look_up,
    set_user_limit,
)
from craft_shared.units import MEASURES, UNITS, Units

NOW = 1_800_000_000_000
MINUTE = 60_000
LENGTH = {"hour": 60 * MINUTE, "day": 24 * 60 * MINUTE}
LEASE = 1 * MINUTE
PRICES = {"queries": 5, "texts": 1}
NAMES = itertools.count()
USERS = ("ann", "bob")  # of key 0


@dataclass
class Bound:
    """A budget of the model."""

    of_key: int | None  # None: of the team of keys 0 and 1
    unit: str
    window: str
    limit: int
    each_user: bool = False

    def bounds(self, key: int, user: str | None = None) -> bool:
        of_user = user is not None or not self.each_user
        return of_user and (self.of_key == key or (self.of_key is None and key < 2))


@dataclass
class Call:
    """A call of the model: what it asked for, when, and what became of it."""

    key: int
    units: Units
    at: int
    server: str
    name: str
    user: str | None = None
    reserved: Reservation | None = None
    call_id: int = 0
    line: int = 0
    state: str = "reserved"
    bytes_kept: bool = True

    @property
    def charge_id(self) -> int:
        assert self.reserved is not None
        return self.reserved.charge_id

    @property
    def answer(self) -> StoredAnswer:
        return StoredAnswer(200, "text/plain", f"answer of {self.name}".encode())

    def amount(self, unit: str) -> int:
        if unit == "cost_micros":
            return sum(PRICES.get(each, 0) * self.units[each] for each in UNITS)
        return int(getattr(self.units, unit))


WORK = st.builds(
    Units, queries=st.integers(0, 5), texts=st.integers(0, 8), requests=st.integers(0, 1)
)
CHOICE = st.integers(0, 10**6)


class Ledger(RuleBasedStateMachine):
    """Three keys, two of them of one team, and two servers that may die."""

    def __init__(self, store: Database) -> None:
        super().__init__()
        self.store = store
        self.now = NOW
        self.calls: list[Call] = []
        self.lease_until: dict[str, int] = {}
        self.bounds = [
            Bound(0, "queries", "lifetime", 30),
            Bound(0, "queries", "hour", 12),
            Bound(1, "cost_micros", "lifetime", 150),
            Bound(1, "texts", "day", 20),
            Bound(None, "queries", "hour", 15),
            Bound(None, "requests", "lifetime", 9),
            Bound(0, "queries", "hour", 6, each_user=True),
            Bound(0, "texts", "lifetime", 12, each_user=True),
        ]
        team = f"team {next(NAMES)}"
        with store.writing() as connection:
            set_prices(connection, "tiny", PRICES)
            self.callers = [self._caller(connection, team if key < 2 else None) for key in range(3)]
            for bound in self.bounds:
                self._set(connection, bound, bound.limit)
        self.living = [self._start_server() for _ in range(2)]

    def _caller(self, connection: sa.Connection, team: str | None) -> Caller:
        key = create_key(connection, owner="owner", team=team, at=self.now)
        caller = authenticate(connection, key, self.now)
        assert caller is not None
        return caller

    def _names(self, bound: Bound) -> dict[str, Any]:
        holder = (
            {"team_id": self.callers[0].team_id}
            if bound.of_key is None
            else {"key_id": self.callers[bound.of_key].key_id}
        )
        return {**holder, "unit": bound.unit, "window": bound.window}

    def _set(self, connection: sa.Connection, bound: Bound, limit: int) -> None:
        if bound.each_user:
            set_user_limit(connection, **self._names(bound), limit=limit)
        else:
            set_budget(connection, **self._names(bound), limit=limit, at=self.now)

    def _start_server(self) -> str:
        server = f"server {next(NAMES)}"
        self._renew(server)
        return server

    def _renew(self, server: str) -> None:
        self.lease_until[server] = self.now + LEASE
        with self.store.writing() as connection:
            leases.renew(connection, server, self.lease_until[server])

    # --- the model's answers ----------------------------------------------------------------

    def used(self, bound: Bound, state: str, user: str | None = None) -> int:
        length = LENGTH.get(bound.window, 10**18)
        return sum(
            call.amount(bound.unit)
            for call in self.in_state(state)
            if bound.bounds(call.key, call.user)
            and call.at // length == self.now // length
            and (not bound.each_user or call.user == user)
        )

    def in_state(self, *states: str) -> list[Call]:
        return [call for call in self.calls if call.state in states]

    def fits(self, call: Call) -> bool:
        return all(
            call.amount(bound.unit) == 0
            or self.used(bound, "settled", call.user)
            + self.used(bound, "reserved", call.user)
            + call.amount(bound.unit)
            <= bound.limit
            for bound in self.bounds
            if bound.bounds(call.key, call.user)
        )

    def _user(self, caller: Caller, name: str | None) -> EndUser | None:
        if name is None:
            return None
        with self.store.writing() as connection:
            known = look_up(connection, caller.key_id, name, self.now)
            return known or admit(connection, caller.key_id, name, self.now, most=len(USERS))

    # --- what may happen ----------------------------------------------------------------------

    @rule(
        key=st.integers(0, 2),
        server=st.integers(0, 1),
        units=WORK,
        user=st.sampled_from([None, *USERS]),
    )
    def call(self, key: int, server: int, units: Units, user: str | None) -> None:
        name = f"call {next(NAMES)}"
        call = Call(key, units, self.now, self.living[server], name, user if key == 0 else None)
        caller = self.callers[key]
        end_user = self._user(caller, call.user)
        try:
            with self.store.writing() as connection:
                work = Work("predictions", "tiny", "r1", units)
                order = Order(work, caller, caller, user=end_user)
                (reserved,) = reserve_all(
                    connection, [order], holder=call.server, at=self.now, lock=True
                )
                if isinstance(reserved, Exception):
                    raise reserved
                call.reserved = reserved
                call.call_id = calls.begin(
                    connection,
                    caller.key_id,
                    Attempt(call.name, "same", repeatable=True),
                    holder=call.server,
                    charge_id=call.charge_id,
                    at=self.now,
                )
        except BudgetExhausted:
            assert not self.fits(call)
            return
        assert self.fits(call)
        self.calls.append(call)
        call.line = sum(other.key == key for other in self.calls)

    @precondition(lambda self: self.calls)
    @rule(choice=CHOICE)
    def answer(self, choice: int) -> None:
        """Any call's work ends: also a frozen server's, and, in error, one that ended before."""
        call = self.calls[choice % len(self.calls)]
        try:
            with self.store.writing() as connection:
                settle(connection, call.reserved, self.now)
                calls.finish(connection, call.call_id, call.answer)
        except ChargeClosed:
            assert call.state != "reserved"
            return
        assert call.state == "reserved"
        call.state = "settled"

    @precondition(lambda self: self.calls)
    @rule(choice=CHOICE)
    def fail(self, choice: int) -> None:
        call = self.calls[choice % len(self.calls)]
        try:
            with self.store.writing() as connection:
                refund(connection, call.charge_id, self.now)
                calls.abandon(connection, call.call_id)
        except ChargeClosed:
            assert call.state != "reserved"
            return
        assert call.state == "reserved"
        call.state = "refunded"

    @precondition(lambda self: self.calls)
    @rule(choice=CHOICE)
    def send_again(self, choice: int) -> None:
        call = self.calls[choice % len(self.calls)]
        key_id = self.callers[call.key].key_id
        with self.store.reading() as connection:
            if call.state == "reserved":
                with pytest.raises(StillRunning):
                    calls.look_up(connection, key_id, call.name, "same")
                return
            made = calls.look_up(connection, key_id, call.name, "same")
            if call.state == "refunded":
                assert made is None
                return
            assert made is not None
            assert made.answer == (call.answer if call.bytes_kept else None)
            assert made.record.charge_id == call.charge_id
            with pytest.raises(KeyReused):
                calls.look_up(connection, key_id, call.name, "other")

    @precondition(lambda self: self.calls)
    @rule(choice=CHOICE)
    def acknowledge(self, choice: int) -> None:
        call = self.calls[choice % len(self.calls)]
        with self.store.writing() as connection:
            calls.acknowledge(connection, self.callers[call.key].key_id, call.name)
        if call.state == "settled":
            call.bytes_kept = False

    @rule(server=st.integers(0, 1))
    def crash(self, server: int) -> None:
        """A server is killed; what it held waits for its lease. Another takes its place."""
        self.living[server] = self._start_server()

    @rule(minutes=st.sampled_from([0.1, 0.9, 5, 60, 24 * 60]))
    def wait(self, minutes: float) -> None:
        self.now += round(minutes * MINUTE)
        for server in self.living:
            self._renew(server)

    @rule()
    def expire(self) -> None:
        with self.store.writing() as connection:
            released = leases.release_expired(connection, self.now).reservations
        dead = [
            call for call in self.in_state("reserved") if self.lease_until[call.server] <= self.now
        ]
        assert released == len(dead)
        for call in dead:
            call.state = "refunded"
        with self.store.reading() as connection:
            alive = sa.select(HOLDERS.c.id).where(HOLDERS.c.lease_until > self.now)
            for table, open_ in ((CHARGES, CHARGES.c.state == "reserved"), (CALLS, ~CALLS.c.done)):
                orphans = sa.select(table.c.id).where(open_, table.c.holder.not_in(alive))
                assert connection.execute(orphans).all() == []

    @rule(choice=CHOICE, amount=st.integers(0, 10))
    def add(self, choice: int, amount: int) -> None:
        bounds = [bound for bound in self.bounds if not bound.each_user]
        bound = bounds[choice % len(bounds)]
        with self.store.writing() as connection:
            top_up(connection, **self._names(bound), amount=amount)
        bound.limit += amount

    @rule(choice=CHOICE, limit=st.integers(0, 40))
    def limit(self, choice: int, limit: int) -> None:
        bound = self.bounds[choice % len(self.bounds)]
        used = self.used(bound, "settled") + self.used(bound, "reserved")
        if used > limit and not bound.each_user:
            with pytest.raises(LimitBelowUse), self.store.writing() as connection:
                set_budget(connection, **self._names(bound), limit=limit, at=self.now)
            return
        with self.store.writing() as connection:
            self._set(connection, bound, limit)
        bound.limit = limit

    # --- what always holds --------------------------------------------------------------------

    @invariant()
    def budgets_are_what_the_model_says(self) -> None:
        for key, caller in enumerate(self.callers):
            with self.store.reading() as connection:
                shown = list_budgets(connection, caller.key_id, caller.team_id, self.now)
            seen = {(b.of, b.unit, b.window): (b.limit, b.spent, b.reserved) for b in shown}
            assert seen == {
                ("team" if bound.of_key is None else "key", bound.unit, bound.window): (
                    bound.limit,
                    self.used(bound, "settled"),
                    self.used(bound, "reserved"),
                )
                for bound in self.bounds
                if bound.bounds(key)
            }
            assert all(spent + reserved <= limit for limit, spent, reserved in seen.values())

    @invariant()
    def end_users_budgets_are_what_the_model_says(self) -> None:
        for user in USERS:
            with self.store.reading() as connection:
                shown = list_user_budgets(connection, self.callers[0].key_id, user, self.now)
            seen = {(b.unit, b.window): (b.limit, b.spent, b.reserved) for b in shown}
            assert seen == {
                (bound.unit, bound.window): (
                    bound.limit,
                    self.used(bound, "settled", user),
                    self.used(bound, "reserved", user),
                )
                for bound in self.bounds
                if bound.each_user
            }

    @invariant()
    def the_ledger_is_what_was_delivered(self) -> None:
        for key, caller in enumerate(self.callers):
            delivered = [call for call in self.in_state("settled") if call.key == key]
            expected = {m: sum(call.amount(m) for call in delivered) for m in MEASURES}
            sums = [sa.func.coalesce(sa.func.sum(CHARGES.c[m]), 0).label(m) for m in MEASURES]
            settled = sa.and_(CHARGES.c.key_id == caller.key_id, CHARGES.c.state == "settled")
            with self.store.reading() as connection:
                lines = connection.execute(sa.select(*sums).where(settled)).one()
                told = usage(connection, caller.key_id, after=0, limit=1000)
            assert {measure: int(n) for measure, n in lines._mapping.items()} == expected
            assert {**told.total.model_dump(), "cost_micros": told.cost_micros} == expected
            assert [(line.id, line.state, line.units) for line in told.charges] == [
                (call.line, call.state, call.units)
                for call in self.in_state("settled", "reserved")
                if call.key == key
            ]

    def teardown(self) -> None:
        # The next run's servers share the database.
        with self.store.writing() as connection:
            leases.release_expired(connection, NOW * 2)


def test_the_ledger_is_exact_in_any_order_of_events(store: Database) -> None:
    examples = 40 if store.dialect == "sqlite" else 15
    run_state_machine_as_test(
        lambda: Ledger(store),
        settings=settings(max_examples=examples, stateful_step_count=40, deadline=None),
    )
