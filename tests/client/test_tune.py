from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from craft_client.blackbox import Question, Scores
from craft_client.exceptions import BudgetExhausted, CraftError, problem_error
from craft_client.journal import Journal, JournalError
from craft_client.losses import accuracy
from craft_client.tune import (
    AnswerError,
    SettingsError,
    TuneProgress,
    TuneResult,
    TuneSettings,
    run_document,
    run_settings,
    tune,
)
from craft_shared import problems
from craft_shared.adapter import Adapter
from craft_shared.head import Unrefined
from craft_shared.problems import Problem
from craft_shared.units import Units
from craft_shared.wire import Budget

from .fake_clip import FakeBlackBox, FakeClip, budget

CLIP = FakeClip(6, ignorance=2.0)
PICTURES, LABELS = CLIP.pictures(5)
TEXTS = tuple(f"thing {number}" for number in range(40))
OPEN = TuneSettings(dim=8, texts=TEXTS, shots=5)
STRICT = TuneSettings(budget=128, dim=8, shots=5)
# A run of many requests, each of so many queries.
SMALL = TuneSettings(recipe="random", budget=1 + 14 * 8, population=8, dim=8, scale=1.0, shots=5)
PAPER = TuneSettings(recipe="paper", budget=1 + 20 * 9, population=8, dim=8, scale=1.0, shots=5)

Tune = Callable[..., tuple[TuneResult, Journal]]


@pytest.fixture
def tuned(tmp_path: Path) -> Tune:
    runs = iter(range(1000))

    def run(
        options: TuneSettings = SMALL,
        *,
        clip: FakeClip = CLIP,
        shots: int = 5,
        black_box: FakeBlackBox | None = None,
        on_progress: Callable[[TuneProgress], None] = lambda progress: None,
    ) -> tuple[TuneResult, Journal]:
        pictures, labels = clip.pictures(shots)
        black_box = black_box or FakeBlackBox(clip, pictures)
        document = run_document(black_box, labels, options)
        journal = Journal.create(tmp_path / f"run-{next(runs)}", document)
        return tune(black_box, labels, options, journal, on_progress), journal

    return run


def _test_accuracy(clip: FakeClip, adapter: Adapter) -> float:
    pictures, labels = clip.pictures(60, seed=1)
    config = adapter.config
    codes = adapter.codes if config.codes else None
    log_probs = clip.log_probs(
        clip.features(pictures), config.scored, config.templates, config.context, codes
    )
    return accuracy(adapter.head(log_probs), labels)


# --- what a run comes to --------------------------------------------------------------------------


@pytest.mark.parametrize("options", [OPEN, STRICT], ids=["open text", "strict"])
def test_the_adapter_classifies_new_pictures_better_than_the_plain_prompt(
    tuned: Tune, options: TuneSettings
) -> None:
    clip = FakeClip(10, ignorance=2.0)
    result, _ = tuned(options, clip=clip)
    pictures, labels = clip.pictures(60, seed=1)
    plain = clip.log_probs(clip.features(pictures), clip.names, [options.template])
    assert _test_accuracy(clip, result.adapter) > accuracy(plain[0], labels) + 15
    assert result.accuracy_after is not None
    assert result.accuracy_after > result.accuracy_before


def test_search_lowers_the_loss(tuned: Tune) -> None:
    options = replace(SMALL, recipe="bbt", budget=1000, sigma=0.5)
    result, _ = tuned(options, clip=FakeClip(6, ignorance=2.0))
    _, first, *_, last = result.history
    assert last["loss"] < first["loss"] - 0.2
    assert last["best_loss"] < first["best_loss"] - 0.2


def test_further_texts_show_more_of_a_picture_than_the_class_names(tuned: Tune) -> None:
    clip = FakeClip(6, ignorance=4.0)
    alone = tuned(replace(STRICT, random_codes=0, budget=1), clip=clip)[0]
    result, journal = tuned(replace(OPEN, keep_texts=16), clip=clip)
    config = result.adapter.config
    assert journal.summary()["deployed"] == "ridge"
    assert (config.access_mode, len(config.texts)) == ("open-text", 16)
    assert set(config.texts) < set(TEXTS)
    assert config.classes == clip.names
    assert result.units == Units(queries=1, predictions=30, texts=6 + 40, requests=1)
    assert _test_accuracy(clip, result.adapter) > _test_accuracy(clip, alone.adapter) + 5


