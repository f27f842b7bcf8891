"""Descriptions: read from a file, scored alone, averaged by class, chosen by training loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from craft_client.exceptions import DataError
from craft_client.recipes.descriptions import chosen, read_descriptions
from craft_shared.head import centred, log_softmax

from ..fake_clip import FakeBlackBox
from .field import CLIP, OTHERS, PICTURES, accuracies, tuned


def write(folder: Path, document: Any) -> str:
    path = folder / "descriptions.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A class is described by its own name's look, or by that of something else."""
    texts = {name: [f"{name} {number}" for number in range(3)] for name in CLIP.names}
    return write(tmp_path, texts)


def test_classes_score_the_mean_of_their_descriptions(tmp_path: Path, file: str) -> None:
    result, journal = tuned(tmp_path / "run", "descriptions", budget=2, options={"file": file})
    assert result.units.queries == 2
    assert result.units.texts == 5 + 15
    config = result.adapter.config
    assert config.templates == ["a photo of a {}.", "{}"]
    log_probs = CLIP.log_probs(CLIP.features(OTHERS), config.scored, config.templates)
    means = centred(log_probs)[1, :, 5:].reshape(len(OTHERS), 5, 3).mean(axis=2)
    np.testing.assert_allclose(
        result.adapter.head(log_probs), log_softmax(means), rtol=1e-3, atol=1e-3
    )
    assert journal.summary()["deployed"] == "the mean of all descriptions"


def test_descriptions_that_raise_the_training_loss_are_left_out(tmp_path: Path, file: str) -> None:
    everything, _ = tuned(tmp_path / "all", "descriptions", budget=2, options={"file": file})
    select = {"file": file, "select": True}
    result, _ = tuned(tmp_path / "some", "descriptions", budget=2, options=select)
    assert 5 <= len(result.adapter.config.texts) < 15
    assert result.history[-1]["loss"] < everything.history[-1]["loss"]
    assert accuracies(result)[1] >= 0


def test_a_choice_never_leaves_a_class_without_a_description() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(20, 6)).astype(np.float32)
    owners = np.kron(np.eye(3, dtype=np.float32), np.ones((2, 1), np.float32))
    found, loss = chosen(scores, owners, np.arange(20) % 3)
    assert (found.sum(axis=0) >= 1).all()
    assert np.isfinite(loss)


def test_names_are_found_as_people_write_them(tmp_path: Path) -> None:
    path = write(tmp_path, {"Big_Cat": ["a large cat", "a large cat", "x" * 201], "dog": ["a dog"]})
    assert read_descriptions(Path(path), ["big cat", "dog"], 10) == [["a large cat"], ["a dog"]]
    more = {"a": [f"text {number}" for number in range(5)]}
    assert len(read_descriptions(Path(write(tmp_path, more)), ["a"], 2)[0]) == 2


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ([1], "are no JSON object"),
        ({"class 0": ["a"]}, "have none of 'class 1'"),
        ({name: ["=1+1"] for name in CLIP.names}, "have none of 'class 0'"),
        (dict.fromkeys(CLIP.names, "a"), "have none of 'class 0'"),
    ],
)
def test_a_file_that_cannot_be_used_is_said_before_anything_is_asked(
    tmp_path: Path, document: Any, words: str
) -> None:
    black_box = FakeBlackBox(CLIP, PICTURES)
    with pytest.raises(DataError, match=words):
        tuned(
            tmp_path / "run",
            "descriptions",
            black_box,
            options={"file": write(tmp_path, document)},
        )
    assert black_box.charged.requests == 0


def test_no_file_is_said_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--set file=FILE\.json"):
        tuned(tmp_path / "run", "descriptions")
