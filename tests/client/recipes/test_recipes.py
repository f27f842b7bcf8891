"""The table of recipes, and what holds for each of those that search for one prompt alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from craft_client.journal import Journal
from craft_client.losses import cross_entropy
from craft_client.paper_presets import paper_settings, recipe_settings
from craft_client.plugins import OWN_RECIPES
from craft_client.recipes import OWN, counted_as, described
from craft_client.search import CorrectedSPSA, search_for
from craft_client.settings import SettingsError, TuneSettings
from craft_client.tune import TuneResult, run_document, tune
from craft_shared.head import Unrefined

from ..fake_clip import FakeBlackBox, FakeClip

CLIP = FakeClip(5, seed=1, ignorance=2.0)  # the plain prompt is bad at it
GENERATION = {"bbt": 5, "random": 4, "spsa": 2}
ALONE = pytest.mark.parametrize("recipe", GENERATION)


def settings_of(recipe: str, generations: int = 20, **more: Any) -> TuneSettings:
    budget = 1 + generations * GENERATION[recipe]
    options = {"population": 4, "dim": 8, "scale": 1.0, "budget": budget, **more}
    return TuneSettings(recipe=recipe, **options)


def run(
    folder: Path, settings: TuneSettings, *, clip: FakeClip = CLIP, **more: Any
) -> tuple[TuneResult, Journal]:
    pictures, labels = clip.pictures(8)
    black_box = FakeBlackBox(clip, pictures, **more)
    journal = Journal.create(folder, run_document(black_box, labels, settings))
    result = tune(black_box, labels, settings, journal)
    assert result.units == black_box.charged
    return result, journal


def training_losses(result: TuneResult, codes: np.ndarray, clip: FakeClip = CLIP) -> np.ndarray:
    """Of the plain prompt and then of codes."""
    pictures, labels = clip.pictures(8)
    settings = settings_of("random")
    black_box = FakeBlackBox(clip, pictures)
    plain = black_box.score(templates=[settings.template]).log_probs
    if not len(codes):
        return cross_entropy(plain, labels)
    context = result.adapter.config.context
    of_codes = black_box.score(context=context, codes=codes).log_probs
    return cross_entropy(np.concatenate([plain, of_codes]), labels)


# --- the table --------------------------------------------------------------------------------


def test_every_recipe_of_the_table_is_one_that_no_plug_in_can_name() -> None:
    assert list(OWN) == ["craftbox", "paper", "bbt", "random", "spsa"] == list(OWN_RECIPES)
    assert all(name == recipe.name for name, recipe in OWN.items())
    assert all(f"{name} (" in described() for name in OWN)


def test_a_plug_ins_recipe_is_counted_as_random_codes_and_then_populations() -> None:
    row = counted_as("hill-climbing")
    assert row.generation(40) == (40,)
    assert not row.like_paper


def test_only_the_papers_recipe_and_plug_ins_have_parts_to_choose() -> None:
    parts = {"strategy", "search", "refinement", "consistency"}
    assert {name for name, recipe in OWN.items() if recipe.settings} == {"paper"}
    assert OWN["paper"].settings == counted_as("hill-climbing").settings == parts


@ALONE
@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("strategy", "random"),
        ("search", False),
        ("refinement", False),
        ("consistency", False),
        ("texts", ("a",)),
    ],
)
def test_a_part_that_a_recipe_has_not_is_refused(recipe: str, part: str, value: Any) -> None:
    with pytest.raises(SettingsError) as refused:
        settings_of(recipe, **{part: value})
    assert [error.field for error in refused.value.errors] == [part]


@ALONE
def test_a_budget_below_one_generation_is_refused_with_what_it_takes(recipe: str) -> None:
    least = 1 + GENERATION[recipe]
    assert settings_of(recipe, budget=least).generations() == 1
    with pytest.raises(SettingsError, match=rf"Raise it to at least {least}\.$"):
        settings_of(recipe, budget=least - 1)


@ALONE
def test_the_settings_are_the_papers_for_data_and_shots(recipe: str) -> None:
    settings = recipe_settings(recipe, "dtd", 1, classes=CLIP.names, seed=3)
    assert settings == TuneSettings(
        **{**paper_settings("dtd", 1), "recipe": recipe}, seed=3, shots=1
    )


# --- budgets, seeds, what comes of it ---------------------------------------------------------


@ALONE
def test_the_budget_is_spent_to_the_last_query_and_not_passed(tmp_path: Path, recipe: str) -> None:
    settings = settings_of(recipe)
    result, journal = run(tmp_path / "whole", settings)
    assert result.units.queries == settings.budget
    assert result.stopped_by is None
    assert result.history[-1]["queries"] == settings.budget
    asked = [len(journal.tensors(line["tensors"][0])["losses"]) for line in journal.lines()]
    requests = {"bbt": [4, 1], "random": [4], "spsa": [2]}[recipe]
    assert asked == [1] + 20 * requests
    short, _ = run(tmp_path / "short", replace(settings, budget=settings.budget - 1))
    assert short.units.queries == settings.budget - GENERATION[recipe]


@ALONE
def test_no_generation_is_begun_that_the_key_does_not_cover(tmp_path: Path, recipe: str) -> None:
    purse = 1 + 3 * GENERATION[recipe] + 1
    result, _ = run(tmp_path / "run", settings_of(recipe), queries=purse)
    assert result.units.queries == purse - 1
    assert result.stopped_by is not None


@ALONE
def test_equal_seeds_give_equal_adapters_and_others_differ(tmp_path: Path, recipe: str) -> None:
    found = [
        run(tmp_path / f"{number}", settings_of(recipe, seed=seed))[0]
        for number, seed in enumerate((3, 3, 4))
    ]
    first, again, other = (result.adapter.to_bytes() for result in found)
    assert first == again
    assert found[0].history == found[1].history
    assert not np.array_equal(found[0].adapter.codes, found[2].adapter.codes)
    assert first != other


@ALONE
def test_the_prompt_that_is_deployed_has_less_training_loss_than_the_plain_one(
    tmp_path: Path, recipe: str
) -> None:
    result, _ = run(tmp_path / "run", settings_of(recipe))
    assert result.adapter.codes.shape == (1, 8)
    assert isinstance(result.adapter.head, Unrefined)
    plain, deployed = training_losses(result, result.adapter.codes)
    assert deployed < plain - 0.1


@ALONE
def test_nothing_is_called_held_out(tmp_path: Path, recipe: str) -> None:
    result, journal = run(tmp_path / "run", settings_of(recipe))
    assert result.accuracy_after is None
    assert journal.summary()["candidates"] == []


@ALONE
def test_the_least_loss_that_is_reported_never_rises(tmp_path: Path, recipe: str) -> None:
    least = [entry["best_loss"] for entry in run(tmp_path / "run", settings_of(recipe))[0].history]
    assert least == sorted(least, reverse=True)
    assert least[-1] < least[0]


# --- each of them -----------------------------------------------------------------------------


def test_bbt_is_the_papers_recipe_without_refinement(tmp_path: Path) -> None:
    settings = settings_of("bbt", consistency_weight=0.5)
    result, journal = run(tmp_path / "bbt", settings)
    paper = replace(settings, recipe="paper", refinement=False)
    expected, of_paper = run(tmp_path / "paper", paper)
    np.testing.assert_array_equal(result.adapter.codes, expected.adapter.codes)
    assert type(result.adapter.head) is type(expected.adapter.head)
    assert (result.history, result.units) == (expected.history, expected.units)
    for line, other in zip(journal.lines(), of_paper.lines(), strict=True):
        tensors, others = (
            of.tensors(one["tensors"][0]) for of, one in ((journal, line), (of_paper, other))
        )
        assert tensors.keys() == others.keys()
        assert all(np.array_equal(tensors[name], others[name]) for name in tensors)


def test_random_deploys_the_code_of_least_training_loss(tmp_path: Path) -> None:
    result, journal = run(tmp_path / "run", settings_of("random"))
    _, *searched = journal.lines()
    tensors = [journal.tensors(line["tensors"][0]) for line in searched]
    losses = np.concatenate([one["losses"] for one in tensors])
    codes = np.concatenate([one["codes"] for one in tensors])
    np.testing.assert_array_equal(result.adapter.codes, codes[losses.argmin()][None])
    assert result.history[-1]["best_loss"] == losses.min()
    assert journal.summary()["deployed"] == "the random code of least training loss"
    pictures, labels = CLIP.pictures(8)
    scores = FakeBlackBox(CLIP, pictures).score(
        context=result.adapter.config.context, codes=result.adapter.codes
    )
    right = (scores.log_probs[0].argmax(axis=1) == labels).mean()
    assert result.history[-1]["accuracy"] == pytest.approx(100 * right)


def test_random_draws_its_codes_whatever_the_losses(tmp_path: Path) -> None:
    settings = settings_of("random")
    _, journal = run(tmp_path / "run", settings)
    search = search_for(settings, "random")
    for line in list(journal.lines())[1:]:
        tensors = journal.tensors(line["tensors"][0])
        np.testing.assert_array_equal(search.ask(), tensors["codes"])


def test_random_deploys_the_plain_prompt_where_no_code_has_less_loss(tmp_path: Path) -> None:
    clip = FakeClip(5, ignorance=0.0, noise=10.0)
    settings = settings_of("random", 1, scale=30.0)
    result, journal = run(tmp_path / "run", settings, clip=clip)
    tensors = journal.tensors("000001")
    plain = training_losses(result, result.adapter.codes, clip)[0]
    assert tensors["losses"].min() > plain
    assert result.adapter.config.codes == 0
    assert journal.summary()["deployed"] == "the plain prompt"
    assert [entry["best_loss"] for entry in result.history] == [pytest.approx(plain)] * 2


def test_spsa_deploys_where_its_pairs_have_led_it(tmp_path: Path) -> None:
    settings = settings_of("spsa")
    result, journal = run(tmp_path / "run", settings)
    search = CorrectedSPSA(8, sigma=1.0, bound=5.0, seed=settings.stream("search"))
    for line in list(journal.lines())[1:]:
        tensors = journal.tensors(line["tensors"][0])
        np.testing.assert_array_equal(search.ask(), tensors["codes"])
        search.tell(tensors["codes"], tensors["losses"])
    np.testing.assert_array_equal(result.adapter.codes, search.current()[None])


def test_spsa_deploys_the_plain_prompt_before_its_first_step(tmp_path: Path) -> None:
    """The first pairs choose how far a step goes."""
    pairs = CorrectedSPSA.FIRST_PAIRS
    result, journal = run(tmp_path / "pairs", settings_of("spsa", pairs))
    assert result.adapter.config.codes == 0
    assert journal.summary()["deployed"] == "the plain prompt"
    assert run(tmp_path / "step", settings_of("spsa", pairs + 1))[0].adapter.config.codes == 1
