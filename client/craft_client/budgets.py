"""Whether budgets cover what comes next, and how they are shown to people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from craft_shared.units import Units
from craft_shared.wire import Budget


@dataclass(frozen=True)
class Shortfall:
    """A budget that does not cover something, and what that needs of the budget's unit.

    `str()` of it is a clause of a message.
    """

    budget: Budget
    needed: int

    def __str__(self) -> str:
        unit, resets_at = self.budget.unit, self.budget.resets_at
        left, needed = (shown(unit, amount) for amount in (self.budget.remaining, self.needed))
        again = f" until {resets_at}" if resets_at else ""
        return f"{name(self.budget)} has {left:,} left{again} where {needed:,} are needed"


def shortfall(
    budgets: Sequence[Budget], need: Units, cost_micros: int | None = None
) -> Shortfall | None:
    """The first budget that does not cover the need; None if all do.

    Args:
        budgets: as they stand.
        need: what is to be charged.
        cost_micros: its price; None where it is not known, so that no price bounds it.
    """
    for budget in budgets:
        needed = _needed(budget, need, cost_micros)
        if needed > budget.remaining:
            return Shortfall(budget, needed)
    return None


def times_covered(
    budgets: Sequence[Budget], need: Units, cost_micros: int | None, *, most: int
) -> int:
    """How many times over the budgets cover the need, `most` at most."""
    needs = [(budget.remaining, _needed(budget, need, cost_micros)) for budget in budgets]
    return min([most, *(max(0, left) // needed for left, needed in needs if needed)])


def name(budget: Budget) -> str:
    """What messages call a budget, such as "the team's queries budget of this month"."""
    unit = "cost" if budget.unit == "cost_micros" else budget.unit
    window = "" if budget.window == "lifetime" else f" of this {budget.window}"
    return f"the {budget.of}'s {unit} budget{window}"


def shown(unit: str, amount: int) -> int | Decimal:
    """An amount of a unit as people read it: a cost in the provider's currency."""
    return currency(amount) if unit == "cost_micros" else amount


def currency(micros: int) -> Decimal:
    """An amount of money in the provider's currency, exactly, with six decimals."""
    return Decimal(micros).scaleb(-6)


def _needed(budget: Budget, need: Units, cost_micros: int | None) -> int:
    return (cost_micros or 0) if budget.unit == "cost_micros" else need[budget.unit]
