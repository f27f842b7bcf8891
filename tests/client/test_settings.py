import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from craft_client.blackbox import Question
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
        ({"recipe": "paper", "population": 40}, 42),
        ({"recipe": "paper", "search": False}, 1),
        ({"recipe": "random", "population": 8}, 9),
    ],
)
def test_the_least_budget_is_named_and_suffices(options: dict[str, Any], least: int) -> None:
    TuneSettings(budget=least, **options)
    with pytest.raises(SettingsError, match=f"at least {least}" if least > 1 else "budget"):
        TuneSettings(budget=least - 1, **options)


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("texts", [(), ("a", "b")], ids=["strict", "open text"])
def test_craftbox_begins_with_as_few_queries_as_there_are(
    budget: int, texts: tuple[str, ...]
) -> None:
    settings = TuneSettings(budget=budget, texts=texts)
    assert settings.opening_question[:2] == (1 if texts else min(4, budget), len(texts))


def test_craftbox_has_no_part_of_the_papers_to_change() -> None:
    with pytest.raises(SettingsError) as caught:
        TuneSettings(strategy="random", search=False, refinement=False, consistency=False)
    assert [error.field for error in caught.value.errors] == [
        "strategy",
        "search",
        "refinement",
        "consistency",
    ]
    assert all("a setting of 'paper'" in error.message for error in caught.value.errors)


def test_the_seed_of_each_purpose_is_its_own() -> None:
    settings = TuneSettings(seed=7)
    streams = [settings.stream(purpose) for purpose in ("random codes", "search", "mlp")]
    assert len({tuple(stream) for stream in streams}) == 3


def test_the_papers_scale_is_taken() -> None:
    assert TuneSettings(scale="paper").scale == "paper"


def _check(
    labels: np.ndarray = LABELS,
    classes: list[str] = CLASSES,
    budgets: Sequence[Budget] = (),
    **options: Any,
) -> None:
    TuneSettings(**{"budget": 100, **options}).check_task(labels, classes, budgets, _units)


def _units(question: Question, queries_each: int = 1) -> Units:
    queries = queries_each * question.prompts
    texts = queries * question.scored(2)
    return Units(queries=queries, predictions=queries * 4, texts=texts, requests=1)


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
    _check(recipe="paper", budgets=[budget("queries", 42)])
    with pytest.raises(SettingsError, match="the key's queries budget: is 41"):
        _check(recipe="paper", budgets=[budget("queries", 41)])


def test_a_key_that_cannot_pay_for_craftboxs_first_question_is_told_what_to_do() -> None:
    _check(texts=("a", "b", "c"), budgets=[budget("texts", 5)])
    with pytest.raises(SettingsError, match=r"3 texts takes 5\. Raise .* 5, give fewer texts, or"):
        _check(texts=("a", "b", "c"), budgets=[budget("texts", 4)])
    _check(budgets=[budget("queries", 4)])
    with pytest.raises(SettingsError, match="is 3, but the plain prompt and 3 random codes take 4"):
        _check(budgets=[budget("queries", 3)])


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        (
            [budget("queries", 500), budget("queries", 50, spent=10, of="team")],
            "the team's queries budget: is 40, but .* take 1 and one generation takes 41",
        ),
        (
            [budget("queries", 500), budget("queries", 41, window="day")],
            "the key's queries budget of this day: is 41",
        ),
        (
            [budget("predictions", 167, of="team", window="month")],
            "the team's predictions budget of this month: is 167, but .* take 4 and .* 164",
        ),
        ([budget("requests", 2)], "the key's requests budget: is 2, but .* Raise it to at least 3"),
    ],
)
def test_the_least_of_all_budgets_counts_whoever_and_whatever_it_bounds(
    budgets: list[Budget], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        _check(recipe="paper", budgets=budgets)
    enough = [one.model_copy(update={"remaining": 1000}) for one in budgets]
    _check(recipe="paper", budgets=enough)


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"texts": ("a", "b", "c"), "keep_texts": 2}, [(1, 3)]),
        ({"budget": 128}, [(4, 0), (4, 0), (8, 0), (16, 0), (32, 0), (64, 0)]),
        ({"budget": 100, "random_codes": 20}, [(4, 0), (4, 0), (8, 0), (5, 0)]),
        ({"budget": 15}, [(4, 0), (4, 0)]),
        ({"budget": 100, "random_codes": 1}, [(2, 0)]),
        ({"budget": 100, "random_codes": 0}, [(1, 0)]),
        ({"budget": 83, "recipe": "paper"}, [(1, 0), (40, 0), (1, 0), (40, 0), (1, 0)]),
        ({"budget": 83, "recipe": "paper", "search": False}, [(1, 0)]),
        ({"budget": 6, "recipe": "spsa"}, [(1, 0), (2, 0), (2, 0)]),
    ],
    ids=[
        "open text", "strict", "few codes", "little", "one code", "none", "paper", "no search",
        "spsa",
    ],
)  # fmt: skip
def test_all_that_a_run_asks_is_known_beforehand(
    options: dict[str, Any], asked: list[tuple[int, int]]
) -> None:
    settings = TuneSettings(**options)
    assert [question[:2] for question in settings.questions()] == asked
    assert sum(prompts for prompts, _ in asked) <= settings.budget


def test_generations_that_are_left_are_counted_from_what_is_spent() -> None:
    settings = TuneSettings(budget=128)
    assert settings.generations() == 5
    assert settings.generations(done=2, spent=16) == 3
    assert settings.generations(done=2, spent=81) == 1
    assert settings.generations(done=5, spent=128) == 0


def test_a_prompt_may_be_several_queries() -> None:
    settings = TuneSettings(budget=64)
    assert settings.generations() == 4
    assert settings.generations(partial(_units, queries_each=2)) == 3
    paper = TuneSettings(recipe="paper", budget=150)
    assert paper.generations(partial(_units, queries_each=2)) == 1
    with pytest.raises(SettingsError, match="at least 168"):
        paper.check_task(LABELS, CLASSES, [], partial(_units, queries_each=4))


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