def test_a_vocabulary_smaller_than_what_is_kept_is_kept_whole(tuned: Tune) -> None:
    options = replace(OPEN, texts=TEXTS[:5], keep_texts=64)
    result, _ = tuned(options, clip=FakeClip(6, ignorance=2.0))
    assert result.units.texts == 11
    assert result.adapter.config.texts == list(TEXTS[:5])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"texts": ("a", "a")}, "'a' is there twice"),
        ({"texts": ("class 1",)}, "'class 1' is a class name"),
        ({"texts": ("a",), "recipe": "paper"}, "a setting of 'craftbox'; 'paper' reads none"),
        ({"texts": ("a",), "keep_texts": 0}, "keep_texts is 0"),
    ],
)
def test_texts_that_cannot_be_used_are_refused(
    tuned: Tune, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError) as error:
        tuned(replace(STRICT, **options))
    assert words in " ".join(f"{field.field} {field.message}" for field in error.value.errors)


def test_equal_arguments_give_equal_adapters_and_seeds_differ(tuned: Tune) -> None:
    first, second = (tuned(STRICT)[0].adapter.to_bytes() for _ in range(2))
    assert first == second
    assert tuned(replace(STRICT, seed=2))[0].adapter.to_bytes() != first


def test_seed_zero_is_a_seed(tuned: Tune) -> None:
    zero = replace(STRICT, seed=0)
    assert tuned(zero)[0].adapter.to_bytes() == tuned(zero)[0].adapter.to_bytes()


@pytest.mark.parametrize("options", [OPEN, STRICT, SMALL], ids=["open text", "strict", "random"])
def test_the_adapter_says_where_it_comes_from(tuned: Tune, options: TuneSettings) -> None:
    result, journal = tuned(options)
    config = result.adapter.config
    assert (config.model, config.revision, config.classes) == ("fake", "0", CLIP.names)
    assert config.provenance.seed == options.seed
    assert config.provenance.shots == 5
    assert config.provenance.accuracy_before == result.accuracy_before
    assert config.provenance.accuracy_after == result.accuracy_after
    assert config.provenance.units == result.units
    assert journal.adapter().digest == result.adapter.digest


@pytest.mark.parametrize("options", [OPEN, STRICT], ids=["open text", "strict"])
def test_few_noisy_pictures_cost_a_good_plain_prompt_little_on_average(
    tuned: Tune, options: TuneSettings
) -> None:
    changes = []
    for seed in range(10):
        clip = FakeClip(6, seed=seed)
        result, _ = tuned(options, clip=clip, shots=2)
        pictures, labels = clip.pictures(60, seed=1)
        plain = clip.log_probs(clip.features(pictures), clip.names, [options.template])
        changes.append(_test_accuracy(clip, result.adapter) - accuracy(plain[0], labels))
    assert np.mean(changes) > -2


def test_heads_that_improve_nothing_are_not_deployed(tuned: Tune) -> None:
    clip = FakeClip(4, ignorance=0.0, noise=1)
    result, journal = tuned(OPEN, clip=clip)
    assert result.accuracy_before == 100.0
    summary = journal.summary()
    losses = {one["name"]: one["loss"] for one in summary["candidates"]}
    assert losses["plain"] < losses["ridge"]
    assert summary["deployed"] == "plain"
    assert isinstance(result.adapter.head, Unrefined)
    assert (result.adapter.config.prompts, result.adapter.config.texts) == (1, [])
    assert result.adapter.config.access_mode == "strict"
    assert result.accuracy_after == 100.0


def test_one_picture_a_class_deploys_an_unmeasured_head(tuned: Tune) -> None:
    clip = FakeClip(8, ignorance=3.0, noise=25)
    for options in (OPEN, STRICT):
        result, journal = tuned(options, clip=clip, shots=1)
        assert result.accuracy_after is None
        assert journal.summary()["deployed"] == "ridge"
        assert [one["loss"] for one in journal.summary()["candidates"]] == [None, None]
        assert _test_accuracy(clip, result.adapter) > result.accuracy_before + 10


