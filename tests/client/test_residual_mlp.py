"""The paper's head while it is trained."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from craft_client.losses import cross_entropy
from craft_client.residual_mlp import ResidualMLP, mlp_loss

from .fake_clip import FakeClip


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
