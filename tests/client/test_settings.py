import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from craft_client.settings import SettingsError, TuneSettings, one_each
from craft_shared.units import Units
from craft_shared.wire import Budget

from .fake_clip import budget

LABELS = np.array([0, 0, 1, 1], np.int64)
CLASSES = ["cat", "dog"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("budget", 0),
        ("seed", -1),
        ("seed", 2**63),
        ("population", 3),
        ("dim", 1),
        ("dim", 4097),
        ("random_codes", -1),
        ("scale", 0.0),
        ("scale", math.nan),
        ("scale", 1001.0),
        ("sigma", 0.0),
        ("sigma", math.inf),
        ("consistency_weight", -0.1),
        ("shots", 0),
        ("recipe", "svm"),
        ("bound", -1.0),
        ("hidden", 0),
        ("consistency_share", 1.5),
        ("scale", "wide"),
        ("template", "a photo"),
        ("template", "{} and {}"),
        ("template", "{name}"),
    ],
)
def test_an_impossible_value_is_told_with_its_option_and_remedy(option: str, value: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        TuneSettings(**{option: value})
    (error,) = caught.value.errors
    assert error.field == option
    assert error.remedy


def test_all_impossible_values_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        TuneSettings(population=1, sigma=-1.0)
    assert [error.field for error in caught.value.errors] == ["population", "sigma"]


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({"random_codes": 16, "population": 40}, 57),
        ({"random_codes": 16, "search": False}, 17),
        ({"random_codes": 0, "search": False}, 1),
    ],
)
def test_the_least_budget_is_named_and_suffices(options: dict[str, Any], least: int) -> None:
    TuneSettings(budget=least, **options)
    with pytest.raises(SettingsError, match=f"at least {least}" if least > 1 else "budget"):
        TuneSettings(budget=least - 1, **options)


def test_the_papers_scale_is_taken() -> None:
    assert TuneSettings(scale="paper").scale == "paper"


def _check(
    labels: np.ndarray = LABELS,
    classes: list[str] = CLASSES,
    budgets: Sequence[Budget] = (),
) -> None:
    TuneSettings(budget=100).check_task(labels, classes, budgets, _units)


def _units(prompts: int, texts: int = 0, *, queries_each: int = 1) -> Units:
    queries = queries_each * prompts
    return Units(queries=queries, predictions=queries * 4, texts=queries * (2 + texts), requests=1)


def test_classes_without_pictures_are_named() -> None:
    with pytest.raises(SettingsError, match="'owl' has no picture"):
        _check(classes=["cat", "dog", "owl"])


def test_labels_that_name_no_class_are_told() -> None:
    with pytest.raises(SettingsError, match="2 names no class"):
        _check(labels=np.array([0, 1, 2]))
    with pytest.raises(SettingsError, match="-1 names no class"):
        _check(labels=np.array([0, 1, -1]))


def test_one_class_is_no_task() -> None:
    with pytest.raises(SettingsError, match="at least two"):
        _check(labels=np.zeros(3, np.int64), classes=["cat"])


def test_a_key_that_cannot_pay_for_the_first_generation_is_told() -> None:
    _check(budgets=[budget("queries", 72)])
    with pytest.raises(SettingsError, match="the key's queries budget: is 71"):
        _check(budgets=[budget("queries", 71)])


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        (
            [budget("queries", 500), budget("queries", 60, spent=10, of="team")],
            "the team's queries budget: is 50, but .* take 32 and one generation takes 40",
        ),
        (
            [budget("queries", 500), budget("queries", 71, window="day")],
            "the key's queries budget of this day: is 71",
        ),
        (
            [budget("predictions", 287, of="team", window="month")],
            "the team's predictions budget of this month: is 287, but .* take 128 and .* 160",
        ),
        ([budget("requests", 1)], "the key's requests budget: is 1, but .* Raise it to at least 2"),
    ],
)
def test_the_least_of_all_budgets_counts_whoever_and_whatever_it_bounds(
    budgets: list[Budget], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        _check(budgets=budgets)
    _check(budgets=[one.model_copy(update={"remaining": 1000}) for one in budgets])


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"budget": 32, "search": False}, [(32, 0, 1), (40, 0, 0)]),
        ({"budget": 120}, [(32, 0, 1), (40, 0, 2)]),
        ({"budget": 83, "recipe": "paper"}, [(1, 0, 1), (40, 0, 2), (1, 0, 2)]),
        (
            {"budget": 75, "texts": ("a", "b", "c"), "keep_texts": 2},
            [(1, 3, 1), (31, 2, 1), (40, 2, 1)],
        ),
    ],
    ids=["opening", "search", "paper", "open text"],
)
def test_all_that_a_run_asks_is_known_beforehand(
    options: dict[str, Any], asked: list[tuple[int, int, int]]
) -> None:
    questions = TuneSettings(**options).questions()
    assert [(*question, times) for question, times in questions] == asked


def test_a_prompt_may_be_several_queries() -> None:
    settings = TuneSettings(budget=200)
    assert settings.generations() == 4
    assert settings.generations(partial(_units, queries_each=2)) == 1
    with pytest.raises(SettingsError, match="at least 288"):
        settings.check_task(LABELS, CLASSES, [], partial(_units, queries_each=4))


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        (["dog", "x\x1b[31mred"], r"classes\[1\]: 'x\\x1b\[31mred' holds U\+001B"),
        (["-1", "dog"], r"classes\[0\]: '-1' begins with '-'.*\. Rename it"),
        (["café", "cafe\u0301"], r"classes\[1\]: a model reads .* as it reads 'café'"),
        (["caf\udce9", "dog"], r"the byte 0xE9, which is not UTF-8"),
    ],
)
def test_class_names_that_no_server_takes_are_told_before_anything_is_asked(
    classes: list[str], told: str
) -> None:
    with pytest.raises(SettingsError, match=told):
        TuneSettings().check_task(np.array([0, 1]), classes, [], one_each)