# --- switches -------------------------------------------------------------------------------------


def test_without_consistency_the_loss_is_the_cross_entropy_alone(tuned: Tune) -> None:
    """Until the search is told other losses, both ask for the same codes."""
    with_term, without = (
        tuned(replace(PAPER, consistency=on))[0].history[1]["loss"] for on in (True, False)
    )
    alone = tuned(replace(PAPER, refinement=False))[0].history[1]["loss"]
    assert with_term > without
    assert without == alone


def test_the_consistency_weight_scales_the_term(tuned: Tune) -> None:
    none, one, two = (
        tuned(replace(PAPER, consistency_weight=weight))[0].history[1]["loss"]
        for weight in (0.0, 5.0, 10.0)
    )
    assert two - none == pytest.approx(2 * (one - none), rel=1e-3)
    assert one > none


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("seed", 5),
        ("dim", 9),
        ("random_codes", 2),
        ("scale", 1.0),
        ("template", "the {}."),
        ("recipe", "random"),
        ("texts", TEXTS),
    ],
)
def test_each_option_changes_the_adapter(tuned: Tune, option: str, value: Any) -> None:
    changed = replace(STRICT, **{option: value})
    assert tuned(changed)[0].adapter.digest != tuned(STRICT)[0].adapter.digest


@pytest.mark.parametrize(("option", "value"), [("sigma", 0.1), ("population", 12)])
def test_options_of_the_search_change_its_codes(tuned: Tune, option: str, value: Any) -> None:
    codes = [
        tuned(options)[1].tensors("000001")["codes"]
        for options in (PAPER, replace(PAPER, **{option: value}))
    ]
    assert codes[0].shape != codes[1].shape or not np.allclose(codes[0], codes[1])


# --- budget and refusals --------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    budget=st.integers(1, 70),
    population=st.integers(4, 20),
    purse=st.one_of(st.none(), st.integers(0, 70)),
    search=st.booleans(),
)
def test_no_budget_is_ever_exceeded_nor_wasted(
    tmp_path_factory: pytest.TempPathFactory,
    budget: int,
    population: int,
    purse: int | None,
    search: bool,
) -> None:
    black_box = FakeBlackBox(CLIP, PICTURES, queries=purse)
    journal = Journal.create(tmp_path_factory.mktemp("run") / "run", {})
    spendable = budget if purse is None else min(budget, purse)
    options = {"recipe": "paper", "budget": budget, "population": population, "search": search}
    try:
        result = tune(black_box, LABELS, TuneSettings(**options, dim=4, scale=1.0), journal)
    except SettingsError:
        assert spendable < 1 + (population + 1 if search else 0)
        assert black_box.charged == Units()
        return
    assert result.units == black_box.charged
    spent = result.units.queries
    assert spent <= spendable
    if search:
        assert spendable - spent < population + 1
    assert (spent - 1) % (population + 1) == 0


@settings(max_examples=25, deadline=None)
@given(
    budget=st.integers(1, 70),
    random_codes=st.integers(0, 70),
    purse=st.one_of(st.none(), st.integers(0, 70)),
)
def test_doublings_exceed_no_budget(
    tmp_path_factory: pytest.TempPathFactory, budget: int, random_codes: int, purse: int | None
) -> None:
    black_box = FakeBlackBox(CLIP, PICTURES, queries=purse)
    journal = Journal.create(tmp_path_factory.mktemp("run") / "run", {})
    spendable = budget if purse is None else min(budget, purse)
    options = TuneSettings(budget=budget, random_codes=random_codes, dim=4)
    with patch("craft_client.recipes.craftbox.enough", lambda first, second: False):
        try:
            result = tune(black_box, LABELS, options, journal)
        except SettingsError:
            assert spendable < min(4, 1 + random_codes, budget)
            assert black_box.charged == Units()
            return
    assert result.units == black_box.charged
    spent = result.units.queries
    assert spent <= min(spendable, 1 + random_codes)
    further = min(spent, 1 + random_codes - spent)
    assert not further or spent + further > spendable


