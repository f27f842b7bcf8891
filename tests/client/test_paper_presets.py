import pytest

from craft_client.paper_presets import paper_settings, recipe_settings
from craft_client.settings import TuneSettings


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
    settings = TuneSettings(**paper_settings("caltech101", shots))
    assert settings.budget == 1 + generations * 41
    assert settings.generations() == generations


def test_the_heads_consistency_ends_after_a_quarter_of_the_generations() -> None:
    settings = TuneSettings(**paper_settings("caltech101", 16))
    assert settings.consistency_share * settings.generations() == 50


def test_imagenet_has_half_the_budget() -> None:
    assert TuneSettings(**paper_settings("imagenet", 16)).generations() == 100


def test_craftboxs_recipe_searches_only_where_a_budget_is_given() -> None:
    alone = recipe_settings("craftbox", "dtd", 16, seed=3)
    assert (alone.budget, alone.search, alone.generations()) == (32, False, 0)
    assert recipe_settings("craftbox", "dtd", 16, random_codes=7).budget == 8
    assert recipe_settings("craftbox", "dtd", 16, budget=112).generations() == 2


def test_what_is_given_comes_first() -> None:
    settings = recipe_settings("paper", "dtd", 16, budget=500, sigma=None, seed=3)
    assert (settings.budget, settings.sigma, settings.seed, settings.shots) == (500, 0.02, 3, 16)
