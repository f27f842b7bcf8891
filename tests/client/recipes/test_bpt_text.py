"""BPT-VLM's text half: the best code of all, and a last generation in part."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .field import tuned


def test_the_best_code_of_all_is_deployed_and_the_budget_is_spent(tmp_path: Path) -> None:
    result, journal = tuned(tmp_path / "run", "bpt-text", budget=308, dim=8)
    assert result.units.queries == 308
    lines = list(journal.lines())
    assert [line["prompts"] for line in lines] == [1] + [15] * 20 + [7]
    tensors = [journal.tensors(line["tensors"][0]) for line in lines[1:]]
    losses = np.concatenate([one["losses"] for one in tensors])
    codes = np.concatenate([one["codes"] for one in tensors])
    np.testing.assert_array_equal(result.adapter.codes[0], codes[losses.argmin()])
    assert losses.min() < result.history[0]["loss"] - 0.3


def test_a_budget_below_a_generation_is_used_too(tmp_path: Path) -> None:
    result, _ = tuned(tmp_path / "run", "bpt-text", budget=4, dim=8)
    assert result.units.queries == 4
