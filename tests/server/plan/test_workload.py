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

STRICT = Texts.of_length(20, 3)
OPEN = STRICT.beside(30)


def workload(**changes: Any) -> Workload:
    settings: dict[str, Any] = {
        "texts": STRICT,
        "images": 100,
        "image_bytes": 10_000,
        "image_pixels": 256**2,
        "budget": 300,
        "recipe": "craftbox",
        "population": 40,
        "random_codes": 127,
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


PAPER = ("paper", STRICT)
SMALL_ANSWERS = DEFAULT_LIMITS.model_copy(update={"answer_bytes": 30_000})
SMALLER_THAN_A_PROMPTS = DEFAULT_LIMITS.model_copy(update={"answer_bytes": 1000})
FEW_PROMPTS = DEFAULT_LIMITS.model_copy(update={"prompts_per_call": 7})


@pytest.mark.parametrize("limits", [DEFAULT_LIMITS, SMALL_ANSWERS, FEW_PROMPTS])
@pytest.mark.parametrize("budget", [42, 300, 2000])
@pytest.mark.parametrize("random_codes", [0, 2, 127, 255])
@pytest.mark.parametrize(("recipe", "texts"), [("craftbox", OPEN), ("craftbox", STRICT), PAPER])
def test_units_are_those_that_the_client_would_be_charged_at_most(
    recipe: Any, texts: Texts, random_codes: int, budget: int, limits: Limits
) -> None:
    planned = workload(
        recipe=recipe, texts=texts, random_codes=random_codes, budget=budget, limits=limits
    )
    classes = [f"class {number}" for number in range(texts.classes)]
    vocabulary = [f"text {number}" for number in range(texts.vocabulary)]
    image_set = ImageSet(id="is", model="pocket", revision="0", count=planned.images)
    black_box = _Offline(limits, image_set, classes)  # type: ignore[arg-type] # as much of it as is called
    settings = recipe_settings(
        recipe,
        "data",
        5,
        classes=classes,
        vocabulary=vocabulary or None,
        strict=not vocabulary,
        budget=budget,
        random_codes=random_codes,
    )
    expected = Units(images=planned.images, requests=1)
    for question in settings.questions(black_box.units):
        expected += black_box.units(*question)
    assert {unit: planned.units[unit] for unit in UNITS} == expected.model_dump()


def test_a_vocabulary_is_one_query_of_so_many_more_texts() -> None:
    units = workload(texts=OPEN).units
    assert (units.queries, units.texts, units.requests) == (1, 20 + 30, 2)


@pytest.mark.parametrize("texts", [OPEN, STRICT])
def test_an_answer_larger_than_the_limit_is_a_query_for_each_of_its_parts(texts: Texts) -> None:
    planned = workload(texts=texts, random_codes=0, limits=SMALLER_THAN_A_PROMPTS)
    # In half precision 20 texts are 40 bytes a picture: 25 pictures a call, four calls.
    assert planned.units.queries == {OPEN: 10, STRICT: 4}[texts]
    assert planned.units.predictions == 100


def test_a_budget_ends_strict_access_before_the_doubling_that_it_does_not_cover() -> None:
    assert workload(budget=63).units.queries == 32
    assert workload(budget=64).units.queries == 64


def test_bytes_down_are_half_precision_log_probabilities() -> None:
    more = workload(budget=64).bytes_down - workload(budget=32).bytes_down
    assert 0 < more - 32 * 100 * 20 * 2 < 5000
    more = workload(texts=OPEN).bytes_down - workload(texts=STRICT, budget=1).bytes_down
    assert more == 100 * 30 * 2


def test_bytes_up_hold_pictures_and_codes() -> None:
    planned = workload(budget=64)
    pictures, codes = 100 * 10_000, 63 * 512 * 4
    assert pictures + codes < planned.bytes_up < pictures + codes + 20_000


def test_large_pictures_take_more_uploads() -> None:
    assert workload(images=256).upload_calls == 1
    assert workload(images=256, image_bytes=1_000_000).upload_calls == 4
