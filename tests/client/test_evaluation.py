from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from craft_client.evaluation import (
    Evaluation,
    Metrics,
    keep_evaluation,
    metrics_of,
    read_evaluation,
    wilson,
)
from craft_client.journal import Journal, JournalError
from craft_shared.units import Units

from .run_folders import ADAPTER_DIGEST, CLASSES, EVALUATION, write_run

Damage = Callable[[dict[str, Any]], Any]


def log_probs(*rows: tuple[float, float, float]) -> Any:
    with np.errstate(divide="ignore"):
        return np.log(np.array(rows, np.float32))


# --- metrics --------------------------------------------------------------------------------------


def test_accuracy_confusion_and_classes_are_counted() -> None:
    """Four images: a cat, a cat taken for a dog, a dog, and no owl is ever right."""
    found = metrics_of(
        log_probs((0.8, 0.1, 0.1), (0.2, 0.7, 0.1), (0.0625, 0.875, 0.0625), (0.6, 0.2, 0.2)),
        np.array([0, 0, 1, 2]),
        CLASSES,
    )
    assert found.confusion == {"cat": {"cat": 1, "dog": 1}, "dog": {"dog": 1}, "owl": {"cat": 1}}
    assert (found.n, found.right, found.accuracy) == (4, 2, 50.0)
    assert found.images == {"cat": 2, "dog": 1, "owl": 1}
    assert str(found) == "50.0 % (15.0 to 85.0)"


@pytest.mark.parametrize(
    ("right", "n", "expected"),
    [
        # Newcombe, Statistics in Medicine 1998, table I, method 3.
        (81, 263, (25.53, 36.62)),
        (15, 148, (6.24, 16.05)),
        (0, 20, (0.0, 16.11)),
        (1, 29, (0.61, 17.18)),
        (20, 20, (83.89, 100.0)),  # what 0 of 20 has, from the other side
    ],
)
def test_wilsons_interval_is_newcombes(right: int, n: int, expected: tuple[float, float]) -> None:
    assert wilson(right, n) == pytest.approx(expected, abs=0.005)


def test_the_calibration_error_is_the_gap_of_each_bin_weighted_by_its_images() -> None:
    """Two in the bin to 10/15 (0.65 + 0.63, one right), one in that to 1 (0.95, right)."""
    found = metrics_of(
        log_probs((0.65, 0.35, 0), (0.63, 0.37, 0), (0.95, 0.05, 0)),
        np.array([0, 1, 0]),
        CLASSES,
    )
    expected = 100 * (abs(1 - 0.65 - 0.63) + abs(1 - 0.95)) / 3
    assert found.calibration_error == pytest.approx(expected, abs=1e-4)


def test_numbers_that_lack_a_constant_are_calibrated_as_probabilities() -> None:
    some, labels = log_probs((0.65, 0.35, 0), (0.1, 0.2, 0.7)), np.array([0, 2])
    shifted = metrics_of(some - np.float32(7), labels, CLASSES)
    whole = metrics_of(some, labels, CLASSES)
    assert shifted.calibration_error == pytest.approx(whole.calibration_error, abs=1e-4)
    assert metrics_of(some, labels, CLASSES, calibrated=False).calibration_error is None


def test_certain_and_right_is_calibrated_certain_and_wrong_is_not() -> None:
    certain = log_probs((1, 0, 0), (1, 0, 0))
    assert metrics_of(certain, np.array([0, 0]), CLASSES).calibration_error == 0
    assert metrics_of(certain, np.array([1, 2]), CLASSES).calibration_error == 100


def test_a_head_that_overflows_is_counted_and_not_calibrated() -> None:
    numbers = np.array([[0, np.nan, 0], [0, np.inf, 0]], np.float32)
    found = metrics_of(numbers, np.array([0, 1]), CLASSES)
    assert (found.n, found.calibration_error) == (2, None)


# --- the file -------------------------------------------------------------------------------------


def test_what_is_kept_is_read_and_has_all_its_numbers(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert keep_evaluation(run, EVALUATION) is None
    assert read_evaluation(run, ADAPTER_DIGEST) == EVALUATION
    card = (run / "adapter" / "README.md").read_text()
    tested, training = (
        card.index(f"## Accuracy on the {images}\n")
        for images in ("test split of animals, 10 pictures", "training pictures")
    )
    assert "| after: this adapter | 80.0 %" in card[tested:training]
    assert "| before: the plain prompt | 50.0 %" in card[tested:training]
    told = json.loads((run / "evaluation.json").read_bytes())
    assert (told["schema_version"], told["data"], told["split"]) == (1, "animals", "test")
    assert (told["n"], told["accuracy"], told["before"]["accuracy"]) == (10, 80.0, 50.0)
    assert told["interval"] == pytest.approx([49.02, 94.33], abs=0.01)
    assert told["confusion"]["dog"] == {"dog": 3, "owl": 1}
    assert told["per_class"][1] == {
        "name": "dog", "n": 4, "right_before": 1, "right": 3, "accuracy": 75.0
    }  # fmt: skip
    assert (told["calibration_bins"], told["calibration_error"]) == (15, 6.5)
    assert told["charged"]["queries"] == 2
    assert (told["model"], told["revision"], told["adapter"]) == ("pocket", "f00d", ADAPTER_DIGEST)
    assert told["evaluated_at"] == "2026-01-02T04:00:00+00:00"
    assert not list(run.glob("*.partial"))


def test_numbers_that_follow_from_the_counts_are_not_believed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "evaluation.json").write_text(
        json.dumps({**EVALUATION.document, "accuracy": 99.9, "interval": [99, 100], "n": 10**6})
    )
    found = read_evaluation(run, ADAPTER_DIGEST)
    assert found
    assert (found.n, found.accuracy) == (10, 80.0)


