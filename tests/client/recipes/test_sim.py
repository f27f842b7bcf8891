"""SiM: what it asks, that class names have no part in it, and what it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from craft_client.recipes.sim import mapping
from craft_shared.head import centred, log_softmax

from .field import CLIP, OTHERS, accuracies, tuned


def test_two_questions_make_a_map_that_beats_the_plain_prompt(tmp_path: Path) -> None:
    result, journal = tuned(tmp_path / "run", "sim", budget=2)
    assert result.units.queries == 2
    before, after = accuracies(result)
    assert after > before + 20
    assert result.accuracy_after == pytest.approx(after, abs=12)
    assert journal.summary()["deployed"] == "the mapping"
    assert not set(CLIP.names) & set(result.adapter.config.texts)


def test_class_names_have_no_part_in_what_is_deployed(tmp_path: Path) -> None:
    adapter = tuned(tmp_path / "run", "sim", budget=2)[0].adapter
    config, features = adapter.config, CLIP.features(OTHERS)
    log_probs = CLIP.log_probs(features, config.scored, config.templates)
    other = log_probs.copy()
    other[..., :5] += np.random.default_rng(0).normal(size=other[..., :5].shape)
    np.testing.assert_allclose(
        adapter.head(log_probs), adapter.head(log_softmax(other)), rtol=1e-3, atol=1e-3
    )


def test_the_map_is_regularised_least_squares() -> None:
    generator = np.random.default_rng(3)
    scores = centred(generator.normal(size=(40, 7)).astype(np.float32))
    labels = np.arange(40) % 4
    found = mapping(scores, labels)
    targets, inputs = np.eye(4)[labels], scores - scores.mean(axis=0)
    penalty = found.regularisation * (inputs**2).sum()
    normal = inputs.T @ inputs + penalty * np.eye(7)
    expected = np.linalg.solve(normal, inputs.T @ (targets - targets.mean(axis=0)))
    np.testing.assert_allclose(found.weight, expected, rtol=1e-3, atol=1e-5)


def test_fewer_texts_are_asked_for_where_that_is_wanted(tmp_path: Path) -> None:
    result, _ = tuned(tmp_path / "run", "sim", budget=2, options={"texts": 100})
    assert 50 < len(result.adapter.config.texts) <= 100


def test_a_budget_of_one_query_deploys_the_plain_prompt(tmp_path: Path) -> None:
    result, journal = tuned(tmp_path / "run", "sim", budget=1)
    assert result.units.queries == 1
    assert journal.summary()["deployed"] == "the plain prompt"
