"""The table of recipes, and what holds for each of those that search for one prompt alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from craft_client.exceptions import UnusablePlugin
from craft_client.journal import Journal
from craft_client.losses import cross_entropy
from craft_client.presets import paper_settings, recipe_settings
from craft_client.recipes import OWN, recipe_of
from craft_client.search import CorrectedSPSA, search_for
from craft_client.settings import SettingsError
from craft_client.tune import TuneResult, TuneSettings, run_document, tune
from craft_shared.head import LinearHead, Unrefined
from plugin_packages import write_package

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


def test_nobody_knows_beforehand_what_a_plug_ins_recipe_asks() -> None:
    assert recipe_of("hill-climbing").generation is None
    assert not recipe_of("hill-climbing").like_paper


def test_only_the_papers_recipe_has_parts_to_choose() -> None:
    parts = {"strategy", "search", "refinement", "consistency"}
    assert {name for name, recipe in OWN.items() if recipe.settings} == {"paper"}
    assert OWN["paper"].settings == parts
    assert not recipe_of("hill-climbing").settings


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


NOISY_CLIP = FakeClip(3, ignorance=2.0, noise=40)
PICTURES, LABELS = NOISY_CLIP.pictures(4)
# Two recipes whose head is an object of their own that passes for a linear one: the one has its
# tensors, the other lacks some.
CODE = """
import numpy as np
from craft_client.losses import cross_entropy
from craft_client.tuning_run import Reading
from craft_client.tuning_run import Candidate, Outcome

class Disguised:
    kind = "ridge"
    def __init__(self, classes, rows): self.shape = (rows, classes)
    def __call__(self, log_probs): raise SystemError("code of a plug-in's")
    def tensors(self):
        rows, classes = self.shape
        return {
            "head.weight": np.zeros((rows, classes), np.float32),
            "head.bias": np.zeros(classes, np.float32),
            "head.scales": np.ones(2, np.float32),
        }

def whole(run, extra=0):
    read = lambda log_probs: Reading(cross_entropy(log_probs, run.labels), {})
    none = np.zeros((0, run.settings.dim), np.float32)
    loss = float(run.ask(read, none, templates=[run.settings.template]).losses[0])
    run.report("start", loss, loss, None)
    classes = run.labels.max() + 1
    head = Disguised(classes, classes + extra)
    return Outcome("x", none, (), head, 50.0, None, loss, [Candidate("x", 1, 0, loss)])

def wrong(run):
    return whole(run, extra=1)
"""


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    recipes = {"whole": "plugin_heads:whole", "wrong": "plugin_heads:wrong"}
    folder = tmp_path / "packages"
    write_package(folder, "heads", {"craftbox.recipes": recipes}, plugin_heads=CODE)
    monkeypatch.syspath_prepend(str(folder))
    yield
    sys.modules.pop("plugin_heads", None)


def tuned(folder: Path, recipe: str) -> TuneResult:
    settings = TuneSettings(budget=1, dim=8, recipe=recipe)
    black_box = FakeBlackBox(NOISY_CLIP, PICTURES)
    journal = Journal.create(folder, run_document(black_box, LABELS, settings))
    return tune(black_box, LABELS, settings, journal)


def test_what_is_deployed_is_data_whatever_object_a_plug_in_made(tmp_path: Path) -> None:
    head = tuned(tmp_path / "run", "whole").adapter.head
    assert type(head) is LinearHead
    assert np.isfinite(head(np.log(np.full((1, 2, 3), 1 / 3, np.float32)))).all()


def test_a_head_that_no_server_would_take_ends_the_run_before_it_is_deployed(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        UnusablePlugin, match=r"package heads 0.1.0\) ended in no adapter: .*head.weight"
    ):
        tuned(tmp_path / "run", "wrong")
    assert not (tmp_path / "run" / "adapter").exists()


def test_what_a_plug_in_chose_from_is_in_the_summary(tmp_path: Path) -> None:
    tuned(tmp_path / "run", "whole")
    (candidate,) = Journal.open(tmp_path / "run").summary()["candidates"]
    assert (candidate["name"], candidate["prompts"], candidate["texts"]) == ("x", 1, 0)


def test_a_recipe_that_reads_no_texts_refuses_them() -> None:
    with pytest.raises(SettingsError, match="texts: are a setting of 'craftbox'"):
        TuneSettings(recipe="whole", texts=("a",))