class Bounded(FakeBlackBox):
    """Its answers tell these budgets, which others use up as the run goes on.

    Args:
        budgets: after each request; the last ones from then on.
        price_micros: of a query.
    """

    def __init__(self, *budgets: list[Budget], price_micros: int = 0) -> None:
        super().__init__(CLIP, PICTURES, price_micros=price_micros)
        self._told = budgets
        self.asked = 0

    def _left(self) -> list[Budget]:
        return self._told[min(self.charged.requests, len(self._told) - 1)]

    def budgets(self) -> list[Budget]:
        self.asked += 1
        return super().budgets()


PLENTY = budget("queries", 1000)
GENERATION = Units(queries=8, predictions=8 * 30, texts=8 * 6, requests=1)


@pytest.mark.parametrize(
    ("scarce", "words"),
    [
        (budget("queries", 7), "the key's queries budget has 7 left where 8 are needed"),
        (budget("queries", 7, of="team"), "the team's queries budget has 7 left"),
        (
            budget("queries", 100, spent=93, window="hour", resets_at="2026-01-01T01:00:00.000Z"),
            "the key's queries budget of this hour has 7 left until 2026-01-01T01:00:00.000Z",
        ),
        (budget("predictions", 239, of="team"), "the team's predictions budget has 239 left"),
        (budget("texts", 47), "the key's texts budget has 47 left where 48"),
        (budget("requests", 0), "the key's requests budget has 0 left"),
        (budget("cost_micros", 159), "the key's cost budget has 0.000159 left where 0.000160"),
    ],
)
def test_no_generation_is_asked_for_that_any_budget_does_not_cover(
    tuned: Tune, scarce: Budget, words: str
) -> None:
    """The answer to the first generation tells that the second is not covered."""
    black_box = Bounded([PLENTY], [PLENTY], [PLENTY, scarce], price_micros=20)
    result, journal = tuned(black_box=black_box)
    assert black_box.charged == black_box.units(Question(1)) + GENERATION
    assert result.units == black_box.charged
    assert result.stopped_by is not None
    assert words in result.stopped_by
    assert journal.summary()["stopped_by"] == result.stopped_by
    assert journal.adapter().digest == result.adapter.digest

    enough = scarce.model_copy(update={"remaining": scarce.remaining + 1})
    enough_once = Bounded([PLENTY], [PLENTY], [PLENTY, enough], [scarce], price_micros=20)
    assert tuned(black_box=enough_once)[0].units.requests == 3


def test_the_budgets_are_asked_for_only_before_the_first_request(tuned: Tune) -> None:
    black_box = Bounded([PLENTY])
    result, _ = tuned(black_box=black_box)
    assert result.units.requests == 15
    assert black_box.asked == 2, "for the run's document, and at its start"


def test_progress_tells_what_the_budgets_cover_as_they_stand(tuned: Tune) -> None:
    seen: list[TuneProgress] = []
    told = [[budget("queries", left)] for left in (200, 30, 22, 6)]
    result, _ = tuned(black_box=Bounded(*told), on_progress=seen.append)
    assert result.units.queries == 1 + 2 * 8
    assert [one.generations for one in seen] == [3, 3, 2, 2]
    assert [one.budget for one in seen] == [31, 31, 23, 23]


def test_a_run_that_uses_its_own_budget_up_was_stopped_by_none(tuned: Tune) -> None:
    result, journal = tuned()
    assert result.stopped_by is None
    assert journal.summary()["stopped_by"] is None


class Refusing(FakeBlackBox):
    """Somebody else spends what was left before the third request.

    Args:
        calls: how many calls a request is.
    """

    def __init__(self, calls: int = 1) -> None:
        super().__init__(CLIP, PICTURES)
        self._calls = calls

    def score(self, **question: Any) -> Scores:
        if self.charged.queries == 9:
            detail = "this call needs 8 queries and 3 are left in the team's budget"
            raise problem_error(Problem.of(problems.BUDGET_EXHAUSTED, detail))
        return super().score(**question)

    def units(self, question: Question) -> Units:
        return super().units(question).model_copy(update={"requests": self._calls})


def test_a_purse_that_others_empty_ends_the_search_in_good_order(tuned: Tune) -> None:
    black_box = Refusing()
    seen: list[TuneProgress] = []
    result, journal = tuned(black_box=black_box, on_progress=seen.append)
    assert result.units == black_box.charged
    assert result.units.queries == 1 + 8
    assert [entry["generation"] for entry in result.history] == [0, 1]
    assert (seen[-1].generation, seen[-1].generations) == (1, 1)
    assert journal.summary()["stopped_by"] == (
        "this call needs 8 queries and 3 are left in the team's budget"
    )


