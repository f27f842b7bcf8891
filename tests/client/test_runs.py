from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from craft_client.journal import LINES_FILE, RUN_FILE, SUMMARY_FILE, Journal, JournalError
from craft_client.recipes import OWN
from craft_client.runs import Point, Run, runs_below
from craft_client.tune import TuneSettings, run_document, tune
from craft_shared.units import Units

from .fake_clip import FakeBlackBox, FakeClip
from .run_folders import ANSWERS, answer, write_run

# --- one run --------------------------------------------------------------------------------------


def test_points_add_up_what_was_charged_and_have_the_summarys_accuracies(tmp_path: Path) -> None:
    run = Run.load(write_run(tmp_path / "run"))
    assert run.points == (
        Point(4, 120, 2.5, 2.0, 50.0, 4_000),
        Point(12, 360, 2.25, 1.5, 60.0, 12_000),
        Point(20, 600, 2.0, 1.5, 62.5, 20_000),
        Point(28, 840, 1.75, 1.25, 70.0, 28_000),
    )
    assert run.units == Units(queries=28, predictions=840, texts=84, requests=4)
    assert run.cost_micros == 28_000
    assert (run.name, run.data, run.state, run.prompts) == ("run", "animals", "finished", 2)


def test_a_generation_of_two_requests_is_one_point_with_the_populations_loss(
    tmp_path: Path,
) -> None:
    answers = [answer(0, 1, 2.5, 2.5), answer(1, 8, 2.0, 1.5), answer(1, 1, 1.0, 1.0)]
    run = Run.load(write_run(tmp_path / "run", answers=answers))
    assert [(point.queries, point.loss, point.best_loss) for point in run.points] == [
        (1, 2.5, 2.5),
        (10, 2.0, 1.5),
    ]
    assert [point.accuracy for point in run.points] == [50.0, 60.0]


def test_an_unfinished_run_has_all_but_accuracies(tmp_path: Path) -> None:
    run = Run.load(write_run(tmp_path / "run", finished=False))
    assert (run.state, run.summary, run.prompts) == ("unfinished", None, None)
    assert [point.accuracy for point in run.points] == [None] * 4
    assert run.accuracies == []
    assert run.units.queries == 28
    assert run.points[-1].loss == 1.75


def test_a_line_that_a_crash_cut_short_is_neither_counted_nor_removed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", finished=False)
    with (folder / LINES_FILE).open("ab") as file:
        file.write(b'{"generation": 4, "cha')
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert Run.load(folder).units.queries == 28
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_cost_is_unknown_from_the_line_on_that_does_not_tell_it(tmp_path: Path) -> None:
    answers = [ANSWERS[0], answer(1, 8, 2.25, 1.5, cost_micros=None), *ANSWERS[2:]]
    run = Run.load(write_run(tmp_path / "run", answers=answers))
    assert [point.cost_micros for point in run.points] == [4_000, None, None, None]
    assert run.cost_micros is None


def test_an_answer_that_could_not_be_used_is_counted_and_told_but_no_point(tmp_path: Path) -> None:
    unusable = answer(4, 8, 0, 0, error="the answer holds NaN")
    del unusable["best_loss"], unusable["mean_loss"]
    run = Run.load(write_run(tmp_path / "run", answers=[*ANSWERS, unusable], finished=False))
    assert run.failure == "the answer holds NaN"
    assert run.units.queries == 36
    assert len(run.points) == 4


