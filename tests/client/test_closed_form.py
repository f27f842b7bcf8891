"""The algebra of craftbox's recipe, against the same things done the long way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

from craft_client.closed_form import Ridge, calibrated, spanning_texts
from craft_shared.head import MAX_PARAMETER

IMAGES, CLASSES, WIDTH = 24, 3, 12


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


SHAPES = pytest.mark.parametrize(
    ("images", "inputs"), [(12, 30), (30, 8), (20, 20)], ids=["N<D", "N>D", "N=D"]
)
REGULARISATIONS = pytest.mark.parametrize("regularisation", [1e-4, 1e-2, 1.0])


def task(images: int, inputs: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [N, D], which are far from centred, and targets [N, C], which follow them."""
    generator = np.random.default_rng([seed, images, inputs])
    X = generator.normal(size=(images, inputs)) + 5
    targets = X @ generator.normal(size=(inputs, CLASSES)) + generator.normal(
        size=(images, CLASSES)
    )
    return X, targets


def variance(inputs: np.ndarray) -> float:
    return float(((inputs - inputs.mean(axis=0)) ** 2).sum())


def held_out(ridge: Ridge, targets: np.ndarray, regularisation: float, folds: Any) -> np.ndarray:
    """Of targets, where all images are of one class."""
    one_class = np.ones((len(targets), 1))
    rows = [np.array(fold) for fold in folds]
    ((_, residuals),) = ridge.held_out(one_class, targets, [regularisation], [0], rows)
    return targets[np.concatenate(rows)] - residuals


