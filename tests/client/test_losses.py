import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from craft_client.losses import accuracy, clearly_less, cross_entropy, divergence
from craft_shared.head import log_softmax

P, N, C = 3, 7, 5


def _log_probs(seed: int, *shape: int) -> np.ndarray:
    return log_softmax(3 * np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def test_cross_entropy_is_the_mean_negative_log_probability_of_the_labels() -> None:
    log_probs = np.log(np.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]], np.float32))
    expected = -(np.log(0.25) + np.log(0.8)) / 2
    losses = cross_entropy(log_probs, np.array([1, 2]))
    assert losses.dtype == np.float32
    np.testing.assert_allclose(losses, [expected], rtol=1e-6)


@given(st.integers(0, 100))
def test_divergence_is_scipys_relative_entropy_from_target_to_prediction(seed: int) -> None:
    targets, predictions = _log_probs(seed, N, C), _log_probs(seed + 1, P, N, C)
    expected = entropy(np.exp(targets)[None], np.exp(predictions), axis=-1).mean(axis=1)
    np.testing.assert_allclose(divergence(targets, predictions), expected, atol=1e-5)


@given(st.integers(0, 100))
def test_a_shared_target_is_the_same_as_one_for_each_prediction(seed: int) -> None:
    target, predictions = _log_probs(seed, N, C), _log_probs(seed + 1, P, N, C)
    each = np.repeat(target[None], P, axis=0)
    np.testing.assert_allclose(
        divergence(target, predictions), divergence(each, predictions), atol=1e-5
    )


def test_divergence_of_equal_predictions_is_zero_and_its_directions_differ() -> None:
    one, other = _log_probs(0, 1, N, C), _log_probs(1, 1, N, C)
    np.testing.assert_allclose(divergence(one[0], one), 0, atol=1e-6)
    assert abs(divergence(one[0], other)[0] - divergence(other[0], one)[0]) > 0.01


def test_accuracy_is_in_percent() -> None:
    log_probs = np.log(np.array([[0.6, 0.4], [0.3, 0.7], [0.9, 0.1], [0.2, 0.8]], np.float32))
    assert accuracy(log_probs, np.array([0, 1, 1, 1])) == 75.0


@pytest.mark.parametrize(
    ("losses", "less"),
    [
        ([1.0, 1.1, 0.9, 1.0], True),
        ([2.0, 2.0, 2.0, 2.0], False),
        ([2.1, 2.1, 2.1, 2.1], False),
        ([0.0, 2.9, 2.9, 1.0], False),
        ([1.0, 2.0, 1.0, 2.0], True),
    ],
    ids=["less", "equal", "more", "luck", "half of them"],
)
def test_losses_are_clearly_less_beyond_a_standard_error(losses: list[float], less: bool) -> None:
    assert clearly_less(np.array(losses), np.full(4, 2.0), np.arange(4)) == less


def test_copies_count_as_one_where_losses_are_compared() -> None:
    gains = np.tile([1.1, -0.9], 10)  # on average a tenth, and a standard error of 0.22

    def compared(copies: int, groups: np.ndarray) -> bool:
        losses = np.repeat(2 - gains, copies)
        return clearly_less(losses, np.full_like(losses, 2.0), groups)

    assert not compared(1, np.arange(20))
    assert compared(9, np.arange(180))
    assert not compared(9, np.repeat(np.arange(20), 9))