def test_a_run_of_the_classifier_has_no_data_set(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    document = json.loads((folder / RUN_FILE).read_text())
    del document["data"], document["settings"]["shots"]
    (folder / RUN_FILE).write_text(json.dumps(document))
    run = Run.load(folder)
    assert (run.data, run.about.settings.shots) == ("unknown", None)


@pytest.mark.parametrize("recipe", [name for name in OWN if name != "descriptions"])
def test_what_tuning_leaves_is_read(tmp_path: Path, recipe: Any) -> None:
    clip = FakeClip(5, ignorance=2.0)
    pictures, labels = clip.pictures(6)
    settings = TuneSettings(
        recipe=recipe, budget=50, population=4, dim=8, random_codes=3, hidden=16, scale=1.0
    )
    black_box = FakeBlackBox(clip, pictures)
    journal = Journal.create(tmp_path / "run", run_document(black_box, labels, settings))
    result = tune(black_box, labels, settings, journal, pictures=list(pictures))
    run = Run.load(tmp_path / "run")
    assert run.summary
    assert run.units == result.units
    assert run.prompts == result.adapter.config.prompts
    assert run.summary.accuracy_after == result.accuracy_after
    assert [(point.queries, point.loss, point.accuracy) for point in run.points] == [
        (entry["queries"], pytest.approx(entry["loss"]), entry["accuracy"])
        for entry in result.history
    ]


def remove(folder: Path, name: str) -> None:
    (folder / name).unlink()


def replace_text(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ((remove, RUN_FILE), "run.json' does not exist"),
        ((remove, LINES_FILE), "Cannot read"),
        ((remove, "adapter/adapter_config.json"), "adapter_config.json"),
        ((replace_text, RUN_FILE, "{", ""), "run.json' is not valid JSON"),
        ((replace_text, RUN_FILE, '"revision"', '"version"'), r"run.json' .*: revision: "),
        ((replace_text, LINES_FILE, '"queries":8', '"queries":-8'), "line 2, .*charged.queries"),
        ((replace_text, LINES_FILE, '{"stage"', '[{"stage"'), "line 1, is damaged"),
        ((replace_text, SUMMARY_FILE, "72.5", "NaN"), "summary.json' .*accuracy_after"),
        ((replace_text, "adapter/adapter_config.json", "f00d", '"'), "adapter_config.json' is"),
    ],
)
def test_damage_is_told_by_file_and_field(tmp_path: Path, damage: Any, words: str) -> None:
    folder = write_run(tmp_path / "run")
    Run.load(folder)
    do, *arguments = damage
    do(folder, *arguments)
    with pytest.raises(JournalError, match=words):
        Run.load(folder)


# --- many runs ------------------------------------------------------------------------------------


def test_runs_are_found_at_any_depth_by_path(tmp_path: Path) -> None:
    for name in ("b", "a/deep", "a/deep/er", "c/adapter"):
        write_run(tmp_path / name)
    runs, damaged = runs_below(tmp_path)
    assert [run.folder.relative_to(tmp_path).as_posix() for run in runs] == [
        "a/deep",
        "a/deep/er",
        "b",
        "c/adapter",
    ]
    assert damaged == []


def test_the_folder_may_be_a_run_itself(tmp_path: Path) -> None:
    runs, _ = runs_below(write_run(tmp_path / "run"))
    assert [run.name for run in runs] == ["run"]


def test_a_runs_own_files_are_no_runs(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "tensors" / RUN_FILE).write_text("{}")
    assert runs_below(tmp_path)[1] == []


def test_damaged_runs_are_named_and_hide_no_others(tmp_path: Path) -> None:
    for name in "abc":
        write_run(tmp_path / name)
    (tmp_path / "a" / RUN_FILE).write_text("{")
    (tmp_path / "b" / RUN_FILE).unlink()
    runs, damaged = runs_below(tmp_path)
    assert [run.name for run in runs] == ["c"]
    assert [bad.folder.name for bad in damaged] == ["a", "b"]
    assert "run.json' is not valid JSON" in damaged[0].reason
    assert "run.json' does not exist" in damaged[1].reason


def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "locked").mkdir()
    real = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    runs, damaged = runs_below(tmp_path)
    assert [run.name for run in runs] == ["run"]
    assert [(bad.folder.name, bad.reason) for bad in damaged] == [
        ("locked", "Cannot be read: Permission denied.")
    ]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"(?s)no folder '.*nowhere'.*Name the folder"):
        runs_below(tmp_path / "nowhere")
