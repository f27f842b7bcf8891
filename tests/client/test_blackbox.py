from __future__ import annotations

from typing import Any

import pytest

from craft_client.blackbox import budget_name, currency, shortfall, times_covered
from craft_shared.units import MEASURES, Measure, Units

from .fake_clip import budget

NEED = Units(queries=10, predictions=20, images=30, texts=40, requests=50)


@pytest.mark.parametrize("unit", MEASURES)
def test_a_budget_of_any_unit_covers_what_is_left_of_it_and_no_more(unit: Measure) -> None:
    needed = 60 if unit == "cost_micros" else NEED[unit]
    exact, short = (budget(unit, 100, spent=100 - left) for left in (needed, needed - 1))
    assert shortfall([exact], NEED, 60) is None
    found = shortfall([exact, short], NEED, 60)
    assert found
    assert (found.budget, found.needed) == (short, needed)
    assert times_covered([exact], NEED, 60, most=5) == 1
    assert times_covered([exact, short], NEED, 60, most=5) == 0


def test_what_is_reserved_for_running_calls_is_not_left() -> None:
    bound = budget("queries", 15).model_copy(update={"reserved": 6, "remaining": 9})
    assert shortfall([bound], NEED)


def test_a_price_that_is_not_known_is_bounded_by_none() -> None:
    assert shortfall([budget("cost_micros", 0)], NEED) is None
    assert times_covered([budget("cost_micros", 0)], NEED, None, most=3) == 3


def test_the_scarcest_budget_counts() -> None:
    budgets = [budget("queries", 90), budget("queries", 35, of="team"), budget("texts", 1000)]
    assert times_covered(budgets, NEED, None, most=100) == 3
    assert times_covered(budgets, NEED, None, most=2) == 2
    assert times_covered([], NEED, None, most=7) == 7


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "the key's queries budget"),
        ({"of": "team", "window": "month"}, "the team's queries budget of this month"),
    ],
)
def test_a_budget_is_named_by_whose_it_is_and_its_window(
    fields: dict[str, Any], words: str
) -> None:
    assert budget_name(budget("queries", 1, **fields)) == words


def test_money_is_exact_to_the_micro() -> None:
    assert f"{currency(1_234_567_890_123_456_789):,}" == "1,234,567,890,123.456789"
    assert str(currency(0)) == "0.000000"
    assert str(currency(1)) == "0.000001"
