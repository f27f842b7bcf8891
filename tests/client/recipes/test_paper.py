"""The paper's recipe, on a tiny CLIP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

from craft_client.journal import Journal
from craft_client.losses import cross_entropy, divergence
from craft_client.recipes.paper import ResidualMLP, mlp_loss
from craft_client.settings import TuneSettings
from craft_client.tune import TuneResult, run_document, tune
from craft_shared.head import ResidualMLPHead, Unrefined

from ..fake_clip import FakeBlackBox, FakeClip

CLIP = FakeClip(5, ignorance=2.0)
PAPER = TuneSettings(
    recipe="paper", population=4, dim=8, random_codes=0, budget=1 + 6 * 5, hidden=32, scale=1.0
)


def run(
    folder: Path, settings: TuneSettings = PAPER, *, shots: int = 8, **more: Any
) -> tuple[TuneResult, Journal]:
    pictures, labels = CLIP.pictures(shots)
    black_box = FakeBlackBox(CLIP, pictures, **more)
    journal = Journal.create(folder, run_document(black_box, labels, settings))
    return tune(black_box, labels, settings, journal), journal


def test_each_generation_is_a_population_and_its_mean(tmp_path: Path) -> None:
    result, journal = run(tmp_path / "run")
    sizes = [len(journal.tensors(line["tensors"][0])["losses"]) for line in journal.lines()]
    assert sizes == [1] + 6 * [4, 1]
    assert result.units.queries == PAPER.budget
    assert [entry["generation"] for entry in result.history] == list(range(7))


def test_the_last_mean_and_the_head_are_deployed(tmp_path: Path) -> None:
    result, journal = run(tmp_path / "run")
    *_, last = journal.lines()
    np.testing.assert_array_equal(
        result.adapter.codes, journal.tensors(last["tensors"][0])["codes"]
    )
    assert isinstance(result.adapter.head, ResidualMLPHead)
    assert result.accuracy_after is None


def test_the_head_is_trained_on_each_mean_and_losses_are_consistent_with_it(
    tmp_path: Path,
) -> None:
    """The whole run again, by hand; the consistency of the head's loss ends after generation 3."""
    settings = replace(PAPER, consistency_weight=0.5, consistency_share=0.5)
    result, journal = run(tmp_path / "run", settings)
    pictures, labels = CLIP.pictures(8)
    features, context = CLIP.features(pictures), result.adapter.config.context
    mlp = ResidualMLP(5, hidden=32, seed=settings.stream("mlp"))
    lines = list(journal.lines())[1:]
    pairs = zip(lines[::2], lines[1::2], strict=True)
    for generation, (of_population, of_mean) in enumerate(pairs, start=1):
        tensors = journal.tensors(of_population["tensors"][0])
        log_probs = CLIP.log_probs(features, CLIP.names, [], context, tensors["codes"])
        refined = np.stack([mlp.head()(one[None]) for one in log_probs])
        expected = cross_entropy(log_probs, labels) + 0.5 * divergence(refined, log_probs)
        np.testing.assert_allclose(tensors["losses"], expected, rtol=1e-5)
        scores = journal.tensors(of_mean["tensors"][0])["log_probs"].astype(np.float32)
        weight = 0.5 if generation <= 3 else 0.0
        mlp.train_epoch(scores, labels, consistency_weight=weight)
    for name, tensor in mlp.head().tensors().items():
        np.testing.assert_array_equal(result.adapter.head.tensors()[name], tensor)


def test_without_refinement_it_is_black_box_tuning(tmp_path: Path) -> None:
    result, journal = run(tmp_path / "run", replace(PAPER, refinement=False))
    assert isinstance(result.adapter.head, Unrefined)
    tensors = journal.tensors("000001")
    pictures, labels = CLIP.pictures(8)
    log_probs = CLIP.log_probs(
        CLIP.features(pictures), CLIP.names, [], result.adapter.config.context, tensors["codes"]
    )
    np.testing.assert_array_equal(tensors["losses"], cross_entropy(log_probs, labels))


def test_without_search_the_head_is_trained_on_the_plain_prompt_for_one_query(
    tmp_path: Path,
) -> None:
    settings = replace(PAPER, search=False, budget=2000)
    result, journal = run(tmp_path / "run", settings, shots=60)
    assert result.units.queries == 1
    assert result.adapter.config.codes == 0
    _, labels = CLIP.pictures(60)
    scores = journal.tensors("000000")["log_probs"]
    refined = result.adapter.head(scores[None])
    assert cross_entropy(refined[None], labels)[0] < cross_entropy(scores[None], labels)[0] - 0.05


