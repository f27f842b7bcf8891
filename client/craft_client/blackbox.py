"""What tuning may ask of a model: scores of prompts, their cost, and what may still be spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from craft_client.exceptions import BudgetTooSmall
from craft_shared.units import Measure, Units
from craft_shared.wire import Budget, Context, Output

if TYPE_CHECKING:
    from craft_shared.image_view import View


class Question(NamedTuple):
    """How much one request asks."""

    prompts: int  # P, how many
    texts: int = 0  # M, that each of them scores beside the class names
    images: int | None = None  # that it is about; all N when None
    sent: bool = False  # whether they come with the request and are encoded for it
    alone: bool = False  # whether the texts stand in the place of the class names

    def scored(self, classes: int) -> int:
        """How many texts each prompt is scored on, where there are so many class names."""
        return self.texts + (0 if self.alone else classes)


@dataclass(frozen=True)
class Scores:
    """The answer to one request."""

    # float32 [P, n, C + M], of answers that show less by `output.scores_of`
    log_probs: NDArray[np.float32]
    charged: Units
    cost_micros: int = 0  # millionths of the provider's currency
    budgets: Sequence[Budget] = ()  # that bound further requests, after this one
    answers: Sequence[str] = ()  # opaque names, for `BlackBox.acknowledge`


class BlackBox(Protocol):
    """A model that answers for a fixed list of images and classes, and charges for it."""

    @property
    def classes(self) -> Sequence[str]:
        """The C class names."""
        ...

    @property
    def model(self) -> str:
        """The model's name."""
        ...

    @property
    def revision(self) -> str:
        """The model's opaque revision."""
        ...

    @property
    def output(self) -> Output:
        """What its answers show of what the model says, and `score` reads."""
        ...

    @property
    def prompt_limit(self) -> int | None:
        """How many different prompts may be asked about the images; None is not bounded."""
        ...

    @property
    def image_size(self) -> int:
        """Side in pixels of the square that the model reads: an image of it is read as it is."""
        ...

    @property
    def view(self) -> View:
        """What of an image of another size the model reads."""
        ...

    def score(
        self,
        *,
        templates: Sequence[str] = (),
        context: Context | None = None,
        codes: NDArray[np.float32] | None = None,
        texts: Sequence[str] = (),
        alone: bool = False,
        rows: Sequence[int] | None = None,
        images: Sequence[bytes] | None = None,
        name: str | None = None,
    ) -> Scores:
        """Scores the templates and, after them, the codes [K, dim] on n images, in one request.

        Every prompt is scored on the C class names and, after them, the M further `texts`; on the
        texts `alone`, C being 0, where they stand in the place of class names. The images are all
        N, or these `rows` of them, or others that come as encoded files. The same request under the
        same `name` is answered as it was, and is not charged again.

        Raises:
            BudgetExhausted: a budget does not cover the request, of which some calls may have been
                charged where it is several (`units`).
            CraftError: the request was refused or could not be made.
        """
        ...

    def acknowledge(self, scores: Scores) -> None:
        """Reports that the answer is stored here, so that nobody has to keep it. It never fails."""
        ...

    def units(self, question: Question) -> Units:
        """What a question is charged."""
        ...

    def budgets(self) -> Sequence[Budget]:
        """All budgets that bound requests now; a unit without one is not bounded."""
        ...


@dataclass(frozen=True)
class Shortfall:
    """A budget, and the amount of its unit that it does not cover; `str()` is a clause."""

    budget: Budget
    needed: int

    def __str__(self) -> str:
        unit, resets_at = self.budget.unit, self.budget.resets_at
        left, needed = (shown(unit, amount) for amount in (self.budget.remaining, self.needed))
        again = f" until {resets_at}" if resets_at else ""
        return f"{budget_name(self.budget)} has {left:,} left{again} where {needed:,} are needed"


def shortfall(
    budgets: Sequence[Budget], need: Units, cost_micros: int | None = None
) -> Shortfall | None:
    """The first budget that does not cover the need; None if all do.

    A cost of None is not known, so that no budget of money is looked at.
    """
    for budget in budgets:
        needed = amount_of(budget.unit, need, cost_micros)
        if needed > budget.remaining:
            return Shortfall(budget, needed)
    return None


def check_budgets(budgets: Sequence[Budget], need: Units, *, remedy: str) -> None:
    """Raises BudgetTooSmall when a budget of the key or its team does not cover the need.

    Images that the server has seen cost nothing, so that `need` should not count them.
    """
    short = shortfall(budgets, need)
    if short:
        raise BudgetTooSmall(
            f"This needs {short.needed:,} {short.budget.unit}; {budget_name(short.budget)} has "
            f"{short.budget.remaining:,} left. Nothing was charged.",
            remedy=remedy,
        )


def times_covered(
    budgets: Sequence[Budget], need: Units, cost_micros: int | None, *, most: int
) -> int:
    """How many times over the budgets cover the need, `most` at most."""
    needs = [(one.remaining, amount_of(one.unit, need, cost_micros)) for one in budgets]
    return min([most, *(max(0, left) // needed for left, needed in needs if needed)])


def budget_name(budget: Budget) -> str:
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


def amount_of(unit: Measure, need: Units, cost_micros: int | None) -> int:
    """How much of a unit is needed; of money nothing where the cost is not known."""
    return (cost_micros or 0) if unit == "cost_micros" else need[unit]