def changed(**fields: Any) -> Damage:
    return lambda document: {**document, **fields}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda document: json.dumps(document)[:-40], "is damaged, or of another version"),
        (lambda document: "[" * 100_000, "is damaged"),
        (lambda document: "", "is damaged"),
        (lambda document: b"\xff\xfe\x00", "is damaged"),
        (lambda document: [], "is damaged"),
        (changed(schema_version=2), "schema_version"),
        (changed(confusion={}), "no images"),
        (changed(confusion={"x" * 10**6: {"x": 1}}), "confusion."),
        (changed(confusion={"cat": {}}), "no images"),
        (changed(confusion={"cat": {"cat": 10**400}}), "confusion.cat.cat"),
        (changed(confusion={"cat": {"cat": -1}}), "confusion.cat.cat"),
        (changed(confusion={"cat": {"cat": 1}}), "of other images"),
        (changed(calibration_error=float("nan")), "calibration_error"),
        (changed(split="exam"), "split"),
        (changed(adapter="0" * 64), "is of another adapter than the run's"),
    ],
)
def test_a_file_that_is_damaged_or_foreign_is_told(
    tmp_path: Path, damage: Damage, words: str
) -> None:
    run = write_run(tmp_path / "run")
    content = damage(EVALUATION.document)
    content = json.dumps(content) if isinstance(content, dict | list) else content
    path = run / "evaluation.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(JournalError) as told:
        read_evaluation(run, ADAPTER_DIGEST)
    assert told.value.message.startswith(f"'{path}' is ")
    assert words in told.value.message
    assert "\n" not in told.value.message
    assert told.value.remedy == f"Measure anew: craft evaluate {run} --data DIR"
    assert keep_evaluation(run, EVALUATION) is None, "it is replaced"
    assert read_evaluation(run, ADAPTER_DIGEST) == EVALUATION


def test_a_file_larger_than_any_evaluation_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run", evaluation=EVALUATION)
    monkeypatch.setattr("craft_client.evaluation._MOST_BYTES", 100)
    with pytest.raises(JournalError, match="larger than any evaluation"):
        read_evaluation(run, ADAPTER_DIGEST)


def test_a_run_without_one_has_none(tmp_path: Path) -> None:
    assert read_evaluation(write_run(tmp_path / "run"), ADAPTER_DIGEST) is None


def test_the_test_split_of_the_runs_own_data_is_hidden_by_no_other(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    others = [
        EVALUATION.model_copy(update=update)
        for update in (
            {"data": "birds", "split": "validation"},
            {"data": "birds"},
            {"split": "validation"},
        )
    ]
    for better in (*others, EVALUATION, EVALUATION.model_copy(update={"model": "other"})):
        assert keep_evaluation(run, better) is None
        assert read_evaluation(run, ADAPTER_DIGEST) == better
    for worse in others:
        reason = keep_evaluation(run, worse)
        assert (
            reason
            == "what it holds, of the test split of animals, 10 pictures, says more of the run"
        )
    train = keep_evaluation(run, EVALUATION.model_copy(update={"split": "train"}))
    assert train == "tuning has seen pictures of the train split"
    kept = read_evaluation(run, ADAPTER_DIGEST)
    assert kept
    assert kept.model == "other"


def test_a_write_that_fails_leaves_the_one_before_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run", evaluation=EVALUATION)

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    later = EVALUATION.model_copy(update={"charged": Units(queries=9)})
    assert keep_evaluation(run, later) == (
        f"cannot write '{run / 'evaluation.json'}': No space left on device"
    )
    assert read_evaluation(run, ADAPTER_DIGEST) == EVALUATION
    assert not list(run.glob("*.partial"))


def test_a_run_that_another_process_is_at_is_not_written(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with Journal.claimed(run):
        reason = keep_evaluation(run, EVALUATION)
    assert reason
    assert f"the run in '{run}'" in reason
    assert not (run / "evaluation.json").exists()


def test_only_classes_with_images_have_an_accuracy() -> None:
    found = Evaluation(
        **EVALUATION.model_dump(exclude={"confusion", "before"}),
        confusion={"cat": {"cat": 1}, "dog": {}},
        before=Metrics(confusion={"cat": {"dog": 1}, "dog": {}}, calibration_error=None),
    )
    (one,) = found.per_class
    assert (one.name, one.accuracy_before, one.accuracy) == ("cat", 0.0, 100.0)
