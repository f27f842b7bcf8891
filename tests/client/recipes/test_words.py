"""Words: who proposes is a plain callable, and the best template is deployed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from craft_client.exceptions import UnusablePlugin
from craft_client.recipes.words import MOST_WORDS, mutated, run_words

from ..fake_clip import FakeBlackBox
from .field import CLIP, PICTURES, tuned


class Reading(FakeBlackBox):
    """A model that sees better through templates that say `really`, the oftener the better."""

    def score(self, *, templates: Sequence[str] = (), **more: Any) -> Any:
        scores = super().score(templates=templates, **more)
        for row, template in enumerate(templates):
            truth = np.repeat(np.arange(5), 8)
            scores.log_probs[row, np.arange(40), truth] += 0.1 * template.count("really")
        return scores


def really(best: Any, worst: Any, count: int, generator: Any) -> list[str]:
    template, _ = best[0]
    assert best[0][1] <= worst[-1][1]
    return [template.replace("{}", "really {}"), template, "dull {}"][:count]


def test_the_template_of_least_loss_is_deployed(tmp_path: Path) -> None:
    method = partial(run_words, proposer=really)
    method.__name__ = "wordy"  # type: ignore[attr-defined]
    result, journal = tuned(tmp_path / "run", method, Reading(CLIP, PICTURES), budget=8)
    assert result.adapter.config.templates == [
        "a photo of a {}.",
        "a photo of a " + "really " * 6 + "{}.",
    ]
    assert [line["prompts"] for line in journal.lines()] == [1, 2, 1, 1, 1, 1, 1]
    least = [entry["best_loss"] for entry in result.history]
    assert least == sorted(least, reverse=True)


def test_no_better_template_deploys_the_plain_prompt(tmp_path: Path) -> None:
    result, journal = tuned(tmp_path / "run", "words", budget=31)
    assert journal.summary()["deployed"] == "the plain prompt"
    assert result.units.queries == 31, "20 and then 10 templates"
    assert result.adapter.config.templates == ["a photo of a {}."]


def test_what_is_proposed_from_lists_is_new_and_has_one_gap() -> None:
    best = [("a photo of a {}.", 1.0), ("a sketch of the {}.", 1.2)]
    found = mutated(best, best, 40, np.random.default_rng(0))
    assert len(set(found)) == len(found) == 40
    assert all(text.count("{}") == 1 for text in found)
    assert all(len(text.split()) <= MOST_WORDS for text in found)
    assert not {text for text, _ in best} & set(found)
    assert found == mutated(best, best, 40, np.random.default_rng(0))


def test_a_proposer_in_a_file_is_asked(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "def ask(best, worst, count, generator):\n    return ['my {}', 'your {}']\n"
    )
    options = {"proposer": f"{tmp_path}/own.py:ask"}
    _, journal = tuned(tmp_path / "run", "words", budget=50, options=options)
    assert [line["templates"] for line in journal.lines()][1:] == [["my {}", "your {}"]]


def test_a_proposer_that_is_not_there_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    black_box = FakeBlackBox(CLIP, PICTURES)
    with pytest.raises(UnusablePlugin, match=r"'nobody' is not FILE\.py:NAME"):
        tuned(tmp_path / "run", "words", black_box, options={"proposer": "nobody"})
    assert black_box.charged.requests == 0
