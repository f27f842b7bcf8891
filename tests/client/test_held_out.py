"""The accuracy of what is deployed on pictures that neither a fit nor a choice has seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from craft_client.copies import groups_of
from craft_client.held_out import ENOUGH_PICTURES, FOLDS, accuracy_on_unseen, parts
from craft_client.refiners import Kept, accuracy_held_out, refiner_for
from craft_client.settings import TuneSettings
from craft_shared.head import log_softmax

Tasks = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=2, max_size=40)


@given(Tasks)
def test_copies_are_in_one_part_and_the_rest_has_every_class(images: list[tuple[int, int]]) -> None:
    labels, files = (np.array(column, np.int64) for column in zip(*images, strict=True))
    groups = groups_of([str(file) for file in files], len(files))
    found = list(parts(labels, groups))
    for left_out in found:
        assert not set(groups[left_out]) & set(groups[~left_out])
        assert set(labels[~left_out]) == set(labels)
    assert sum(map(int, map(sum, found))) <= len(labels), "no picture is left out twice"


@pytest.mark.parametrize(("shots", "count"), [(1, 0), (2, 2), (3, 3), (16, FOLDS)])
def test_as_many_of_each_class_are_left_out_in_a_part(shots: int, count: int) -> None:
    labels = np.repeat(np.arange(4), shots)
    found = list(parts(labels, np.arange(len(labels))))
    assert len(found) == count
    for left_out in found:
        assert len(set(np.bincount(labels[left_out], minlength=4))) == 1
    assert sum(found, np.zeros(len(labels), int)).tolist() == [bool(count)] * len(labels)


def test_what_is_asked_about_was_not_learnt_from_and_a_thousand_pictures_are_enough() -> None:
    labels = np.repeat(np.arange(100), 30)

    def predicted(rows: NDArray[np.bool_], about: NDArray[np.bool_]) -> NDArray[np.float32]:
        assert not (rows & about).any()
        asked.append(int(about.sum()))
        return np.eye(100, dtype=np.float32)[labels[about]]

    asked: list[int] = []
    assert accuracy_on_unseen(labels, np.arange(3000), predicted) == 100.0
    assert ENOUGH_PICTURES <= sum(asked) < ENOUGH_PICTURES + 600


def test_where_hardly_any_picture_has_another_of_its_class_nothing_is_measured() -> None:
    assert accuracy_on_unseen(np.arange(5), np.arange(5), lambda rows, about: None) is None
    copies = np.repeat(np.arange(5), 2)
    assert accuracy_on_unseen(copies, copies, lambda rows, about: None) is None


def noise(draw: int, *, classes: int, shots: int, prompts: int, copies: int = 1) -> Kept:
    """Answers about pictures of which the labels know nothing; each is there several times."""
    generator = np.random.default_rng([draw, classes, shots])
    features = np.repeat(generator.normal(size=(classes * shots, 24)), copies, axis=0)
    texts = generator.normal(size=(prompts, classes, 24)) / 2
    scores = np.einsum("nw,pcw->pnc", features, texts).astype(np.float32)
    labels = np.repeat(np.arange(classes), shots * copies)
    groups = np.repeat(np.arange(classes * shots), copies)
    codes = generator.normal(size=(prompts - 1, 4)).astype(np.float32)
    return Kept(codes, (), log_softmax(scores), labels, groups=groups)


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("refinement", [True, False])
def test_on_noise_what_is_reported_is_chance(copies: int, refinement: bool) -> None:
    """Leave-one-out of what was chosen by it says 40 to 100 % here."""
    settings = TuneSettings(refinement=refinement)
    found = []
    for draw in range(30):
        kept = noise(draw, classes=3, shots=6, prompts=16, copies=copies)
        chosen = refiner_for(settings, kept).choose(kept).chosen
        found.append(accuracy_held_out(settings, kept, chosen) or 0.0)
    error = 100 * np.sqrt(1 / 3 * 2 / 3 / (30 * 18))
    assert abs(np.mean(found) - 100 / 3) < 2.576 * error
