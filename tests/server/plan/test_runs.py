from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest

from craft_client import losses
from craft_client.presets import recipe_settings
from craft_client.recipes import craftbox
from craft_client.remote import RemoteBlackBox
from craft_server.engine.text import Pack
from craft_server.plan import runs
from craft_server.plan.costs import Architecture, Constants, TextRates
from craft_server.plan.runs import (
    Plan,
    Texts,
    Workload,
    fit_work,
    multiply_adds,
    plan_run,
    text_seconds,
)
from craft_server.settings import DEFAULT_LIMITS, Settings
from craft_shared.units import UNITS, Units
from craft_shared.wire import EVERYTHING, ImageSet, Limits

SHIPPED = Constants.load()
CLASSES = Texts.of_length(100, 4)


def planned(*, workload: dict[str, Any] | None = None, **options: Any) -> Plan:
    settings: dict[str, Any] = {
        "texts": CLASSES.beside(1000),
        "images": 1600,
        "image_bytes": 100_000,
        "image_pixels": 500**2,
        "budget": 128,
        "recipe": "craftbox",
        "population": 40,
        "random_codes": 127,
        "dim": 512,
        "limits": DEFAULT_LIMITS,
    }
    return plan_run(
        SHIPPED,
        Architecture.of("RN50"),
        Workload(**settings | (workload or {})),
        Settings(),
        **options,
    )


def test_parts_add_up_to_the_run() -> None:
    plan = planned()
    assert plan.run.seconds == pytest.approx(sum(value for _, value in plan.seconds_of_run))


def test_ten_times_the_classes_take_about_ten_times_the_text() -> None:
    few, many = (
        planned(workload={"texts": Texts.of_length(count, 4)}).seconds_of_run.texts
        for count in (100, 1000)
    )
    assert many / few == pytest.approx(10, rel=0.2)


def test_more_prompts_take_more_texts_and_no_more_pictures() -> None:
    few, many = (
        planned(workload={"texts": CLASSES, "budget": budget}).seconds_of_run
        for budget in (16, 128)
    )
    assert few.images == many.images
    assert many.texts / few.texts == pytest.approx(8, rel=0.2)


def test_a_factorisation_is_of_the_smaller_of_pictures_and_inputs() -> None:
    assert fit_work(1000, 300, 5)[1] == fit_work(300, 1000, 5)[1] == 300**3


def test_nothing_is_calibrated_on_one_picture_a_class() -> None:
    assert fit_work(1000, 300, 1000)[2] == 0
    assert fit_work(2000, 300, 1000)[2] > 0


def test_the_closed_form_that_is_planned_is_the_clients() -> None:
    assert len(craftbox.DECADES) == runs.REGULARISATIONS
    assert craftbox.MEASURED == runs.MEASURED
    assert (losses.FOLDS, losses.ENOUGH_IMAGES) == (runs.FOLDS, runs.ENOUGH_IMAGES)


def test_owners_share_the_servers_cores() -> None:
    plan = planned(owners=50)
    server = plan.seconds_of_run.server
    assert plan.all.seconds == pytest.approx(50 * server + plan.seconds_of_run.client)
    assert plan.all.units.queries == 50 * plan.run.units.queries
    assert plan.all.bytes_up == 50 * plan.run.bytes_up


def test_fewer_at_once_take_less_memory_and_the_same_time() -> None:
    all_at_once, few = planned(owners=50), planned(owners=50, at_once=4)
    assert few.all.server_memory_bytes < all_at_once.all.server_memory_bytes
    assert few.all.seconds == all_at_once.all.seconds


def test_caches_take_no_more_than_their_bounds() -> None:
    few, many = (planned(owners=count, at_once=1).all for count in (10_000, 100_000))
    assert few.server_memory_bytes == many.server_memory_bytes


def test_money_is_units_at_their_prices_and_the_machines_hours() -> None:
    plan = planned(prices={"queries": 100, "images": 7}, hour_price=3.6)
    assert plan.run.charged_micros == 100 * plan.run.units.queries + 7 * 1600
    assert plan.run.machine_cost == pytest.approx(plan.run.seconds / 1000)
    assert planned().run.charged_micros is None


def test_more_cores_are_said_to_be_taken_for_alike() -> None:
    assert planned().notes == ()
    plan = planned(cores=4)
    assert "4 cores are taken" in plan.notes[0]
    assert plan.seconds_of_run.images == pytest.approx(planned().seconds_of_run.images / 2)


def test_a_client_holds_a_whole_populations_answers_however_many_calls_bring_them() -> None:
    large = {"images": 16_000, "texts": Texts.of_length(1000, 4), "recipe": "paper"}
    plan = planned(workload={**large, "budget": 8201})
    assert plan.client_memory_bytes > 40 * 16_000 * 1000 * 4


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
        expected += black_box.units(question)
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


RATES = TextRates(packed_per_core=1e9, shared_per_core=5e8)


def architecture(width: int, layers: int = 12) -> Architecture:
    return Architecture("made up", width, layers, width, 224, "resnet", 1e9, 1000)


def test_two_layers_of_one_text_by_hand() -> None:
    pack = Pack(range(1), (1, 2), (0,), ((3, 4),))
    width = 8
    square = width**2
    # First layer: the shared tokens' queries, keys and values (own tokens' are remembered), and the
    # rest of the layer for all four. Last layer: keys and values of four, one end token.
    linear = 2 * 3 * square + 4 * 9 * square + 4 * 2 * square + square + 9 * square + square
    attention = (1 + 2 + 3 + 4) + 4
    assert multiply_adds(architecture(width, 2), pack) == linear + attention * 2 * width


def test_packs_run_on_as_many_cores_as_there_are() -> None:
    texts = Texts.of_length(100, 4)  # 405 tokens: five prompts a pack
    one, two = (text_seconds(architecture(256), RATES, texts, 40, cores) for cores in (1, 2))
    assert two == pytest.approx(one / 2)


def test_a_pack_left_over_keeps_one_core_waiting() -> None:
    texts = Texts.of_length(100, 4)
    two, three = (text_seconds(architecture(256), RATES, texts, 5 * n, 2) for n in (2, 3))
    assert three == pytest.approx(2 * two)


def test_a_single_pack_is_shared_where_the_tower_is_wide() -> None:
    texts = Texts.of_length(47, 3)
    alone, shared = (text_seconds(architecture(512), RATES, texts, 1, cores) for cores in (1, 2))
    assert alone == pytest.approx(shared)  # at half the rate, twice the cores
    narrow = architecture(256)
    assert text_seconds(narrow, RATES, texts, 1, 2) == text_seconds(narrow, RATES, texts, 1, 1)