def by_hand(
    inputs: np.ndarray, targets: np.ndarray, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weight and unpenalised intercept, from the primal normal equations."""
    mean, target_mean = inputs.mean(axis=0), targets.mean(axis=0)
    X = inputs - mean
    weight = np.linalg.solve(X.T @ X + strength * np.eye(X.shape[1]), X.T @ (targets - target_mean))
    return weight, target_mean - mean @ weight


# --- ridge regression -------------------------------------------------------------------------


@SHAPES
@REGULARISATIONS
def test_the_solution_is_that_of_the_normal_equations(
    images: int, inputs: int, regularisation: float
) -> None:
    X, targets = task(images, inputs)
    weight, bias = Ridge(X).solution(targets, regularisation)
    expected, expected_bias = by_hand(X, targets, regularisation * variance(X))
    np.testing.assert_allclose(weight, expected, atol=1e-4)
    np.testing.assert_allclose(bias, expected_bias, atol=1e-3)


@REGULARISATIONS
def test_both_forms_are_one_ridge(regularisation: float) -> None:
    """Inputs of zeros change no fit, but there are more inputs than images then."""
    X, targets = task(20, 8)
    wide = np.hstack([X, np.zeros((20, 30))])
    primal, dual = Ridge(X), Ridge(wide)
    folds = [[0, 5], [7, 8, 19]]
    np.testing.assert_allclose(
        held_out(dual, targets, regularisation, folds),
        held_out(primal, targets, regularisation, folds),
        atol=1e-7,
    )
    weight, bias = dual.solution(targets, regularisation)
    np.testing.assert_allclose(weight[:8], primal.solution(targets, regularisation)[0], atol=1e-5)
    np.testing.assert_allclose(bias, primal.solution(targets, regularisation)[1], atol=1e-4)
    assert dual.surprise(targets, regularisation) == pytest.approx(
        primal.surprise(targets, regularisation), abs=1e-6
    )
    assert dual.alignment(primal, regularisation) == pytest.approx(1)


@SHAPES
@REGULARISATIONS
@pytest.mark.parametrize(
    "folds",
    [[[0], [3], [11]], [[0, 4, 8], [1, 5], [2, 3, 6, 7, 9]]],
    ids=["one image each", "several"],
)
def test_what_is_held_out_is_what_a_fit_without_the_fold_says_of_it(
    images: int, inputs: int, regularisation: float, folds: list[list[int]]
) -> None:
    X, targets = task(images, inputs)
    expected = []
    for fold in folds:
        rest = np.setdiff1d(np.arange(images), fold)
        weight, bias = by_hand(X[rest], targets[rest], regularisation * variance(X))
        expected.append(X[fold] @ weight + bias)
    found = held_out(Ridge(X), targets, regularisation, folds)
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-6)


def discriminant_by_hand(
    inputs: np.ndarray, labels: np.ndarray, strength: float, share: float
) -> Callable[[np.ndarray], np.ndarray]:
    """Log-odds of Gaussians with one covariance: the total, less a share of that between classes.

    Relative to the first class, and in units of indicators.
    """
    centre = inputs.mean(axis=0)
    members = np.eye(CLASSES)[labels]
    means = members.T @ (inputs - centre) / members.sum(axis=0)[:, None]
    images, X = len(inputs), inputs - centre
    scatter = X.T @ X - share * (members @ means).T @ (members @ means)
    directions = np.linalg.solve(scatter + strength * np.eye(X.shape[1]), means.T)
    offsets = -share / 2 * (means.T * directions).sum(axis=0)

    def scores(of: np.ndarray) -> np.ndarray:
        found = images / CLASSES * ((of - centre) @ directions + offsets)
        return np.asarray(found - found[:, :1])

    return scores


@pytest.mark.parametrize("share", [0, 0.5, 1])
@pytest.mark.parametrize("inputs", [30, 8], ids=["N<D", "N>D"])
@REGULARISATIONS
def test_a_share_of_the_scatter_between_classes_is_taken_out(
    inputs: int, regularisation: float, share: float
) -> None:
    """By algebra on ridge regression; of a fold, as if its images had never been there."""
    X, _ = task(4 * CLASSES, inputs)
    labels = np.tile(np.arange(CLASSES), 4)
    X[:, 0] += labels
    ridge, indicators = Ridge(X), np.eye(CLASSES)[labels]
    strength = regularisation * variance(X)

    slopes, intercepts = ridge.discriminants(indicators, regularisation, {share: 0.5})
    found = X @ slopes + intercepts
    expected = discriminant_by_hand(X, labels, strength, share)(X) / 2
    np.testing.assert_allclose(found - found[:, :1], expected, atol=1e-6)

    folds = [np.arange(CLASSES), np.arange(2 * CLASSES, 3 * CLASSES)]
    ((unseen, _),) = ridge.held_out(indicators, indicators, [regularisation], [0, share], folds)
    expected = np.concatenate(
        [
            discriminant_by_hand(np.delete(X, fold, 0), np.delete(labels, fold), strength, share)(
                X[fold]
            )
            for fold in folds
        ]
    )
    np.testing.assert_allclose(unseen[1] - unseen[1][:, :1], expected, atol=1e-6)


def test_a_regularisation_means_the_same_on_inputs_of_every_scale() -> None:
    X, targets = task(12, 30)
    folds = [range(4)]
    np.testing.assert_allclose(
        held_out(Ridge(7 * X), targets, 1e-2, folds), held_out(Ridge(X), targets, 1e-2, folds)
    )


@SHAPES
def test_surprise_is_the_likelihood_of_the_gaussian_process(images: int, inputs: int) -> None:
    """But for a constant, with the noise that makes each the most likely."""
    X, targets = task(images, inputs)
    centred = X - X.mean(axis=0)
    residuals = targets - targets.mean(axis=0)

    def expected(regularisation: float) -> float:
        covariance = np.eye(images) + centred @ centred.T / (regularisation * variance(X))
        noise = np.sum(residuals * np.linalg.solve(covariance, residuals))
        return float(images * np.log(noise) + np.linalg.slogdet(covariance)[1]) / 2

    ridge = Ridge(X)
    for regularisation in (1e-3, 1e-1, 1.0):
        assert ridge.surprise(targets, regularisation) - ridge.surprise(
            targets, 1e-2
        ) == pytest.approx(expected(regularisation) - expected(1e-2), abs=1e-5)


def test_targets_that_nothing_is_left_of_are_the_least_surprise() -> None:
    X, targets = task(12, 30)
    ridge = Ridge(X)
    nothing = ridge.surprise(np.ones_like(targets), 1e-2)
    assert np.isfinite(nothing)
    assert nothing < ridge.surprise(1e-3 * targets, 1e-2)


def test_alignment_is_the_cosine_between_hat_matrices() -> None:
    (X, _), (other, _) = task(12, 30), task(12, 5, seed=1)

    def hat(inputs: np.ndarray) -> np.ndarray:
        centred = inputs - inputs.mean(axis=0)
        kernel = centred @ centred.T
        return np.asarray(kernel @ np.linalg.inv(kernel + 1e-2 * variance(inputs) * np.eye(12)))

    mine, others = hat(X), hat(other)
    expected = (mine * others).sum() / np.linalg.norm(mine) / np.linalg.norm(others)
    assert Ridge(X).alignment(Ridge(other), 1e-2) == pytest.approx(expected)
    assert Ridge(X).alignment(Ridge(3 * X[:, ::-1] + 1), 1e-2) == pytest.approx(1)


def test_inputs_that_never_vary_predict_the_mean() -> None:
    _, targets = task(6, 4)
    constant = Ridge(np.full((6, 4), 3.0))
    found = held_out(constant, targets, 1e-2, [[0, 1]])
    np.testing.assert_allclose(found, np.tile(targets[2:].mean(axis=0), (2, 1)))
    weight, bias = constant.solution(targets, 1e-2)
    assert not weight.any()
    np.testing.assert_allclose(bias, targets.mean(axis=0), rtol=1e-6)
    assert constant.alignment(Ridge(targets), 1e-2) == 0


# --- which texts span most --------------------------------------------------------------------

FEATURES = normal(IMAGES, WIDTH)


def scores(*directions: np.ndarray) -> np.ndarray:
    """Log-probabilities of texts that lie in these directions of the embedding."""
    texts = np.concatenate([direction.reshape(-1, WIDTH) for direction in directions])
    return np.asarray(log_softmax((FEATURES @ texts.T).astype(np.float32), axis=-1))


def test_a_new_direction_comes_before_copies_of_class_names() -> None:
    names = normal(CLASSES, WIDTH)
    new = 0.1 * normal(WIDTH)
    order = spanning_texts(scores(names, 3 * names, new, names), CLASSES)
    assert order[0] == 3


def test_texts_that_say_nothing_new_come_last() -> None:
    names = normal(CLASSES, WIDTH)
    mixed = np.abs(normal(4, CLASSES)) @ names  # within the classes' own span
    new = normal(5, WIDTH)
    order = spanning_texts(scores(names, mixed, new), CLASSES)
    assert set(order[:5].tolist()) == {4, 5, 6, 7, 8}


def test_twins_do_not_both_come_before_what_is_new() -> None:
    names = normal(CLASSES, WIDTH)
    far, near = 30 * normal(WIDTH), normal(3, WIDTH, seed=1)
    order = spanning_texts(scores(names, far, far, near), CLASSES).tolist()
    assert len({0, 1} & set(order[:3])) <= 1, "by variance alone both would come first"


def test_each_text_is_the_farthest_from_the_span_of_those_before_it() -> None:
    """Step by step, with a projection for each. The scores of the last text follow from all others,
    since they are centred, so that the last two are equally far."""
    log_probs = scores(normal(CLASSES + 8, WIDTH))
    centred = log_probs.astype(np.float64) - log_probs.mean(axis=-1, keepdims=True)
    centred -= centred.mean(axis=0)
    known, left, expected = centred[:, :CLASSES], list(range(8)), []
    while left:
        basis, sizes, _ = np.linalg.svd(known, full_matrices=False)
        basis = basis[:, sizes > 1e-5 * sizes[0]]
        texts = centred[:, [CLASSES + text for text in left]]
        distances = np.linalg.norm(texts - basis @ (basis.T @ texts), axis=0)
        expected.append(left.pop(int(distances.argmax())))
        known = np.hstack([known, centred[:, [CLASSES + expected[-1]]]])
    assert spanning_texts(log_probs, CLASSES).tolist()[:-2] == expected[:-2]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: scores(normal(CLASSES + 20, WIDTH)),
        lambda: np.full((IMAGES, CLASSES + 20), -np.log(CLASSES + 20), np.float32),
        lambda: np.tile(scores(normal(CLASSES + 20, WIDTH))[:1], (IMAGES, 1)),
    ],
    ids=["more than dimensions", "equal", "the same of all images"],
)
def test_every_text_has_its_place_once(draw: Callable[[], np.ndarray]) -> None:
    assert sorted(spanning_texts(draw(), CLASSES).tolist()) == list(range(20))


def test_a_constant_added_to_an_images_logits_changes_no_order() -> None:
    log_probs = scores(normal(CLASSES + 6, WIDTH))
    moved = log_probs + normal(IMAGES, 1).astype(np.float32)
    np.testing.assert_array_equal(
        spanning_texts(moved, CLASSES)[:-2], spanning_texts(log_probs, CLASSES)[:-2]
    )


# --- calibration ------------------------------------------------------------------------------

LABELS = np.arange(IMAGES) % CLASSES


def smoothed_loss(logits: np.ndarray, scale: float) -> float:
    found = log_softmax(scale * logits, axis=1)
    exact = -found[np.arange(IMAGES), LABELS].mean()
    return float((IMAGES * exact - found.mean()) / (IMAGES + 1))


@pytest.mark.parametrize("start", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
def test_the_scale_is_that_of_least_cross_entropy_wherever_it_begins(
    start: float, size: float
) -> None:
    logits = size * (np.eye(CLASSES)[LABELS] + normal(IMAGES, CLASSES))
    scale, losses = calibrated(logits, LABELS, start)
    least = smoothed_loss(logits, scale)
    assert least < min(smoothed_loss(logits, factor * scale) for factor in (0.97, 1.03))
    expected = -log_softmax(scale * logits, axis=1)[np.arange(IMAGES), LABELS]
    np.testing.assert_allclose(losses, expected, atol=1e-4)


def test_predictions_without_an_error_are_not_trusted_without_bound() -> None:
    scale, losses = calibrated(np.eye(CLASSES)[LABELS], LABELS, 10.0)
    assert scale == pytest.approx(np.log(CLASSES * IMAGES + 1), abs=0.05)
    assert losses.min() > 0.02


@pytest.mark.parametrize("tiny", [0.0, 1e-12])
def test_logits_that_say_nothing_have_a_scale_that_an_adapter_may_hold(tiny: float) -> None:
    logits = tiny * np.eye(CLASSES)[LABELS]
    scale, losses = calibrated(logits, LABELS, 10.0)
    assert 0 < scale <= MAX_PARAMETER
    np.testing.assert_allclose(losses, np.log(CLASSES), atol=1e-5)


def test_logits_that_are_wrong_are_not_trusted() -> None:
    wrong = np.eye(CLASSES)[(LABELS + 1) % CLASSES]
    scale, losses = calibrated(wrong, LABELS, 10.0)
    assert 0 <= scale < 1e-3
    np.testing.assert_allclose(losses, np.log(CLASSES), atol=1e-3)
