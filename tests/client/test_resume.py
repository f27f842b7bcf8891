"""Runs that are interrupted and gone on with, by every recipe."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from craft_client import tuning_run
from craft_client.blackbox import Scores
from craft_client.exceptions import CraftError
from craft_client.journal import LINES_FILE, Journal, JournalError
from craft_client.recipes import OWN, craftbox, paper
from craft_client.tune import AnswerError, TuneResult, TuneSettings, run_document, tune

from .fake_clip import FakeBlackBox, FakeClip

CLIP = FakeClip(5, ignorance=2.0)
PICTURES, LABELS = CLIP.pictures(6)
CRAFTBOX = TuneSettings(budget=100, dim=8, texts=("thing 1", "thing 2"))
STRICT = TuneSettings(budget=512, dim=8, random_codes=511)
PAPER = TuneSettings(
    recipe="paper", population=4, dim=8, random_codes=0, budget=1 + 8 * 5, hidden=16, scale=1.0
)
ALONE = {"population": 4, "dim": 8, "scale": 1.0}
BBT = TuneSettings(recipe="bbt", budget=1 + 8 * 5, **ALONE)
# Each asks eight requests or more; craftbox's own asks one, unless in strict access.
MANY = (
    STRICT,
    PAPER,
    BBT,
    TuneSettings(recipe="random", budget=1 + 12 * 4, **ALONE),
    TuneSettings(recipe="spsa", budget=1 + 12 * 2, **ALONE),
    # A last, smaller generation each.
    TuneSettings(
        recipe="zip", budget=1 + 12 * 4 + 2, **ALONE, options={"batch": 7, "directions": 2}
    ),
    TuneSettings(recipe="words", budget=1 + 12 * 4 + 2, **ALONE, options={"population": 4}),
    TuneSettings(recipe="bpt-text", budget=1 + 12 * 4 + 2, **ALONE, options={"population": 4}),
)
RECIPES = pytest.mark.parametrize("settings", MANY, ids=lambda settings: settings.recipe)


def test_every_recipe_is_interrupted_here() -> None:
    elsewhere = {"blackvip", "descriptions", "sim"}  # of images made, and of two requests
    assert {settings.recipe for settings in MANY} | elsewhere == set(OWN)


@pytest.fixture(autouse=True)
def _never_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are doubled to the last."""
    monkeypatch.setattr(craftbox, "enough", lambda first, second: False)


class Killed(BaseException):
    """What no code catches by accident."""


class Mortal(FakeBlackBox):
    """Ends the run after some requests, once the last one was charged, before it is answered."""

    def __init__(self, requests: int, **more: Any) -> None:
        super().__init__(CLIP, PICTURES, **more)
        self._requests = requests

    def score(self, **question: Any) -> Scores:
        scores = super().score(**question)
        if self.charged.requests > self._requests:
            raise Killed
        half = scores.log_probs.astype(np.float16).astype(np.float32)
        return replace(scores, log_probs=half)


def begin(folder: Path, settings: TuneSettings, black_box: FakeBlackBox) -> TuneResult:
    journal = Journal.create(folder, run_document(black_box, LABELS, settings))
    return tune(black_box, LABELS, settings, journal)


def resume(folder: Path, settings: TuneSettings, black_box: FakeBlackBox) -> TuneResult:
    return tune(black_box, LABELS, settings, Journal.open(folder))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TuneSettings], TuneResult]:
    """What runs come to that nothing interrupts: once for each settings, to compare with."""
    results: dict[int, TuneResult] = {}

    def result_of(settings: TuneSettings) -> TuneResult:
        if id(settings) not in results:
            folder = tmp_path_factory.mktemp("whole") / "run"
            results[id(settings)] = begin(folder, settings, Mortal(1000))
        return results[id(settings)]

    return result_of


def interrupted(folder: Path, settings: TuneSettings, requests: int) -> None:
    with pytest.raises(Killed):
        begin(folder, settings, Mortal(requests))


@RECIPES
@pytest.mark.parametrize("requests", [0, 1, 2, 3, 6, 7])
def test_a_resumed_run_ends_as_if_it_had_never_stopped(
    tmp_path: Path,
    uninterrupted: Callable[[TuneSettings], TuneResult],
    settings: TuneSettings,
    requests: int,
) -> None:
    whole = uninterrupted(settings)
    interrupted(tmp_path / "run", settings, requests)
    black_box = Mortal(1000)
    result = resume(tmp_path / "run", settings, black_box)
    assert result.adapter.to_bytes() == whole.adapter.to_bytes()
    assert result.history == whole.history
    assert result.units == whole.units
    assert black_box.charged.requests == whole.units.requests - requests


