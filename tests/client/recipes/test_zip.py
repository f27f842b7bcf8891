"""ZIP: low-rank codes, clipped steps, mini-batches, and a budget used to the last pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from craft_client.recipes.zip import LowRank
from craft_client.search import SegmentedSPSA, batches

from .field import LABELS, accuracies, tuned

# The small model's loss is flatter than a CLIP's.
OPTIONS = {"batch": 16, "step": 0.2, "distance": 0.1}


def test_it_learns_from_mini_batches_and_spends_the_budget_to_the_last_pair(tmp_path: Path) -> None:
    result, journal = tuned(tmp_path / "run", "zip", budget=308, options=OPTIONS)
    before, after = accuracies(result)
    assert after > before
    charged = [line["charged"] for line in journal.lines()]
    assert [one["queries"] for one in charged] == [1] + [10] * 30 + [6]
    assert [one["predictions"] for one in charged[1:]] == [160] * 30 + [96]
    assert result.units.queries == 307  # the last one would be half a pair
    assert result.adapter.codes.shape == (1, 16)


def test_a_pass_over_the_pictures_has_each_once() -> None:
    rows = batches(len(LABELS), 10, np.random.default_rng(0))
    first = np.concatenate([next(rows) for _ in range(4)])
    assert sorted(first) == list(range(40))
    assert not np.array_equal(first, np.concatenate([next(rows) for _ in range(4)]))


def test_codes_are_of_low_rank_but_for_what_their_rows_share() -> None:
    codes = LowRank(80, 2, np.random.default_rng(0))
    assert codes.count == 8 * 2 + 2 + 10 * 2 + 10
    assert not codes(codes.start[None]).any(), "it begins at the plain prompt"
    points = np.random.default_rng(1).normal(size=(3, codes.count))
    for code, point in zip(codes(points), points, strict=True):
        rows = code.reshape(8, 10)
        assert np.linalg.matrix_rank(rows - point[-10:], tol=1e-4) == 2


def test_a_code_whose_length_eight_does_not_divide_ends_in_zeros() -> None:
    codes = LowRank(21, 2, np.random.default_rng(0))
    points = np.random.default_rng(1).normal(size=(1, codes.count))
    assert codes(points).shape == (1, 21)
    assert not codes(points)[0, 16:].any()
    assert codes(points)[0, :16].all()


def search(**more: float) -> SegmentedSPSA:
    return SegmentedSPSA(np.zeros(4), np.random.default_rng(0), step=1.0, distance=0.5, **more)


def test_directions_have_lengths_from_a_half_to_one_on_both_sides() -> None:
    points = search().ask(50)
    assert points.shape == (100, 4)
    np.testing.assert_array_equal(points[:50], -points[50:])
    assert (np.abs(points) >= 0.25).all()
    assert (np.abs(points) <= 0.5).all()
    assert (points[:50] > 0).any(axis=0).all()


def test_the_slope_is_clipped_and_the_step_goes_down() -> None:
    one = search()
    points = one.ask(5)
    one.tell((1e6 * points[:, 0]).astype(np.float32), most=2.0)
    assert np.linalg.norm(one.centre) == pytest.approx(2.0 / 2**0.4)
    assert one.centre[0] < 0


@pytest.mark.parametrize(("momentum", "most"), [(0.9, np.inf), (0.0, 2.0)])
def test_steps_are_those_of_blackvips_and_zips_released_code(momentum: float, most: float) -> None:
    """m = 0.9 m + g and w = w - a (g + 0.9 m); or g alone, clipped (docs/methods.md)."""
    one, slope = search(momentum=momentum), np.arange(1.0, 5)
    centre, gathered = np.zeros(4), np.zeros(4)
    for number in range(1, 7):
        points, distance = one.ask(3), 0.5 / number**0.1
        losses = points @ slope + (points**2).sum(axis=1)
        one.tell(losses, most=most)
        directions = (points[:3] - centre) / distance
        gradient = ((losses[:3] - losses[3:])[:, None] / (2 * distance * directions)).mean(axis=0)
        gradient *= min(1.0, most / np.linalg.norm(gradient))
        gathered = momentum * gathered + gradient
        centre = centre - (gradient + momentum * gathered) / (number + 1) ** 0.4
        np.testing.assert_allclose(one.centre, centre, rtol=1e-6)


def test_it_finds_the_least_of_a_bowl() -> None:
    one = SegmentedSPSA(np.ones(6), np.random.default_rng(0), step=0.3, distance=0.1)
    for _ in range(200):
        points = one.ask(3)
        one.tell(((points - 0.3) ** 2).sum(axis=1).astype(np.float32))
    np.testing.assert_allclose(one.centre, 0.3, atol=0.02)
