"""Which images are left out together, and what is said of images that none has seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import entropy

from craft_client.data import groups_of
from craft_client.losses import (
    ENOUGH_IMAGES,
    FOLDS,
    accuracy,
    accuracy_on_unseen,
    clearly_less,
    cross_entropy,
    divergence,
    folds,
)
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


Labels = NDArray[np.int64]
Rows = NDArray[np.bool_]
Tasks = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=2, max_size=40)


def task_of(images: list[tuple[int, int]]) -> tuple[Labels, Labels]:
    """Labels, and groups of those that have one file."""
    labels, files = (np.array(column, np.int64) for column in zip(*images, strict=True))
    return labels, groups_of([str(file) for file in files], len(files))


def parts_of(labels: Labels, groups: Labels) -> list[tuple[Rows, Rows]]:
    """The images that are learnt from and those that are asked about, of each part."""
    parts = []

    def predicted(rows: Rows, about: Rows) -> NDArray[np.float32]:
        parts.append((rows, about))
        return np.zeros((about.sum(), 10), np.float32)

    accuracy_on_unseen(labels, groups, predicted)
    return parts


def measurable(labels: Labels, groups: Labels) -> Rows:
    """Images whose class has another image, which is no copy."""
    others = (labels == labels[:, None]) & (groups != groups[:, None])
    rows: Rows = others.any(axis=1)
    return rows


@given(Tasks)
def test_no_part_learns_from_a_copy_nor_without_a_class(images: list[tuple[int, int]]) -> None:
    labels, groups = task_of(images)
    asked = np.zeros(len(labels), int)
    for rows, about in parts_of(labels, groups):
        assert not set(groups[rows]) & set(groups[about])
        assert set(labels[rows]) == set(labels)
        asked += about
    assert asked.max() <= 1, "no image is asked about twice"


@given(Tasks)
def test_every_image_whose_class_has_another_is_in_one_fold(images: list[tuple[int, int]]) -> None:
    labels, groups = task_of(images)
    expected = measurable(labels, groups)
    if 2 * expected.sum() < len(labels):
        expected[:] = False
    found = folds(labels, groups, most=len(labels))
    for fold in found:
        assert set(np.delete(labels, fold)) == set(labels), "every class is in the rest"
    in_folds = sorted(np.concatenate([[], *found]))
    assert len(set(in_folds)) == len(in_folds)
    assert set(in_folds) <= set(np.flatnonzero(expected))
    if len(set(groups)) == len(groups):  # a copy in another class can make a fold impossible
        assert in_folds == np.flatnonzero(expected).tolist()


@given(Tasks)
def test_copies_are_in_one_fold(images: list[tuple[int, int]]) -> None:
    labels, groups = task_of(images)
    of_group: dict[int, int] = {}
    for number, fold in enumerate(folds(labels, groups, most=len(labels))):
        for group in groups[fold].tolist():
            assert of_group.setdefault(group, number) == number


@given(st.lists(st.integers(0, 3), min_size=2, max_size=40))
def test_a_fold_has_one_image_of_a_class_at_most(images: list[int]) -> None:
    labels = np.array(images)
    for fold in folds(labels, np.arange(len(labels)), most=len(labels)):
        assert np.bincount(labels[fold]).max() == 1


def test_a_class_of_copies_alone_has_no_other_image() -> None:
    labels, groups = np.array([0, 0, 1, 1, 1, 1]), np.array([0, 0, 1, 1, 2, 3])
    found = folds(labels, groups, most=6)
    assert [fold.tolist() for fold in found] == [[2, 3], [4], [5]]


def test_there_are_no_folds_after_enough_images() -> None:
    labels = np.repeat(np.arange(10), 30)
    found = folds(labels, np.arange(300), most=45)
    assert [len(fold) for fold in found] == [10] * 5


@pytest.mark.parametrize(("shots", "count"), [(1, 0), (2, 2), (3, 3), (16, FOLDS)])
def test_as_many_of_each_class_are_left_out_in_a_part(shots: int, count: int) -> None:
    labels = np.repeat(np.arange(4), shots)
    found = parts_of(labels, np.arange(len(labels)))
    assert len(found) == count
    for rows, about in found:
        assert (rows ^ about).all()
        assert len(set(np.bincount(labels[about], minlength=4))) == 1


def test_what_is_asked_about_was_not_learnt_from_and_a_thousand_images_are_enough() -> None:
    labels = np.repeat(np.arange(100), 30)

    def predicted(rows: Rows, about: Rows) -> NDArray[np.float32]:
        assert not (rows & about).any()
        asked.append(int(about.sum()))
        return np.eye(100, dtype=np.float32)[labels[about]]

    asked: list[int] = []
    assert accuracy_on_unseen(labels, np.arange(3000), predicted) == 100.0
    assert ENOUGH_IMAGES <= sum(asked) < ENOUGH_IMAGES + 600


def test_the_accuracy_is_that_of_the_predictions() -> None:
    labels = np.repeat(np.arange(3), 4)
    found = accuracy_on_unseen(
        labels, np.arange(12), lambda rows, about: np.eye(3, dtype="f4")[[1] * about.sum()]
    )
    assert found == pytest.approx(100 / 3)


def test_where_hardly_any_image_has_another_of_its_class_nothing_is_measured() -> None:
    def never(rows: Rows, about: Rows) -> NDArray[np.float32]:
        raise AssertionError

    copies = np.repeat(np.arange(5), 2)
    for labels, groups in ((np.arange(5), np.arange(5)), (copies, copies)):
        assert accuracy_on_unseen(labels, groups, never) is None
        assert folds(labels, groups, most=99) == []