def test_one_query_that_was_charged_and_never_heard_of_is_sent_again_by_its_name(
    tmp_path: Path,
    uninterrupted: Callable[[TuneSettings], TuneResult],
) -> None:
    whole = uninterrupted(CRAFTBOX)
    interrupted(tmp_path / "run", CRAFTBOX, 0)
    black_box = Mortal(1000)
    result = resume(tmp_path / "run", CRAFTBOX, black_box)
    assert black_box.names == ["000000"]
    assert result.adapter.to_bytes() == whole.adapter.to_bytes()


def _kept(folder: Path) -> list[bool]:
    journal = Journal.open(folder)
    return ["log_probs" in journal.tensors(line["tensors"][0]) for line in journal.lines()]


@pytest.mark.parametrize("held", [0, 1000])
def test_what_the_head_has_learnt_is_saved_in_place_of_the_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    whole = begin(tmp_path / "whole", PAPER, Mortal(1000))
    assert sum(_kept(tmp_path / "whole")) == 1 + PAPER.generations()
    monkeypatch.setattr(paper, "HELD_BYTES", held)
    result = begin(tmp_path / "run", PAPER, Mortal(1000))
    assert result.adapter.to_bytes() == whole.adapter.to_bytes()
    kept = _kept(tmp_path / "run")
    assert kept[0]
    one = LABELS.size * len(CLIP.names) * 2
    assert sum(kept[1:]) * one <= held


@pytest.mark.parametrize("held", [0, 1000])
@pytest.mark.parametrize("requests", [2, 3, 4, 5, 8, 9])
def test_a_run_is_resumed_from_what_the_head_has_learnt(
    tmp_path: Path,
    uninterrupted: Callable[[TuneSettings], TuneResult],
    monkeypatch: pytest.MonkeyPatch,
    held: int,
    requests: int,
) -> None:
    whole = uninterrupted(PAPER)
    monkeypatch.setattr(paper, "HELD_BYTES", held)
    interrupted(tmp_path / "run", PAPER, requests)
    black_box = Mortal(1000)
    result = resume(tmp_path / "run", PAPER, black_box)
    assert result.adapter.to_bytes() == whole.adapter.to_bytes()
    assert result.history == whole.history
    assert black_box.charged.requests == whole.units.requests - requests


