from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest

from craft_client.paper_presets import recipe_settings
from craft_client.remote import RemoteBlackBox
from craft_server.plan import Texts, Workload
from craft_server.settings import DEFAULT_LIMITS
from craft_shared.units import UNITS, Units
from craft_shared.wire import EVERYTHING, ImageSet, Limits


def workload(**changes: Any) -> Workload:
    settings: dict[str, Any] = {
        "texts": Texts.of_length(20, 3),
        "images": 100,
        "image_bytes": 10_000,
        "image_pixels": 256**2,
        "budget": 300,
        "recipe": "craftbox",
        "population": 40,
        "random_codes": 31,
        "dim": 512,
        "limits": DEFAULT_LIMITS,
    }
    return Workload(**settings | changes)


@dataclass(frozen=True)
class _Card:
    limits: Limits
    output = EVERYTHING
    prompts_per_image_set = None


class _Offline(RemoteBlackBox):
    """The client's black box with a model's card at hand: it cuts questions, and asks nobody."""

    @cached_property
    def _card(self) -> Any:
        return _Card(self.client)  # type: ignore[arg-type] # as much of it as is called


SMALL_ANSWERS = DEFAULT_LIMITS.model_copy(update={"answer_bytes": 30_000})
SMALLER_THAN_A_PROMPTS = DEFAULT_LIMITS.model_copy(update={"answer_bytes": 1000})
FEW_PROMPTS = DEFAULT_LIMITS.model_copy(update={"prompts_per_call": 7})


@pytest.mark.parametrize("limits", [DEFAULT_LIMITS, SMALL_ANSWERS, FEW_PROMPTS])
@pytest.mark.parametrize("budget", [32, 300, 2000])
@pytest.mark.parametrize("recipe", ["craftbox", "paper"])
def test_units_are_those_that_the_client_would_be_charged(
    recipe: Any, budget: int, limits: Limits
) -> None:
    if recipe == "paper" and budget < 42:
        budget = 42
    planned = workload(recipe=recipe, budget=budget, limits=limits)
    classes = [f"class {number}" for number in range(planned.classes)]
    image_set = ImageSet(id="is", model="pocket", revision="0", count=planned.images)
    black_box = _Offline(limits, image_set, classes)  # type: ignore[arg-type] # as much of it as is called
    search = recipe == "paper" or budget > 32
    settings = recipe_settings(recipe, "data", 5, budget=budget, search=search)
    expected = Units(images=planned.images, requests=1)
    for question, times in settings.questions(black_box.units):
        for _ in range(times):
            expected += black_box.units(*question)
    assert {unit: planned.units[unit] for unit in UNITS} == expected.model_dump()


def test_an_answer_larger_than_the_limit_is_a_query_for_each_of_its_parts() -> None:
    planned = workload(random_codes=0, budget=4, limits=SMALLER_THAN_A_PROMPTS)
    # 20 classes in half precision are 40 bytes a picture: 25 pictures a call, four calls.
    assert planned.units.queries == 4
    assert planned.units.predictions == 100


def test_a_budget_that_covers_no_generation_asks_the_opening_alone() -> None:
    assert workload(budget=71).generations == 0
    assert workload(budget=72).generations == 1
    assert workload(budget=71).units.queries == 32


def test_bytes_down_are_half_precision_log_probabilities() -> None:
    more = workload(budget=72).bytes_down - workload(budget=32).bytes_down
    assert 0 < more - 40 * 100 * 20 * 2 < 5000


def test_bytes_up_hold_pictures_and_codes() -> None:
    planned = workload(budget=72)
    pictures, codes = 100 * 10_000, 71 * 512 * 4
    assert pictures + codes < planned.bytes_up < pictures + codes + 20_000


def test_large_pictures_take_more_uploads() -> None:
    assert workload(images=256).upload_calls == 1
    assert workload(images=256, image_bytes=1_000_000).upload_calls == 4