def test_a_refusal_that_leaves_the_cost_unknown_ends_the_run(tuned: Tune) -> None:
    with pytest.raises(BudgetExhausted):
        tuned(black_box=Refusing(calls=2))


def test_a_task_that_cannot_be_done_costs_nothing(tmp_path: Path) -> None:
    black_box = FakeBlackBox(CLIP, PICTURES)
    journal = Journal.create(tmp_path / "run", {})
    with pytest.raises(SettingsError, match="has no picture"):
        tune(black_box, np.zeros_like(LABELS), SMALL, journal)
    with pytest.raises(SettingsError, match="has no picture"):
        run_document(black_box, np.zeros_like(LABELS), SMALL)
    assert black_box.charged == Units()


class Spoilt(FakeBlackBox):
    """Its answers go wrong from the third on."""

    def __init__(self, spoil: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
        super().__init__(CLIP, PICTURES)
        self._spoil = spoil

    def score(self, **question: Any) -> Scores:
        scores = super().score(**question)
        if self.charged.requests < 3:
            return scores
        return replace(scores, log_probs=self._spoil(scores.log_probs))


def _with_nan(log_probs: NDArray[np.float32]) -> NDArray[np.float32]:
    log_probs[5, 0, 0] = np.nan
    return log_probs


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_with_nan, r"NaN or infinity for prompts \[5\]"),
        (lambda log_probs: log_probs[:, :-1], "has shape"),
    ],
    ids=["nan", "shape"],
)
def test_an_answer_that_cannot_be_learnt_from_is_told_and_in_the_journal(
    tuned: Tune, tmp_path: Path, spoil: Any, message: str
) -> None:
    with pytest.raises(AnswerError, match=message):
        tuned(black_box=Spoilt(spoil))
    journal = Journal.open(tmp_path / "run-0")
    *_, last = journal.lines()
    assert last["generation"] == 2
    assert last["charged"]["queries"] == SMALL.population
    assert last["error"]
    assert len(journal.tensors("000002")["codes"]) == SMALL.population


# --- journal and progress -------------------------------------------------------------------------


def test_the_journal_has_every_paid_answer_in_order(tuned: Tune) -> None:
    result, journal = tuned()
    lines = list(journal.lines())
    assert [line["generation"] for line in lines] == list(range(len(result.history)))
    charged = sum((Units(**line["charged"]) for line in lines), Units())
    assert charged == result.units
    for line, entry in zip(lines, result.history, strict=True):
        (name,) = line["tensors"]
        tensors = journal.tensors(name)
        templates = 0 if line["generation"] else 1
        assert len(tensors["losses"]) == len(tensors["codes"]) + templates
        assert len(tensors["losses"]) == line["charged"]["queries"]
        assert tensors["losses"].mean() == pytest.approx(entry["loss"])


@pytest.mark.parametrize("options", [OPEN, STRICT], ids=["open text", "strict"])
def test_the_journal_has_the_answers_that_the_deployed_head_reads(
    tuned: Tune, options: TuneSettings
) -> None:
    clip = FakeClip(10, ignorance=2.0)
    result, journal = tuned(options, clip=clip)
    assert journal.summary()["deployed"] == "ridge"
    answers = np.concatenate(
        [journal.tensors(line["tensors"][0])["log_probs"] for line in journal.lines()]
    )
    config = result.adapter.config
    expected = clip.log_probs(
        clip.features(clip.pictures(5)[0]),
        config.scored,
        config.templates,
        config.context,
        result.adapter.codes if config.codes else None,
    )
    np.testing.assert_allclose(answers, expected, rtol=1e-5, atol=1e-4)


def test_the_journal_keeps_single_answers_of_a_search_only(tuned: Tune) -> None:
    for options in (SMALL, PAPER):
        _, journal = tuned(options)
        for line in list(journal.lines())[1:]:
            tensors = journal.tensors(line["tensors"][0])
            assert tensors.get("log_probs", np.zeros((1, 1))).ndim == 2