@pytest.mark.parametrize("purse", [31, 30, 26, 6])
def test_no_generation_is_begun_that_the_key_does_not_cover_whole(
    tmp_path: Path, purse: int
) -> None:
    result, _ = run(tmp_path / "run", queries=purse)
    assert result.units.queries == 1 + (purse - 1) // 5 * 5


def _plain_answers(shots: int) -> tuple[np.ndarray, np.ndarray]:
    """Answers [1, N, 5] to the plain prompt, and labels."""
    clip = FakeClip(5)
    pictures, labels = clip.pictures(shots)
    return clip.log_probs(clip.features(pictures), clip.names, ["a {}"]), labels


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_gradients_are_those_of_the_loss(weight: float) -> None:
    rng = np.random.default_rng(3)
    classes, hidden, pictures = 4, 6, 5
    shapes = [(classes, hidden), (hidden,), (hidden, classes), (classes,)]
    parameters = [rng.normal(size=shape) for shape in shapes]
    scores = log_softmax(rng.normal(size=(pictures, classes)), axis=1)
    labels = rng.integers(classes, size=pictures)
    _, gradients = mlp_loss(parameters, scores, labels, weight)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        for index in np.ndindex(parameter.shape):
            original = parameter[index]
            parameter[index] = original + 1e-6
            above = mlp_loss(parameters, scores, labels, weight)[0]
            parameter[index] = original - 1e-6
            below = mlp_loss(parameters, scores, labels, weight)[0]
            parameter[index] = original
            assert gradient[index] == pytest.approx((above - below) / 2e-6, abs=1e-6)


def test_consistency_adds_the_divergence_of_the_unrefined_from_the_refined_prediction() -> None:
    rng = np.random.default_rng(3)
    parameters = [rng.normal(size=shape) for shape in [(4, 6), (6,), (6, 4), (4,)]]
    scores = log_softmax(rng.normal(size=(5, 4)), axis=1)
    labels = rng.integers(4, size=5)
    hidden = np.maximum(scores @ parameters[0] + parameters[1], 0)
    refined = log_softmax(scores + hidden @ parameters[2] + parameters[3], axis=1)
    expected = (np.exp(scores) * (scores - refined)).sum(axis=1).mean()
    difference = (
        mlp_loss(parameters, scores, labels, 1.0)[0] - mlp_loss(parameters, scores, labels, 0.0)[0]
    )
    assert difference == pytest.approx(expected)


def test_an_mlp_starts_as_the_released_codes_does() -> None:
    """PyTorch's default: uniform within one over the square root of a layer's inputs."""
    head = ResidualMLP(100, hidden=400, seed=[0]).head()
    for tensor, inputs in (
        (head.hidden_weight, 100),
        (head.hidden_bias, 100),
        (head.weight, 400),
        (head.bias, 400),
    ):
        bound = inputs**-0.5
        assert 0.9 * bound < np.abs(tensor).max() <= bound
        assert tensor.std() == pytest.approx(bound / 3**0.5, rel=0.2)


def test_training_lowers_the_loss_and_the_head_does_not_change_afterwards() -> None:
    log_probs, labels = _plain_answers(80)
    mlp = ResidualMLP(5, seed=[0])
    untrained = mlp.head()
    before = untrained(log_probs)
    for _ in range(30):
        mlp.train_epoch(log_probs[0], labels, consistency_weight=0.1)
    after = mlp.head()(log_probs)
    assert cross_entropy(after[None], labels)[0] < cross_entropy(before[None], labels)[0] - 0.05
    np.testing.assert_array_equal(untrained(log_probs), before)


def test_a_larger_consistency_weight_keeps_the_mlp_nearer_to_the_plain_prediction() -> None:
    log_probs, labels = _plain_answers(20)
    moved = []
    for weight in (0.0, 10.0):
        mlp = ResidualMLP(5, seed=[0])
        for _ in range(100):
            mlp.train_epoch(log_probs[0], labels, consistency_weight=weight)
        moved.append(np.abs(np.exp(mlp.head()(log_probs)) - np.exp(log_probs[0])).mean())
    assert moved[1] < 0.5 * moved[0]
