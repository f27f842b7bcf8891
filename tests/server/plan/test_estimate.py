from __future__ import annotations

from typing import Any

import pytest

from craft_client import held_out
from craft_client.recipes import craftbox
from craft_server.plan import Architecture, Constants, Plan, Texts, Workload, estimate, plan_run
from craft_server.plan.estimate import fit_work
from craft_server.settings import DEFAULT_LIMITS, Settings

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
    assert len(craftbox.REGULARISATIONS) == estimate.REGULARISATIONS
    assert craftbox.MEASURED == estimate.MEASURED
    assert (held_out.FOLDS, held_out.ENOUGH_IMAGES) == (estimate.FOLDS, estimate.ENOUGH_IMAGES)


def test_tenants_share_the_servers_cores() -> None:
    plan = planned(tenants=50)
    server = plan.seconds_of_run.server
    assert plan.all.seconds == pytest.approx(50 * server + plan.seconds_of_run.client)
    assert plan.all.units.queries == 50 * plan.run.units.queries
    assert plan.all.bytes_up == 50 * plan.run.bytes_up


def test_fewer_at_once_take_less_memory_and_the_same_time() -> None:
    all_at_once, few = planned(tenants=50), planned(tenants=50, at_once=4)
    assert few.all.server_memory_bytes < all_at_once.all.server_memory_bytes
    assert few.all.seconds == all_at_once.all.seconds


def test_caches_take_no_more_than_their_bounds() -> None:
    few, many = (planned(tenants=count, at_once=1).all for count in (10_000, 100_000))
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