def test_answers_in_half_precision_take_half_the_space(tuned: Tune) -> None:
    class Half(FakeBlackBox):
        def score(self, **question: Any) -> Scores:
            scores = super().score(**question)
            half = scores.log_probs.astype(np.float16).astype(np.float32)
            return replace(scores, log_probs=half)

    _, journal = tuned(OPEN, black_box=Half(CLIP, PICTURES))
    assert journal.tensors("000000")["log_probs"].dtype == np.float16
    _, exact = tuned(OPEN)
    assert exact.tensors("000000")["log_probs"].dtype == np.float32


class Breaking(FakeBlackBox):
    """Refuses its fourth request."""

    def score(self, **question: Any) -> Scores:
        if self.charged.requests == 3:
            raise CraftError("the line is dead")
        return super().score(**question)


def test_an_interrupted_run_leaves_a_journal_of_what_was_paid(tuned: Tune, tmp_path: Path) -> None:
    black_box = Breaking(CLIP, PICTURES)
    with pytest.raises(CraftError, match="the line is dead"):
        tuned(black_box=black_box)
    journal = Journal.open(tmp_path / "run-0")
    assert not journal.finished
    charged = sum((Units(**line["charged"]) for line in journal.lines()), Units())
    assert charged == black_box.charged
    whole = tuned()[1]
    for name in ("000000", "000001", "000002"):
        for key, tensor in whole.tensors(name).items():
            np.testing.assert_array_equal(journal.tensors(name)[key], tensor)


def test_a_paid_answer_is_in_the_journal_before_anybody_hears_of_it(
    tuned: Tune, tmp_path: Path
) -> None:
    lines: list[int] = []

    def on_progress(progress: TuneProgress) -> None:
        if progress.stage != "deploy":
            lines.append(len(list(Journal.open(tmp_path / "run-0").lines())))

    tuned(on_progress=on_progress)
    assert lines == list(range(1, len(lines) + 1))


def test_an_answer_is_acknowledged_once_its_line_is_on_disk(tuned: Tune, tmp_path: Path) -> None:
    lines: list[int] = []

    class Noting(FakeBlackBox):
        def acknowledge(self, scores: Scores) -> None:
            super().acknowledge(scores)
            *_, last = Journal.open(tmp_path / "run-0").lines()
            assert last["charged"] == scores.charged.model_dump()
            lines.append(last["generation"])

    black_box = Noting(CLIP, PICTURES)
    result, _ = tuned(black_box=black_box)
    assert lines == [entry["generation"] for entry in result.history]
    assert black_box.acknowledged == [f"answer {line + 1}" for line in lines]


def test_an_answer_that_the_journal_does_not_have_is_not_acknowledged(
    tuned: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    black_box = FakeBlackBox(CLIP, PICTURES)

    def full(*_args: object) -> None:
        raise JournalError("the disk is full")

    monkeypatch.setattr(Journal, "append", full)
    with pytest.raises(JournalError):
        tuned(black_box=black_box)
    assert black_box.charged.requests == 1
    assert black_box.acknowledged == []


def test_progress_counts_what_the_black_box_charged(tuned: Tune) -> None:
    seen: list[TuneProgress] = []
    black_box = FakeBlackBox(CLIP, PICTURES)
    result, _ = tuned(black_box=black_box, on_progress=seen.append)
    assert [one.stage for one in seen] == ["start", *["search"] * 14, "deploy"]
    assert [one.generation for one in seen] == [*range(15), 14]
    assert {one.generations for one in seen} == {14}
    assert [one.queries for one in seen[:3]] == [1, 9, 17]
    assert seen[-1].units == black_box.charged == result.units
    assert seen[-1].accuracy == result.accuracy_after
    assert all(one.best_loss <= one.loss for one in seen[:-1])


def test_the_run_document_holds_all_that_a_run_depends_on(tuned: Tune, tmp_path: Path) -> None:
    for options in (SMALL, OPEN):
        document = tuned(options)[1].document
        assert run_settings(Journal.open(tmp_path / f"run-{options is OPEN:d}")) == options
    assert document["classes"] == CLIP.names
    assert document["labels"] == LABELS.tolist()
    assert (document["model"], document["revision"]) == ("fake", "0")
