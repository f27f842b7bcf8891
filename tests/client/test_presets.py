from __future__ import annotations

from pathlib import Path

import pytest

from craft_client.exceptions import DataError
from craft_client.presets import (
    beside,
    common_nouns,
    paper_settings,
    read_vocabulary,
    recipe_settings,
)
from craft_client.settings import Question, TuneSettings
from craft_shared.wire.messages import LONGEST_CLASS_NAME

from .fake_clip import model_card


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("caltech-101", {"scale": "paper", "sigma": 1.0, "bound": 5.0, "consistency_share": 0.25}),
        ("dtd", {"scale": "paper-wide", "sigma": 0.02, "consistency_weight": 0.001}),
        ("EuroSAT", {"consistency_weight": 0.01, "consistency_share": 1.0}),
        ("fgvc_aircraft", {"bound": 0.0, "sigma": 0.02, "consistency_weight": 0.1}),
        ("food-101", {"bound": 0.0, "consistency_weight": 1.0}),
        ("oxford_pets", {"batch_size": 64, "consistency_share": 1.0}),
        (
            "ImageNet",
            {"scale": "paper-imagenet", "hidden": 512, "bound": 0.0, "consistency_weight": 0.0},
        ),
        ("somebody's own", {"scale": "paper", "sigma": 1.0, "hidden": 256}),
    ],
)
def test_a_data_set_has_the_released_configurations_settings(
    data: str, expected: dict[str, object]
) -> None:
    settings = paper_settings(data, 16)
    assert expected.items() <= settings.items()
    TuneSettings(**settings)


@pytest.mark.parametrize(
    ("shots", "generations"), [(1, 50), (2, 100), (4, 100), (5, 200), (16, 200), (None, 200)]
)
def test_the_budget_covers_the_papers_generations(shots: int | None, generations: int) -> None:
    settings = TuneSettings(recipe="paper", **paper_settings("caltech101", shots))
    assert settings.budget == 1 + generations * 41
    assert settings.generations() == generations


def test_the_heads_consistency_ends_after_a_quarter_of_the_generations() -> None:
    settings = TuneSettings(recipe="paper", **paper_settings("caltech101", 16))
    assert settings.consistency_share * settings.generations() == 50


def test_imagenet_has_half_the_budget() -> None:
    assert TuneSettings(recipe="paper", **paper_settings("imagenet", 16)).generations() == 100


CLASSES = ["dog", "bicycle shed"]


def test_craftboxs_recipe_asks_for_common_nouns_in_one_query() -> None:
    settings = recipe_settings("craftbox", "dtd", 16, classes=CLASSES, seed=3)
    assert settings.texts == beside(CLASSES, common_nouns())
    assert "dog" not in settings.texts
    assert settings.questions() == [Question(1, len(settings.texts))]
    assert settings.keep_texts is None


def test_a_vocabulary_takes_the_place_of_common_nouns() -> None:
    settings = recipe_settings(
        "craftbox", "dtd", 16, classes=CLASSES, vocabulary=["a", "Dog", "b"], keep_texts=1
    )
    assert (settings.texts, settings.keep_texts) == (("a", "b"), 1)


def test_in_strict_access_nothing_but_the_classes_is_asked_about() -> None:
    settings = recipe_settings("craftbox", "dtd", 16, classes=CLASSES, strict=True)
    assert settings.texts == ()
    assert (settings.random_codes, settings.budget) == (127, 128)
    few = recipe_settings("craftbox", "dtd", 16, classes=CLASSES, strict=True, random_codes=7)
    assert (few.random_codes, few.budget) == (7, 8)
    assert sum(question.prompts for question in few.questions()) == 8


@pytest.mark.parametrize("recipe", ["paper", "bbt", "random", "spsa"])
def test_no_other_recipe_asks_for_common_nouns(recipe: str) -> None:
    assert recipe_settings(recipe, "dtd", 16, classes=CLASSES).texts == ()


def test_what_is_given_comes_first() -> None:
    settings = recipe_settings("paper", "dtd", 16, classes=CLASSES, budget=500, sigma=None, seed=3)
    assert (settings.budget, settings.sigma, settings.seed, settings.shots) == (500, 0.02, 3, 16)


def test_the_default_vocabulary_leaves_a_call_no_more_names_than_it_may_have() -> None:
    classes = [f"class {number}" for number in range(1500)]
    card = model_card(classes=2000)
    settings = recipe_settings("craftbox", "dtd", 16, classes=classes, card=card)
    assert 400 <= len(settings.texts) <= 500
    assert settings.texts[-1][0] > "v"  # of the whole alphabet
    full = recipe_settings("craftbox", "dtd", 16, classes=classes, card=model_card(classes=1500))
    assert full.texts == ()


def test_the_shipped_nouns_are_what_a_server_accepts() -> None:
    nouns = common_nouns()
    assert len(nouns) == len(set(nouns)) == 1000
    assert {"dog", "chair", "apple"} <= set(nouns)
    assert max(map(len, nouns)) <= LONGEST_CLASS_NAME


def test_class_names_are_left_out_of_a_vocabulary() -> None:
    assert beside(["Dog", "cat"], ["dog", "cow", "CAT"]) == ("cow",)


def test_a_vocabulary_is_read_a_line_a_text(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("zebra crossing\n\n  crêpe \nzebra crossing\n", encoding="utf-8")
    assert read_vocabulary(file) == ("zebra crossing", "crêpe")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"\n \n", "holds no text"),
        (b"caf\xe9", "is not UTF-8"),
        (b"x" * (LONGEST_CLASS_NAME + 1), "201 characters"),
        ("a\u2028b".encode(), r"holds U\+2028, a line separator, as character 2"),
        (b"wheel\n-1", "begins with '-'"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_refused(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / "texts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=words) as error:
        read_vocabulary(file)
    assert error.value.remedy


def test_a_vocabulary_is_cut_at_line_ends_alone_and_may_be_windows(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_bytes("\ufeffwheel\r\na\u00a0b\r\nwheel\r\n".encode())
    assert read_vocabulary(file) == ("wheel", "a\u00a0b")
    file.write_bytes("a\u0085b\r\nwheel\r\n".encode())
    with pytest.raises(DataError, match="holds U\\+0085"):
        read_vocabulary(file)
