"""`/v1/budget` and `/v1/usage`: budgets, what a call cost, and the lines of the ledger."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from craft_shared.amounts import UNITS, Measure, Window
from craft_shared.display import Displayed, View
from craft_shared.units import Units
from craft_shared.wire.messages import Answer, Many, ModelName, Moment, Revision


class Budget(Displayed, Answer):
    """One bound on a key's calls; all of them must cover a call.

    Attributes:
        window: the calendar window (UTC) after which it is reset; `lifetime` never is.
        of: whether it bounds the key, all keys of its team, or one end user of the key.
        limit: of the unit, in one window.
        spent: charged in this window.
        reserved: set aside for calls that run now.
        remaining: limit - spent - reserved.
        resets_at: when the next window begins, RFC 3339; null for lifetime.
    """

    unit: Measure
    window: Window = "lifetime"
    of: Literal["key", "team", "user"] = "key"
    limit: int = Field(examples=[8000])
    spent: int = Field(examples=[32])
    reserved: int = Field(examples=[0])
    remaining: int = Field(examples=[7968])
    resets_at: str | None = None

    def _view(self) -> View:
        facts = {name: value for name, value in self if name not in ("unit", "window", "of")}
        return View(f"{self.unit} of the {self.of}, {self.window}", facts)


class BudgetList(Answer):
    """Answer of `GET /v1/budget`. No budget on a unit means that it is not bounded."""

    budgets: Many[Budget]


class Cost(Answer):
    """What a call cost and what is left, in every charged answer.

    Attributes:
        cost_micros: their price, in millionths of the provider's currency.
        budgets: after the call.
    """

    charged: Units
    cost_micros: int = 0
    budgets: Many[Budget]


class Charge(Answer):
    """One line of the ledger.

    `id` is its number among the key's lines, from 1; refunded reservations leave gaps.
    `at` is an RFC 3339 time in UTC, of the reservation. `state` is `settled`, or `reserved` while
    the call runs. Refunded reservations charge nothing and are not listed. `run` is what the client
    called the run that the call was part of, and `user` the end user for whom it was made.
    `adapter` is the version that predicted, as `OWNER/NAME@VERSION`; null for other calls.
    """

    id: int = Field(examples=[2])
    at: Moment
    call: str = Field(examples=["predictions"])
    run: str | None = Field(default=None, examples=["digits-16-shots"])
    user: str | None = Field(default=None, examples=["user-4711"])
    model: ModelName
    revision: Revision = ""
    state: Literal["reserved", "settled"] = Field(examples=["settled"])
    units: Units
    cost_micros: int = 0
    adapter: str | None = Field(default=None, examples=["research/digits@3"])


class Usage(Displayed, Answer):
    """Answer of `GET /v1/usage?after=ID&limit=N`: totals of what is settled, and a page of lines.

    With `user=NAME`, of one end user.

    `next_after` continues the listing; null at its end.
    """

    total: Units
    cost_micros: int = 0
    charges: Many[Charge]
    next_after: int | None = Field(examples=[2])

    def _view(self) -> View:
        kinds: dict[str, list[Charge]] = {}
        for charge in self.charges:
            kinds.setdefault(charge.call, []).append(charge)
        rows = []
        for call, charges in kinds.items():
            units = sum((charge.units for charge in charges), Units())
            cost = sum(charge.cost_micros for charge in charges)
            rows.append([call, len(charges), *(units[unit] for unit in UNITS), cost])
        return View(
            f"of {len(self.charges):,} charges",
            {**self.total.model_dump(), "cost_micros": self.cost_micros},
            ["call", "charges", *UNITS, "cost_micros"],
            rows,
        )