def test_a_run_that_was_killed_while_it_saved_is_resumed(
    tmp_path: Path,
    uninterrupted: Callable[[TuneSettings], TuneResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The checkpoint is there, and so are the answers that it stands for."""
    whole = uninterrupted(PAPER)
    monkeypatch.setattr(paper, "HELD_BYTES", 1000)
    replace_tensors = Journal.replace

    def killed(*_arguments: Any) -> None:
        raise Killed

    monkeypatch.setattr(Journal, "replace", killed)
    interrupted(tmp_path / "run", PAPER, 1000)
    monkeypatch.setattr(Journal, "replace", replace_tensors)
    result = resume(tmp_path / "run", PAPER, Mortal(1000))
    assert result.adapter.to_bytes() == whole.adapter.to_bytes()
    assert result.history == whole.history


@RECIPES
def test_a_request_has_the_same_name_when_it_is_sent_again(
    tmp_path: Path, settings: TuneSettings
) -> None:
    interrupted(tmp_path / "run", settings, 3)
    black_box = Mortal(1000)
    resume(tmp_path / "run", settings, black_box)
    assert black_box.names[:2] == ["000003", "000004"]


def test_an_ended_run_whose_files_are_missing_is_finished_without_a_question(
    tmp_path: Path,
) -> None:
    whole = begin(tmp_path / "run", CRAFTBOX, Mortal(1000))
    (tmp_path / "run" / "summary.json").unlink()
    black_box = Mortal(1000, queries=0)
    assert resume(tmp_path / "run", CRAFTBOX, black_box).adapter.digest == whole.adapter.digest
    assert black_box.charged.requests == 0
    assert Journal.open(tmp_path / "run").finished


def test_a_line_that_was_cut_short_is_asked_for_again(
    tmp_path: Path, uninterrupted: Callable[[TuneSettings], TuneResult]
) -> None:
    whole = uninterrupted(BBT)
    interrupted(tmp_path / "run", BBT, 5)
    lines = tmp_path / "run" / LINES_FILE
    os.truncate(lines, lines.stat().st_size - 7)
    black_box = Mortal(1000)
    assert resume(tmp_path / "run", BBT, black_box).adapter.digest == whole.adapter.digest
    assert black_box.names[0] == "000004"
    assert len(list(Journal.open(tmp_path / "run").lines())) == whole.units.requests


def test_a_purse_that_is_empty_by_now_ends_the_resumed_run_in_good_order(tmp_path: Path) -> None:
    """Between two generations: within one, its answers would be of no use."""
    interrupted(tmp_path / "run", BBT, 5)
    result = resume(tmp_path / "run", BBT, Mortal(1000, queries=0))
    assert result.units.requests == 5
    assert result.stopped_by is not None


def test_a_purse_that_is_empty_by_now_ends_resumed_doublings_in_good_order(tmp_path: Path) -> None:
    interrupted(tmp_path / "run", STRICT, 4)
    result = resume(tmp_path / "run", STRICT, Mortal(1000, queries=0))
    assert result.units.queries == 4 + 4 + 8 + 16
    assert result.stopped_by is not None


def test_a_run_that_was_searched_by_other_codes_is_not_gone_on_with(tmp_path: Path) -> None:
    interrupted(tmp_path / "run", BBT, 4)
    with pytest.raises(JournalError, match="other codes"):
        resume(tmp_path / "run", replace(BBT, sigma=0.5), Mortal(1000))


def test_an_answer_that_could_not_be_used_still_cannot(tmp_path: Path) -> None:
    class Broken(FakeBlackBox):
        def score(self, **question: Any) -> Scores:
            scores = super().score(**question)
            return replace(scores, log_probs=np.full_like(scores.log_probs, np.nan))

    with pytest.raises(AnswerError) as first:
        begin(tmp_path / "run", BBT, Broken(CLIP, PICTURES))
    black_box = Mortal(1000)
    with pytest.raises(AnswerError) as second:
        resume(tmp_path / "run", BBT, black_box)
    assert str(first.value) == str(second.value)
    assert black_box.charged.requests == 0


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 3)


@RECIPES
@pytest.mark.parametrize(
    ("damage", "numbers"),
    [(_empty, [0]), (_cut, [0, 1, 4]), (Path.unlink, [2]), (_cut, [5])],
    ids=["the first, empty", "several, cut short", "one, gone", "the last, cut short"],
)
def test_answers_whose_tensors_are_damaged_are_fetched_under_their_names(
    tmp_path: Path,
    uninterrupted: Callable[[TuneSettings], TuneResult],
    settings: TuneSettings,
    damage: Callable[[Path], None],
    numbers: list[int],
) -> None:
    """As a power failure leaves them."""
    whole = uninterrupted(settings)
    interrupted(tmp_path / "run", settings, 6)
    names = [f"{number:06d}" for number in numbers]
    for name in names:
        damage(tmp_path / "run/tensors" / f"{name}.safetensors")
    black_box = Mortal(1000)
    result = resume(tmp_path / "run", settings, black_box)
    assert black_box.names[: len(names) + 1] == [*names, "000006"]
    assert result.adapter.to_bytes() == whole.adapter.to_bytes()
    assert (result.history, result.units) == (whole.history, whole.units)
    again = Mortal(1000, queries=0)
    (tmp_path / "run/summary.json").unlink()
    resume(tmp_path / "run", settings, again)
    assert again.names == [], "what came again is in the journal again"


@pytest.mark.parametrize("damaged", ["checkpoint", "000001", "000002"])
def test_what_a_damaged_checkpoint_stood_for_is_fetched(
    tmp_path: Path,
    uninterrupted: Callable[[TuneSettings], TuneResult],
    monkeypatch: pytest.MonkeyPatch,
    damaged: str,
) -> None:
    whole = uninterrupted(PAPER)
    monkeypatch.setattr(paper, "HELD_BYTES", 0)
    interrupted(tmp_path / "run", PAPER, 7)
    _empty(tmp_path / "run/tensors" / f"{damaged}.safetensors")
    black_box = Mortal(1000)
    result = resume(tmp_path / "run", PAPER, black_box)
    # Those that the head learns from, and what else is damaged; then the rest of the run.
    lost = {"000002", "000004", "000006"} | ({damaged} - {"checkpoint"})
    assert set(black_box.names[: len(lost)]) == lost
    assert black_box.names[len(lost)] == "000007"
    assert result.adapter.to_bytes() == whole.adapter.to_bytes()
    assert (result.history, result.units) == (whole.history, whole.units)


def test_an_answer_that_the_server_may_have_forgotten_is_not_paid_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path / "run", BBT, 6)
    _empty(tmp_path / "run/tensors/000003.safetensors")
    black_box = Mortal(1000)
    monkeypatch.setattr(tuning_run, "REMEMBERED", timedelta(0))
    with pytest.raises(JournalError) as refused:
        resume(tmp_path / "run", BBT, black_box)
    message = str(refused.value)
    assert "has lost what request 3 brought (4 queries): its file '000003'" in message
    assert "Nothing was charged" in message
    assert "tune anew" in message
    assert black_box.charged.requests == 0


def test_an_answer_that_the_server_does_not_give_again_is_said_to_be_lost(tmp_path: Path) -> None:
    interrupted(tmp_path / "run", BBT, 6)
    _empty(tmp_path / "run/tensors/000003.safetensors")

    class Forgetful(Mortal):
        def score(self, **question: Any) -> Scores:
            raise CraftError("It is too late.")

    lost = r"lost what request 3 .* does not give it again: It is too late\."
    with pytest.raises(JournalError, match=lost):
        resume(tmp_path / "run", BBT, Forgetful(1000))
