"""BlackVIP: images with a prompt on them are made, charged, and what is deployed is the prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from craft_client.recipes.blackvip import drawn
from craft_client.tune import TuneSettings, tune
from craft_shared.adapter import Adapter, prompted

from ..fake_clip import FakeBlackBox
from .field import CLIP, LABELS, OTHERS, PICTURES, accuracies, tuned

OPTIONS = {"grid": 4, "batch": 20, "directions": 3, "step": 200.0}


def test_a_visual_prompt_is_learnt_from_images_that_are_charged(tmp_path: Path) -> None:
    result, journal = tuned(tmp_path / "run", "blackvip", budget=41, options=OPTIONS)
    before, after = accuracies(result)
    assert after > before
    assert result.units.images == 40 * 120
    assert result.units.queries == 41
    visual = Adapter.load(tmp_path / "run/adapter").visual
    assert visual is not None
    assert visual.shape == (8, 8, 3)
    assert 1 < np.abs(visual).max() <= 64
    assert journal.summary()["deployed"] == "the last visual prompt"


def test_it_stops_before_a_step_that_a_budget_of_images_does_not_cover(tmp_path: Path) -> None:
    more = {"budget": 1000, "budget_unit": "images", "options": OPTIONS}
    result, _ = tuned(tmp_path / "run", "blackvip", **more)
    assert result.units.images == 8 * 120


def test_a_grid_is_drawn_large_between_its_cells() -> None:
    cells = np.arange(12, dtype=np.float64)
    np.testing.assert_array_equal(drawn(cells, 2, 2), cells.reshape(2, 2, 3))
    large = drawn(cells, 2, 8)
    assert large.shape == (8, 8, 3)
    np.testing.assert_allclose(large[0, 0], cells[:3])
    np.testing.assert_allclose(large[-1, -1], cells[-3:])
    assert (np.diff(large[..., 0], axis=0) >= 0).all()


def test_pixels_are_rounded_and_cut_off() -> None:
    pixels = np.array([[[0, 100, 255]]], np.uint8)
    np.testing.assert_array_equal(
        prompted(pixels, np.array([[[-5.0, 0.6, 3.0]]])), [[[0, 101, 255]]]
    )
    assert prompted(OTHERS, None) is OTHERS


def test_it_is_resumed_to_the_same_prompt(tmp_path: Path) -> None:
    more = {"budget": 9, "options": OPTIONS}
    whole, journal = tuned(tmp_path / "run", "blackvip", **more)
    lines = (tmp_path / "run/journal.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run/journal.jsonl").write_text("".join(lines[:5]))
    black_box = FakeBlackBox(CLIP, PICTURES)
    settings = TuneSettings(recipe="blackvip", dim=16, scale=1.0, **more)
    again = tune(black_box, LABELS, settings, journal, pictures=list(PICTURES))
    assert again.adapter.digest == whole.adapter.digest
    assert black_box.charged.queries == 4
