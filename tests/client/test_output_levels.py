"""Tuning at each output level, on a small model in this process: it adapts and does not fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from craft_client.journal import Journal, JournalError
from craft_client.losses import accuracy
from craft_client.presets import recipe_settings
from craft_client.recipes import OWN
from craft_client.settings import (
    FEW_DECIMALS,
    RANDOM_CODES,
    RANDOM_CODES_OF_RANKS,
    SettingsError,
    TuneSettings,
    random_codes_for,
)
from craft_client.tune import TuneResult, run_document, tune
from craft_shared.wire import EVERYTHING, Output

from .fake_clip import FakeBlackBox, FakeClip, model_card

LABEL = Output(level="label")
LEVELS = [
    LABEL,
    Output(level="top_k", k=2),
    Output(level="probs", decimals=2),
    Output(level="log_probs", decimals=1),
    EVERYTHING,
]
CLIP = FakeClip(seed=5, noise=40.0, ignorance=2.0)
PICTURES, LABELS = CLIP.pictures(8)
OTHERS, OTHER_LABELS = CLIP.pictures(30, seed=1)


def tuned(output: Output, folder: Path, **options: Any) -> TuneResult:
    options = {"seed": 1, "dim": 16, "population": 8, **options}
    recipe = options.pop("recipe", "craftbox")
    settings = recipe_settings(
        recipe, "", 8, classes=CLIP.names, card=model_card(output), **options
    )
    black_box = FakeBlackBox(CLIP, PICTURES, output=output)
    journal = Journal.create(folder, run_document(black_box, LABELS, settings))
    return tune(black_box, LABELS, settings, journal, pictures=list(PICTURES))


def accuracy_on_others(result: TuneResult, output: Output) -> tuple[float, float]:
    """Before and after, percent."""
    adapter = result.adapter
    black_box = FakeBlackBox(CLIP, OTHERS, output=output)
    config = adapter.config
    scores = black_box.score(
        templates=config.templates,
        context=config.context,
        codes=adapter.codes if config.codes else None,
        texts=config.texts,
    ).log_probs
    refined = adapter.refined(scores, output)
    return accuracy(scores[0, :, : len(CLIP.names)], OTHER_LABELS), accuracy(refined, OTHER_LABELS)


@pytest.mark.parametrize("output", LEVELS, ids=lambda output: output.level)
def test_tuning_beats_the_plain_prompt_at_every_level(output: Output, tmp_path: Path) -> None:
    result = tuned(output, tmp_path / "run")
    assert result.adapter.config.output == output
    before, after = accuracy_on_others(result, output)
    assert after > before + 10
    assert bool(result.adapter.config.texts) == (output.level == "log_probs")


@pytest.mark.parametrize("output", LEVELS, ids=lambda output: output.level)
def test_strict_access_works_at_every_level(output: Output, tmp_path: Path) -> None:
    result = tuned(output, tmp_path / "run", strict=True)
    assert result.adapter.config.access_mode == "strict"
    assert result.adapter.config.codes >= 3
    before, after = accuracy_on_others(result, output)
    assert after > before + 10


@pytest.mark.parametrize("output", LEVELS, ids=lambda output: output.level)
@pytest.mark.parametrize(
    "recipe", [name for name, row in OWN.items() if name != "craftbox" and not row.reads_texts]
)
def test_a_search_works_at_every_level(output: Output, recipe: str, tmp_path: Path) -> None:
    result = tuned(output, tmp_path / "run", recipe=recipe, budget=60, scale=3.0)
    assert len(result.history) > 2
    assert all(np.isfinite(step["loss"]) for step in result.history)
    refined = accuracy_on_others(result, output)[1]
    assert refined > 100 / len(CLIP.names)


@pytest.mark.parametrize("recipe", [name for name, row in OWN.items() if row.reads_texts])
def test_texts_in_the_place_of_names_are_refused_where_answers_show_few(
    recipe: str, tmp_path: Path
) -> None:
    settings = recipe_settings(recipe, "", 8, classes=CLIP.names)
    black_box = FakeBlackBox(CLIP, PICTURES, output=LABEL)
    with pytest.raises(SettingsError, match="level 'label' show too little"):
        run_document(black_box, LABELS, settings)
    assert black_box.charged.requests == 0


def test_the_run_says_which_level_it_saw(tmp_path: Path) -> None:
    tuned(Output(level="top_k", k=2), tmp_path / "run")
    document = Journal.open(tmp_path / "run").document
    assert Output.model_validate(document["output"]) == Output(level="top_k", k=2)
    assert document["prompts_per_image_set"] is None


def test_a_run_does_not_go_on_with_a_key_of_another_level(tmp_path: Path) -> None:
    settings = recipe_settings("craftbox", "", 8, classes=CLIP.names, dim=16)
    began = FakeBlackBox(CLIP, PICTURES)
    journal = Journal.create(tmp_path / "run", run_document(began, LABELS, settings))
    with pytest.raises(JournalError, match=r"'label'; when the run .* 'log_probs'"):
        tune(FakeBlackBox(CLIP, PICTURES, output=LABEL), LABELS, settings, journal)


@pytest.mark.parametrize(
    ("output", "shows"),
    [
        (LABEL, False),
        (Output(level="top_k", k=5), False),
        (Output(level="probs", decimals=FEW_DECIMALS), False),
        (Output(level="probs", decimals=FEW_DECIMALS + 1), True),
        (Output(level="log_probs", decimals=1), True),
        (EVERYTHING, True),
    ],
)
def test_of_coarse_answers_no_vocabulary_is_asked_for_unless_it_is_given(
    output: Output, shows: bool
) -> None:
    alone = recipe_settings("craftbox", "", 8, classes=CLIP.names, card=model_card(output))
    assert bool(alone.texts) == shows
    given = recipe_settings(
        "craftbox", "", 8, classes=CLIP.names, card=model_card(output), vocabulary=["a", "b"]
    )
    assert given.texts == ("a", "b")


def test_coarse_answers_are_asked_for_more_codes() -> None:
    codes = [random_codes_for(output, None) for output in LEVELS]
    assert codes[0] == codes[1] == RANDOM_CODES_OF_RANKS > RANDOM_CODES
    assert codes[2:] == [RANDOM_CODES] * 3

    def settings(recipe: str, **more: Any) -> TuneSettings:
        return recipe_settings(recipe, "", 8, classes=CLIP.names, card=model_card(LABEL), **more)

    assert settings("craftbox").budget == 1 + codes[0]
    assert settings("craftbox", random_codes=3).random_codes == 3
    assert settings("paper").random_codes == 0


def test_a_bound_on_prompts_bounds_codes_and_budget() -> None:
    def settings(recipe: str, output: Output = EVERYTHING, **more: Any) -> TuneSettings:
        card = model_card(output, prompt_limit=100)
        return recipe_settings(recipe, "", 8, classes=CLIP.names, card=card, **more)

    strict = settings("craftbox", LABEL)
    assert (strict.random_codes, strict.budget) == (99, 100)
    rich = settings("craftbox", strict=True, budget=8000)
    assert sum(question.prompts for question in rich.questions()) <= 100
    assert settings("paper").budget == 100
    more = settings("craftbox", strict=True, random_codes=300)
    assert sum(question.prompts for question in more.questions()) <= 100
