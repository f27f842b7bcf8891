import numpy as np
import pytest
from scipy.special import log_softmax as log_softmax64

from craft_client import refine
from craft_client.losses import accuracy, cross_entropy
from craft_client.refine import (
    Refinement,
    ResidualMLP,
    fit_ridge,
    measurable,
    mlp_loss,
    unrefined,
)
from craft_shared.head import LinearHead, Unrefined, centred_inputs, log_softmax
from craft_shared.wire import Context

from .fake_clip import FakeClip

CODES = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
CONTEXT = Context(dim=8, scale=3.0)


def _answers(
    clip: FakeClip, shots: int, *, seed: int = 0, prompts: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    pictures, labels = clip.pictures(shots, seed=seed)
    codes = CODES[: prompts - 1] if prompts > 1 else None
    features = clip.features(pictures)
    return clip.log_probs(features, clip.names, ["a {}"], CONTEXT, codes), labels


def _ridge_by_hand(
    inputs: np.ndarray, targets: np.ndarray, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weight and unpenalised intercept, from the primal normal equations."""
    mean, target_mean = inputs.mean(axis=0), targets.mean(axis=0)
    X = inputs - mean
    weight = np.linalg.solve(X.T @ X + strength * np.eye(X.shape[1]), X.T @ (targets - target_mean))
    return weight, target_mean - mean @ weight


# --- the closed form ------------------------------------------------------------------------------


@pytest.mark.parametrize("regularisation", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize(("shots", "prompts"), [(2, 4), (6, 1)], ids=["N<D", "N>D"])
def test_leave_one_out_is_what_fitting_without_each_picture_gives(
    regularisation: float, shots: int, prompts: int
) -> None:
    log_probs, labels = _answers(FakeClip(5), shots, prompts=prompts)
    inputs = centred_inputs(log_probs).astype(np.float64)
    targets = np.eye(5)[labels]
    strength = regularisation * ((inputs - inputs.mean(axis=0)) ** 2).sum()
    expected = np.empty_like(targets)
    for picture in range(len(labels)):
        others = np.arange(len(labels)) != picture
        weight, bias = _ridge_by_hand(inputs[others], targets[others], strength)
        expected[picture] = inputs[picture] @ weight + bias
    path = refine._RidgePath(inputs, targets)
    np.testing.assert_allclose(path.leave_one_out(regularisation), expected, atol=1e-7)


def test_the_head_is_the_ridge_solution_on_all_pictures() -> None:
    log_probs, labels = _answers(FakeClip(5), 3)
    inputs = centred_inputs(log_probs).astype(np.float64)
    strength = 1e-3 * ((inputs - inputs.mean(axis=0)) ** 2).sum()
    weight, bias = _ridge_by_hand(inputs, np.eye(5)[labels], strength)
    head = fit_ridge(log_probs, labels, [1e-3]).head
    assert isinstance(head, LinearHead)
    np.testing.assert_allclose(inputs @ head.weight + head.bias, inputs @ weight + bias, atol=1e-4)


def test_scales_are_the_calibration_of_least_cross_entropy() -> None:
    log_probs, labels = _answers(FakeClip(5), 6)
    fit = fit_ridge(log_probs, labels, [1e-3])
    inputs = centred_inputs(log_probs).astype(np.float64)
    scores = refine._RidgePath(inputs, np.eye(5)[labels]).leave_one_out(1e-3)

    def loss(head_scale: float, plain_scale: float) -> float:
        logits = head_scale * scores + plain_scale * log_probs[0].astype(np.float64)
        found = log_softmax64(logits, axis=1)
        exact = -found[np.arange(len(labels)), labels].mean()
        return float((len(labels) * exact - found.mean()) / (len(labels) + 1))

    head = fit.head
    assert isinstance(head, LinearHead)
    least = loss(head.head_scale, head.plain_scale)
    for more, plain in ((1.05, 1), (0.95, 1), (1, 1.05), (1, 0.95)):
        assert loss(head.head_scale * more, head.plain_scale * plain) > least


def test_predictions_without_an_error_are_not_trusted_without_bound() -> None:
    clip = FakeClip(4, ignorance=0.0, noise=10)
    log_probs, labels = _answers(clip, 5)
    fit = fit_ridge(log_probs, labels)
    assert fit.accuracy == 100.0
    assert np.median(fit.head(log_probs).min(axis=1)) > -15


def test_the_regularisation_with_the_least_leave_one_out_loss_is_chosen() -> None:
    log_probs, labels = _answers(FakeClip(5), 4)
    grid = [1e-5, 1e-3, 1e-1]
    single = {value: fit_ridge(log_probs, labels, [value]).loss or np.inf for value in grid}
    fit = fit_ridge(log_probs, labels, grid)
    assert fit.regularisation == min(grid, key=single.__getitem__)
    assert fit.loss == pytest.approx(min(single.values()), abs=1e-4)


def test_the_same_regularisation_means_the_same_when_log_probabilities_are_scaled() -> None:
    log_probs, labels = _answers(FakeClip(5), 4)
    inputs = centred_inputs(log_probs).astype(np.float64)
    targets = np.eye(5)[labels]
    np.testing.assert_allclose(
        refine._RidgePath(7 * inputs, targets).leave_one_out(1e-2),
        refine._RidgePath(inputs, targets).leave_one_out(1e-2),
        atol=1e-9,
    )


@pytest.mark.parametrize("shots", [2, 4, 12])
def test_measured_loss_and_accuracy_tell_how_new_pictures_fare(shots: int) -> None:
    clip = FakeClip(8)
    log_probs, labels = _answers(clip, shots)
    new_log_probs, new_labels = _answers(clip, 60, seed=1)
    fit = fit_ridge(log_probs, labels)
    refined = fit.head(new_log_probs)
    assert fit.improves_on(unrefined(log_probs[0], labels))
    assert accuracy(refined, new_labels) >= accuracy(new_log_probs[0], new_labels)
    # Leaving one of two pictures out halves the class, so the estimate is on the careful side.
    assert fit.loss is not None
    assert cross_entropy(refined[None], new_labels)[0] < fit.loss + 0.15
    assert fit.loss == pytest.approx(cross_entropy(fit.log_probs[None], labels)[0], abs=1e-5)


def test_leave_one_out_is_not_fooled_by_noise() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 12)
    noise = log_softmax(rng.normal(size=(8, 60, 5)).astype(np.float32))
    fit = fit_ridge(noise, labels)
    by_heart = accuracy(fit_ridge(noise, labels, [1e-6]).head(noise), labels)
    assert fit.accuracy is not None
    assert fit.accuracy < 40
    assert fit.loss == pytest.approx(np.log(5), abs=0.1)
    assert by_heart >= fit.accuracy


def test_pictures_alone_in_their_class_are_fitted_but_not_measured() -> None:
    log_probs, labels = _answers(FakeClip(5), 4)
    keep = np.delete(np.arange(len(labels)), [17, 18, 19])
    lonely_log_probs, lonely = log_probs[:, keep], labels[keep]
    assert np.flatnonzero(~measurable(lonely)).tolist() == [16]
    fit = fit_ridge(lonely_log_probs, lonely)
    rows = measurable(lonely)
    assert fit.accuracy == accuracy(fit.log_probs[rows], lonely[rows])
    assert unrefined(lonely_log_probs[0], lonely).accuracy == accuracy(
        lonely_log_probs[0][rows], lonely[rows]
    )


def test_one_picture_a_class_gives_a_usable_head_that_claims_nothing() -> None:
    clip = FakeClip(8, ignorance=3.0, noise=25)
    log_probs, labels = _answers(clip, 1)
    fit = fit_ridge(log_probs, labels)
    assert not measurable(labels).any()
    assert (fit.accuracy, fit.loss) == (None, None)
    assert not fit.improves_on(unrefined(log_probs[0], labels))
    new_log_probs, new_labels = _answers(clip, 40, seed=1)
    before = accuracy(new_log_probs[0], new_labels)
    assert accuracy(fit.head(new_log_probs), new_labels) > before + 20


def test_one_picture_a_class_changes_a_good_plain_prediction_little() -> None:
    clip = FakeClip(8, ignorance=0.2, noise=40)
    log_probs, labels = _answers(clip, 1)
    new_log_probs, new_labels = _answers(clip, 40, seed=1)
    before = accuracy(new_log_probs[0], new_labels)
    after = accuracy(fit_ridge(log_probs, labels).head(new_log_probs), new_labels)
    assert after > before - 2


def test_half_precision_answers_fit_as_well() -> None:
    log_probs, labels = _answers(FakeClip(8), 6)
    half = log_probs.astype(np.float16).astype(np.float32)
    assert fit_ridge(half, labels).loss == pytest.approx(
        fit_ridge(log_probs, labels).loss, abs=0.01
    )


def test_answers_that_never_vary_are_survived() -> None:
    log_probs = np.full((2, 6, 3), np.log(1 / 3), np.float32)
    fit = fit_ridge(log_probs, np.array([0, 0, 1, 1, 2, 2]))
    assert np.isfinite(fit.head(log_probs)).all()


def _refinement(accuracy: float | None, losses: list[float]) -> Refinement:
    return Refinement(
        Unrefined(), np.zeros((1, 1), np.float32), accuracy, np.array(losses, np.float32)
    )


@pytest.mark.parametrize(
    ("accuracy", "losses", "improves"),
    [
        (60, [1.0, 1.1, 0.9, 1.0], True),
        (50, [1.0, 1.1, 0.9, 1.0], True),
        (49, [1.0, 1.1, 0.9, 1.0], False),
        (60, [2.0, 2.0, 2.0, 2.0], False),
        (60, [2.1, 2.1, 2.1, 2.1], False),
        (60, [0.0, 2.9, 2.9, 1.0], False),
        (None, [], False),
    ],
    ids=["both", "loss", "less accurate", "equal", "worse", "luck", "unmeasured"],
)
def test_an_improvement_is_no_less_accurate_and_lower_in_loss_beyond_chance(
    accuracy: float | None, losses: list[float], improves: bool
) -> None:
    assert _refinement(accuracy, losses).improves_on(_refinement(50, [2.0] * 4)) == improves


def test_more_standard_errors_ask_for_a_larger_gain() -> None:
    better, worse = _refinement(50, [0.0, 1.0, 0.0, 1.0]), _refinement(50, [2.0, 1.0, 0.5, 2.5])
    error = np.std([2.0, 0.0, 0.5, 1.5], ddof=1) / 2
    assert better.improves_on(worse, errors=0.99 / error)
    assert not better.improves_on(worse, errors=1.01 / error)


# --- the paper's head -----------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_gradients_are_those_of_the_loss(weight: float) -> None:
    rng = np.random.default_rng(3)
    classes, hidden, pictures = 4, 6, 5
    shapes = [(classes, hidden), (hidden,), (hidden, classes), (classes,)]
    parameters = [rng.normal(size=shape) for shape in shapes]
    scores = log_softmax64(rng.normal(size=(pictures, classes)), axis=1)
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
    scores = log_softmax64(rng.normal(size=(5, 4)), axis=1)
    labels = rng.integers(4, size=5)
    hidden = np.maximum(scores @ parameters[0] + parameters[1], 0)
    refined = log_softmax64(scores + hidden @ parameters[2] + parameters[3], axis=1)
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
    log_probs, labels = _answers(FakeClip(5), 80, prompts=1)
    mlp = ResidualMLP(5, seed=[0])
    untrained = mlp.head()
    before = untrained(log_probs)
    for _ in range(30):
        mlp.train_epoch(log_probs[0], labels, consistency_weight=0.1)
    after = mlp.head()(log_probs)
    assert cross_entropy(after[None], labels)[0] < cross_entropy(before[None], labels)[0] - 0.05
    np.testing.assert_array_equal(untrained(log_probs), before)


def test_a_larger_consistency_weight_keeps_the_mlp_nearer_to_the_plain_prediction() -> None:
    log_probs, labels = _answers(FakeClip(5), 20, prompts=1)
    moved = []
    for weight in (0.0, 10.0):
        mlp = ResidualMLP(5, seed=[0])
        for _ in range(100):
            mlp.train_epoch(log_probs[0], labels, consistency_weight=weight)
        moved.append(np.abs(np.exp(mlp.head()(log_probs)) - np.exp(log_probs[0])).mean())
    assert moved[1] < 0.5 * moved[0]


# --- copies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("regularisation", [1e-4, 1e-2, 1.0])
def test_copies_are_left_out_together(regularisation: float) -> None:
    log_probs, labels = _answers(FakeClip(5), 3)
    again = [0, 1, 1, 4, 4, 4, *range(5, 15)]
    log_probs, labels, groups = log_probs[:, again], labels[again], np.array(again)
    inputs, targets = centred_inputs(log_probs).astype(np.float64), np.eye(5)[labels]
    strength = regularisation * ((inputs - inputs.mean(axis=0)) ** 2).sum()
    expected = np.empty_like(targets)
    for picture, group in enumerate(groups):
        others = groups != group
        weight, bias = _ridge_by_hand(inputs[others], targets[others], strength)
        expected[picture] = inputs[picture] @ weight + bias
    path = refine._RidgePath(inputs, targets)
    found = path.leave_one_out(regularisation, refine._copies(groups))
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_a_class_of_copies_alone_has_no_other_picture() -> None:
    labels, groups = np.array([0, 0, 1, 1, 1, 1]), np.array([0, 0, 1, 1, 2, 3])
    assert measurable(labels, groups).tolist() == [False, False, True, True, True, True]
    assert measurable(labels).all()


def test_noise_with_copies_is_not_learnt_by_heart() -> None:
    generator = np.random.default_rng(0)
    log_probs = log_softmax(generator.normal(size=(16, 30, 3)).astype(np.float32))
    log_probs, labels = np.repeat(log_probs, 2, axis=1), np.repeat(np.arange(3), 20)
    groups = np.repeat(np.arange(30), 2)
    assert fit_ridge(log_probs, labels).accuracy == 100.0
    together = fit_ridge(log_probs, labels, groups=groups)
    assert (together.accuracy or 0) < 60


def test_copies_count_as_one_where_candidates_are_compared() -> None:
    gains = np.tile(np.array([1.3, -0.7], np.float32), 10)
    log_probs, head = np.zeros((20, 3), np.float32), Unrefined()

    def compared(copies: int, groups: np.ndarray | None) -> bool:
        losses = np.repeat(np.float32(2) - gains, copies)
        better = Refinement(head, log_probs, 50.0, losses, groups=groups)
        worse = Refinement(head, log_probs, 50.0, np.full_like(losses, 2), groups=groups)
        return better.improves_on(worse, errors=1.5)

    assert not compared(1, None)
    assert compared(9, None)
    assert not compared(9, np.repeat(np.arange(20), 9))
