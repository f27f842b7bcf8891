"""craftbox's own recipe: its questions, what it keeps of the answers, its fit and its choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from craft_client.blackbox import Scores
from craft_client.closed_form import calibrated, discriminant
from craft_client.journal import Journal
from craft_client.losses import accuracy, cross_entropy, folds
from craft_client.recipes import craftbox
from craft_client.recipes.craftbox import (
    DECADES,
    LEAST_INPUTS,
    PLAIN_WEIGHTS,
    PRIOR_WEIGHT,
    SHARES,
    Fit,
    enough,
    fit,
)
from craft_client.settings import TuneSettings
from craft_client.tune import TuneResult, run_document, tune
from craft_shared.adapter import Adapter
from craft_shared.head import LinearHead, Unrefined, centred, centred_inputs, log_softmax
from craft_shared.output import scores_of, shown
from craft_shared.wire import Context, Output

from ..fake_clip import FakeBlackBox, FakeClip

Array = NDArray[np.float32]
Labels = NDArray[np.int64]

TEMPLATE = "a photo of a {}."
TEXTS = tuple(f"thing {number}" for number in range(40))
STRICT = TuneSettings(dim=8, random_codes=127, budget=128)
OPEN = replace(STRICT, texts=TEXTS)


def answers_of(
    clip: FakeClip, shots: int, *, seed: int = 0, prompts: int = 1, texts: int = 40
) -> tuple[Array, Labels]:
    """Answers [P, N, C + M] and labels [N]."""
    pictures, labels = clip.pictures(shots, seed=seed)
    codes = np.random.default_rng(0).normal(size=(prompts - 1, 8)).astype(np.float32)
    context = Context(dim=8, scale=3.0)
    names = [*clip.names, *TEXTS[:texts]]
    return clip.log_probs(clip.features(pictures), names, [TEMPLATE], context, codes), labels


def fitted(answers: Array, labels: Labels) -> Fit:
    """Where no image is a copy of another."""
    return fit(answers, labels, np.arange(len(labels)))


def plain_of(answers: Array, labels: Labels) -> Array:
    return log_softmax(answers[0, :, : labels.max() + 1])


def noise(*shape: int, seed: int = 0, size: float = 1.0) -> Array:
    scores = np.random.default_rng([seed, *shape]).normal(size=shape) * size
    return log_softmax(scores.astype(np.float32))


# --- the fit ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", [4, 8, 16])
def test_the_loss_tells_how_new_images_fare(shots: int) -> None:
    clip = FakeClip(8)
    answers, labels = answers_of(clip, shots)
    new, new_labels = answers_of(clip, 60, seed=1)
    found = fitted(answers, labels)
    assert isinstance(found.head, LinearHead)
    assert found.loss is not None
    assert found.plain_loss == pytest.approx(
        cross_entropy(plain_of(answers, labels)[None], labels)[0], abs=1e-5
    )
    assert found.loss < found.plain_loss
    refined = found.head(new)
    assert accuracy(refined, new_labels) > accuracy(plain_of(new, labels), new_labels) + 3
    assert cross_entropy(refined[None], new_labels)[0] == pytest.approx(found.loss, abs=0.25)


@pytest.mark.parametrize("prompts", [1, 4], ids=["open text", "strict"])
def test_one_image_a_class_beats_knowing_nothing_and_claims_nothing(prompts: int) -> None:
    clip = FakeClip(8, ignorance=3.0, noise=25)
    texts = 40 if prompts == 1 else 0
    answers, labels = answers_of(clip, 1, prompts=prompts, texts=texts)
    new, new_labels = answers_of(clip, 40, seed=1, prompts=prompts, texts=texts)
    found = fitted(answers, labels)
    assert (found.loss, found.plain_loss) == (None, None)
    after = accuracy(found.head(new), new_labels)
    assert after > accuracy(plain_of(new, labels), new_labels) + 20
    assert after > 100 / 8 + 20
    refined = found.head(new)[None]
    assert cross_entropy(refined, new_labels)[0] < np.log(8)


def test_one_image_a_class_changes_a_good_plain_prediction_little() -> None:
    clip = FakeClip(8, ignorance=0.2, noise=40)
    answers, labels = answers_of(clip, 1)
    new, new_labels = answers_of(clip, 40, seed=1)
    before = accuracy(plain_of(new, labels), new_labels)
    after = accuracy(fitted(answers, labels).head(new), new_labels)
    assert after > before - 2


def _hot(labels: Labels, classes: int) -> Array:
    """Labels alone, as a server of that level shows them."""
    label = Output(level="label")
    exact = log_softmax(20 * np.eye(classes, dtype=np.float32)[labels][None])
    return scores_of(shown(exact, label), label, classes)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shots", [1, 2, 5])
@pytest.mark.parametrize("classes", [2, 3, 8])
@pytest.mark.parametrize(
    "say",
    [
        _hot,
        lambda labels, classes: np.repeat(_hot(labels, classes), 4, axis=0),
        lambda labels, classes: _hot(np.roll(labels, 1), classes),
        lambda labels, classes: log_softmax(20 * np.eye(classes, dtype="f4")[labels][None]),
        lambda labels, classes: noise(3, len(labels), classes),
        lambda labels, classes: noise(3, 1, classes).repeat(len(labels), axis=1),
        lambda labels, classes: np.full((1, len(labels), classes), -np.log(classes), "f4"),
        lambda labels, classes: np.full((2, len(labels), 40), -np.log(40), "f4"),
    ],
    ids=["labels", "again", "wrong", "perfect", "noise", "same of all images", "equal", "texts"],
)
def test_every_answer_is_survived(
    say: Callable[[Labels, int], Array], classes: int, shots: int
) -> None:
    labels = np.repeat(np.arange(classes), shots)
    answers = say(labels, classes)
    head = fitted(answers, labels).head
    for tensor in head.tensors().values():
        assert np.abs(tensor).max() <= 1e6, "an adapter holds no more"
    assert np.isfinite(head(answers)).all()


def test_answers_that_are_the_same_of_all_images_predict_how_frequent_classes_are() -> None:
    labels = np.repeat([0, 1, 2], [20, 5, 5])
    answers = np.full((2, 30, 3), -np.log(3), np.float32)
    found = fitted(answers, labels)
    assert (found.head(answers).argmax(axis=1) == 0).all()
    assert found.plain_loss == pytest.approx(np.log(3))


def test_a_perfect_plain_prediction_is_kept_where_texts_say_nothing_of_the_labels() -> None:
    labels = np.repeat(np.arange(4), 5)
    scores = np.hstack([20 * np.eye(4)[labels], noise(20, 60, size=50.0)])
    answers = log_softmax(scores.astype(np.float32))[None]
    found = fitted(answers, labels)
    assert isinstance(found.head, Unrefined)
    assert found.loss is not None
    assert found.plain_loss is not None
    assert found.plain_loss < found.loss


def test_a_plain_prediction_that_says_nothing_is_replaced_by_texts_that_say_all() -> None:
    """Even so, the head is linear in what was asked: it classifies new images too."""
    labels, new_labels = np.repeat(np.arange(4), 5), np.repeat(np.arange(4), 30)

    def answers(of: Labels, seed: int) -> Array:
        texts = 5 * np.eye(4)[of][:, np.arange(60) % 4] + noise(len(of), 60, seed=seed)
        return log_softmax(np.hstack([noise(len(of), 4, seed=seed), texts]))[None]

    found = fitted(answers(labels, 0), labels)
    assert isinstance(found.head, LinearHead)
    assert accuracy(found.head(answers(new_labels, 1)), new_labels) == 100.0


def test_noise_is_not_learnt_by_heart() -> None:
    labels = np.repeat(np.arange(5), 12)
    found = fitted(noise(8, 60, 5), labels)
    assert found.loss == pytest.approx(np.log(5), abs=0.1)


def test_a_class_with_one_image_is_fitted_and_not_measured() -> None:
    clip = FakeClip(5, ignorance=3.0, noise=25)
    answers, labels = answers_of(clip, 6)
    keep = np.arange(25)  # the last class has one
    answers, labels = answers[:, keep], labels[keep]
    found = fitted(answers, labels)
    measured = cross_entropy(plain_of(answers, labels)[None, :24], labels[:24])[0]
    assert found.plain_loss == pytest.approx(measured, abs=1e-5)
    new, new_labels = answers_of(clip, 40, seed=1)
    lonely = new_labels == 4
    refined = found.head(new)
    assert accuracy(refined[lonely], new_labels[lonely]) > 60


def _held_out_again(answers: Array, labels: Labels, groups: Labels) -> float:
    """The loss of the best setting, by a fit for each fold, without its images and their copies."""
    targets = np.eye(int(labels.max()) + 1)[labels]
    plain = centred(plain_of(answers, labels)).astype(np.float64)
    plain /= plain.std(axis=0).mean() / targets.std(axis=0).mean()
    inputs = centred_inputs(answers).astype(np.float64)
    variance = ((inputs - inputs.mean(axis=0)) ** 2).sum()
    parts = folds(labels, groups, most=len(labels))
    rows = np.concatenate(parts)
    best = np.inf, np.inf
    for decades, share, weight in product(DECADES, SHARES, PLAIN_WEIGHTS):
        regularisation = 10 ** (decades + 0.25 - 1.5 * np.log10(len(labels)))
        found = []
        for fold in parts:
            rest = ~np.isin(groups, groups[fold])
            assert len(fold) + rest.sum() == len(labels), "all copies of an image are in its fold"
            mean = inputs[rest].mean(axis=0)
            kernel = (inputs[rest] - mean) @ (inputs[rest] - mean).T
            kernel += regularisation * variance * np.eye(rest.sum())
            both = np.hstack([targets, plain])
            solved = np.linalg.solve(kernel, both[rest] - both[rest].mean(axis=0))
            slopes = (inputs[rest] - mean).T @ solved
            fitted = (inputs - mean) @ slopes + both[rest].mean(axis=0)
            learnt, explained = np.split(fitted, 2, axis=1)
            means = [
                learnt[rest & (labels == each)].mean(axis=0) for each in range(len(targets[0]))
            ]
            matrix, offsets = discriminant(np.stack(means), share)
            logits = learnt @ matrix + offsets + weight * (plain - explained)
            found.append(logits[fold])
        _, losses = calibrated(np.concatenate(found), labels[rows], 10.0)
        score = len(labels) * losses.mean() + PRIOR_WEIGHT * (decades**2 + share**2)
        best = min(best, (float(score), float(losses.mean())))
    return best[1]


@pytest.mark.parametrize(
    ("prompts", "texts"), [(1, 0), (1, 40), (4, 0)], ids=["N>D", "open text", "strict"]
)
@pytest.mark.parametrize("copies", [False, True])
def test_the_loss_is_that_of_fits_without_each_fold(prompts: int, texts: int, copies: bool) -> None:
    answers, labels = answers_of(FakeClip(5, ignorance=2.0), 5, prompts=prompts, texts=texts)
    groups = np.arange(25)
    if copies:
        groups = np.array([0, 1, 1, 4, 4, 4, *range(5, 25)])
        answers, labels = answers[:, groups], labels[groups]
    found = fit(answers, labels, groups)
    assert found.loss == pytest.approx(_held_out_again(answers, labels, groups), abs=1e-3)


def test_copies_that_are_not_left_out_together_are_learnt_by_heart() -> None:
    answers = np.repeat(noise(16, 30, 3), 2, axis=1)
    labels, groups = np.repeat(np.arange(3), 20), np.repeat(np.arange(30), 2)
    by_heart, together = fitted(answers, labels).loss, fit(answers, labels, groups).loss
    assert by_heart is not None
    assert together is not None
    assert by_heart < 0.7 < 0.9 * np.log(3) < together


def test_half_precision_answers_fit_as_well() -> None:
    answers, labels = answers_of(FakeClip(8), 6)
    half = answers.astype(np.float16).astype(np.float32)
    assert fitted(half, labels).loss == pytest.approx(fitted(answers, labels).loss, abs=0.01)


def test_a_class_with_more_images_than_others_is_not_favoured_by_folds() -> None:
    """Each fold has one image of every class, so that none is rarer in what is left."""
    labels = np.repeat(np.arange(3), 6)
    for fold in folds(labels, np.arange(18), most=99):
        assert np.bincount(labels[fold], minlength=3).tolist() == [1, 1, 1]
    found = fitted(np.full((1, 18, 3), -np.log(3), np.float32), labels)
    assert found.loss == pytest.approx(np.log(3), abs=1e-6)


# --- runs -------------------------------------------------------------------------------------


class Told(FakeBlackBox):
    """Answers what it is told: scores [P, N, C + M] of so many prompts and texts."""

    def __init__(self, clip: FakeClip, shots: int, say: Callable[[int, int], Array], **more: Any):
        super().__init__(clip, clip.pictures(shots)[0], **more)
        self._say = say

    def score(self, **question: Any) -> Scores:
        scores = super().score(**question)
        prompts, _, texts = scores.log_probs.shape
        return replace(scores, log_probs=log_softmax(self._say(prompts, texts)))


def run(
    folder: Path,
    settings: TuneSettings,
    *,
    clip: FakeClip | None = None,
    shots: int = 5,
    black_box: FakeBlackBox | None = None,
) -> tuple[TuneResult, Journal]:
    clip = clip or FakeClip(6, ignorance=2.0)
    pictures, labels = clip.pictures(shots)
    black_box = black_box or FakeBlackBox(clip, pictures)
    journal = Journal.create(folder, run_document(black_box, labels, settings))
    result = tune(black_box, labels, settings, journal)
    assert result.units == black_box.charged
    return result, journal


def asked(journal: Journal) -> list[int]:
    """Prompts of each request."""
    return [len(journal.tensors(line["tensors"][0])["losses"]) for line in journal.lines()]


def test_one_query_is_asked_and_a_head_on_texts_is_deployed(tmp_path: Path) -> None:
    result, journal = run(tmp_path / "run", OPEN)
    config = result.adapter.config
    assert asked(journal) == [1]
    assert result.units.queries == 1
    assert result.units.texts == 6 + 40
    assert (config.prompts, config.codes, config.context) == (1, 0, None)
    assert config.access_mode == "open-text"
    summary = journal.summary()
    assert summary["deployed"] == "ridge"
    plain, ridge = summary["candidates"]
    assert (plain["name"], plain["prompts"], plain["texts"]) == ("plain", 1, 0)
    assert (ridge["name"], ridge["prompts"], ridge["texts"]) == ("ridge", 1, 40)
    assert ridge["loss"] < plain["loss"]


def test_the_head_reads_the_texts_in_the_order_in_which_the_adapter_names_them(
    tmp_path: Path,
) -> None:
    clip = FakeClip(6, ignorance=2.0)
    result, _ = run(tmp_path / "run", replace(OPEN, keep_texts=16), clip=clip)
    config = result.adapter.config
    assert len(config.texts) == 16
    pictures, labels = clip.pictures(60, seed=1)
    answers = clip.log_probs(clip.features(pictures), config.scored, config.templates)
    assert accuracy(result.adapter.head(answers), labels) > 80
    backwards = answers[:, :, [*range(6), *range(21, 5, -1)]]
    assert accuracy(result.adapter.head(backwards), labels) < 60


def test_the_texts_that_are_kept_are_those_that_span_most(tmp_path: Path) -> None:
    """Two texts vary far more than all others, by themselves, and are of use for two classes."""
    clip = FakeClip(4)
    labels = clip.pictures(5)[1]
    scores = np.random.default_rng(0).normal(size=(1, 20, 9))
    scores[0, :, 5] += 30 * (labels == 1)
    scores[0, :, 7] += 30 * (labels == 2)
    settings = replace(STRICT, texts=("a", "b", "c", "d", "e"), keep_texts=2)
    black_box = Told(clip, 5, lambda prompts, texts: scores.astype("f4"))
    result, _ = run(tmp_path / "run", settings, clip=clip, black_box=black_box)
    assert result.adapter.config.texts == ["b", "d"]


@pytest.mark.parametrize(
    ("vocabulary", "keep", "images", "kept"),
    [
        (300, None, "alike", LEAST_INPUTS),
        (300, 100, "alike", 100),
        (700, None, "alike", LEAST_INPUTS),
        (500, None, "random", 500),
        (300, 290, "random", 290),
        (200, None, "random", 200),
    ],
)
def test_fewer_texts_are_kept_where_half_of_them_agree_and_all_where_not(
    tmp_path: Path, vocabulary: int, keep: int | None, images: str, kept: int
) -> None:
    """Texts lie in 32 directions, or each in one of its own."""
    clip = FakeClip(40, ignorance=2.0)
    texts = tuple(f"thing {number}" for number in range(vocabulary))
    say = None
    if images == "random":

        def say(prompts: int, scored: int) -> Array:
            return np.random.default_rng(0).normal(size=(prompts, 280, scored)).astype("f4")

    settings = replace(STRICT, texts=texts, keep_texts=keep)
    pictures, _ = clip.pictures(7)
    black_box = Told(clip, 7, say) if say else FakeBlackBox(clip, pictures)
    _, journal = run(tmp_path / "run", settings, clip=clip, shots=7, black_box=black_box)
    assert [one["texts"] for one in journal.summary()["candidates"]] == [0, kept]


def test_labels_have_no_part_in_which_texts_are_kept(tmp_path: Path) -> None:
    clip = FakeClip(6, ignorance=2.0)
    pictures, labels = clip.pictures(5)
    kept = []
    for number, given in enumerate((labels, np.roll(labels, 3))):
        black_box = FakeBlackBox(clip, pictures)
        settings = replace(OPEN, keep_texts=8)
        document = run_document(black_box, given, settings)
        journal = Journal.create(tmp_path / str(number), document)
        kept.append(tune(black_box, given, settings, journal).adapter.config.texts)
    assert kept[0] == kept[1]
    assert len(kept[0]) == 8


def test_equal_answers_of_every_image_end_in_a_sound_adapter(tmp_path: Path) -> None:
    """All images pass for copies of one, so that nothing can be held out."""
    for name, settings in (("open", OPEN), ("strict", replace(STRICT, random_codes=7))):
        clip = FakeClip(4)
        black_box = Told(clip, 5, lambda prompts, texts: np.zeros((prompts, 20, texts), "f4"))
        result, journal = run(tmp_path / name, settings, clip=clip, shots=5, black_box=black_box)
        assert result.accuracy_before == 25.0
        assert result.accuracy_after is None
        assert [one["loss"] for one in journal.summary()["candidates"]] == [None, None]
        scored = len(result.adapter.config.scored)
        prompts = result.adapter.config.prompts
        refined = result.adapter.head(np.full((prompts, 3, scored), -np.log(scored), "f4"))
        np.testing.assert_allclose(np.exp(refined), 0.25, atol=0.01)


@pytest.mark.parametrize(
    ("settings", "copies"), [(OPEN, 1), (STRICT, 2)], ids=["open text", "strict, copies"]
)
def test_on_noise_what_is_reported_is_chance(
    tmp_path: Path, settings: TuneSettings, copies: int
) -> None:
    """What a fit says of images that it has seen is 40 to 100 % here."""
    clip = FakeClip(3)
    settings = replace(settings, random_codes=7)
    labels = np.repeat(np.arange(3), 6 * copies)
    found = []
    for draw in range(12):
        generator = np.random.default_rng(draw)

        def say(prompts: int, texts: int, generator: Any = generator) -> Array:
            once = generator.normal(size=(prompts, 18, texts)).astype("f4")
            return np.repeat(once, copies, axis=1)

        black_box = Told(clip, 6 * copies, say)
        digests = [str(image // copies) for image in range(18 * copies)]
        document = run_document(black_box, labels, settings, digests=digests)
        journal = Journal.create(tmp_path / f"{draw}", document)
        found.append(tune(black_box, labels, settings, journal).accuracy_after or 0.0)
    error = 100 * np.sqrt(1 / 3 * 2 / 3 / (12 * 18))
    assert abs(np.mean(found) - 100 / 3) < 2.576 * error


# --- strict access ----------------------------------------------------------------------------


class Endless(Told):
    """Whose prompts never say enough: each says something else."""

    def __init__(self, clip: FakeClip, shots: int, **more: Any) -> None:
        generator = np.random.default_rng(0)
        images = shots * len(clip.names)
        super().__init__(
            clip,
            shots,
            lambda prompts, texts: generator.normal(size=(prompts, images, texts)).astype("f4"),
            **more,
        )


MANY = FakeClip(4)
IMAGES = 160  # more than inputs, so that halves of random answers are far from aligned


def endless(folder: Path, settings: TuneSettings, **more: Any) -> tuple[TuneResult, Journal]:
    black_box = Endless(MANY, IMAGES // 4, **more)
    return run(folder, settings, clip=MANY, shots=IMAGES // 4, black_box=black_box)


@pytest.mark.parametrize(
    ("codes", "budget", "sizes"),
    [
        (63, 128, [4, 4, 8, 16, 32]),
        (40, 128, [4, 4, 8, 16, 9]),
        (63, 63, [4, 4, 8, 16]),
        (63, 16, [4, 4, 8]),
        (63, 3, [3]),
        (2, 128, [3]),
        (0, 128, [1]),
    ],
)
def test_prompts_are_doubled_up_to_the_codes_and_the_budget(
    tmp_path: Path, codes: int, budget: int, sizes: list[int]
) -> None:
    result, journal = endless(tmp_path / "run", replace(STRICT, random_codes=codes, budget=budget))
    assert asked(journal) == sizes
    assert result.stopped_by is None
    assert [one["prompts"] for one in journal.summary()["candidates"]] == [1, sum(sizes)]


@pytest.mark.parametrize(("purse", "sizes"), [(63, [4, 4, 8, 16]), (16, [4, 4, 8]), (7, [4])])
def test_no_doubling_is_begun_that_the_key_does_not_cover(
    tmp_path: Path, purse: int, sizes: list[int]
) -> None:
    result, journal = endless(tmp_path / "run", replace(STRICT, random_codes=63), queries=purse)
    assert asked(journal) == sizes
    assert result.stopped_by is not None
    assert "queries budget" in result.stopped_by


def test_prompts_that_are_enough_end_the_questions(tmp_path: Path) -> None:
    """Three codes move the prompt in three directions, of which all is known soon."""
    settings = replace(STRICT, dim=3, scale=0.3)
    result, journal = run(tmp_path / "run", settings)
    sizes = asked(journal)
    assert sum(sizes) < settings.budget
    assert result.stopped_by is None
    answers = np.concatenate(
        [journal.tensors(line["tensors"][0])["log_probs"] for line in journal.lines()]
    ).astype(np.float32)
    told = []
    for prompts in np.cumsum(sizes):
        halves = (centred_inputs(answers[half:prompts:2]) for half in (0, 1))
        told.append(enough(*halves))
    assert told == [False] * (len(sizes) - 1) + [True]


def test_prompts_that_are_enough_are_not_said_to_be_stopped_by_a_budget(tmp_path: Path) -> None:
    """Even where the key covers no further prompt."""
    settings = replace(STRICT, dim=3, scale=0.3)
    free, _ = run(tmp_path / "free", settings)
    clip = FakeClip(6, ignorance=2.0)
    black_box = FakeBlackBox(clip, clip.pictures(5)[0], queries=free.units.queries)
    bound, _ = run(tmp_path / "bound", settings, clip=clip, black_box=black_box)
    assert bound.units == free.units
    assert bound.stopped_by is None


def test_codes_are_drawn_once_however_far_the_doublings_go(tmp_path: Path) -> None:
    few, _ = endless(tmp_path / "few", replace(STRICT, random_codes=63, budget=16))
    _, many = endless(tmp_path / "many", replace(STRICT, random_codes=63))
    codes = np.concatenate([many.tensors(line["tensors"][0])["codes"] for line in many.lines()])
    assert codes.shape == (63, 8)
    assert len(np.unique(codes, axis=0)) == 63
    _, again = endless(tmp_path / "again", replace(STRICT, random_codes=63, budget=16))
    short = np.concatenate([again.tensors(line["tensors"][0])["codes"] for line in again.lines()])
    np.testing.assert_array_equal(short, codes[:15])
    assert few.units.queries == 16


def test_the_codes_that_are_deployed_are_those_that_were_asked(tmp_path: Path) -> None:
    clip = FakeClip(10, ignorance=2.0)
    result, journal = run(tmp_path / "run", STRICT, clip=clip)
    assert journal.summary()["deployed"] == "ridge"
    codes = np.concatenate(
        [journal.tensors(line["tensors"][0])["codes"] for line in journal.lines()]
    )
    np.testing.assert_array_equal(result.adapter.codes, codes)
    assert result.adapter.config.access_mode == "strict"
    pictures, labels = clip.pictures(60, seed=1)
    config = result.adapter.config
    answers = clip.log_probs(
        clip.features(pictures), config.scored, config.templates, config.context, codes
    )
    before = accuracy(answers[0], labels)
    assert accuracy(result.adapter.head(answers), labels) > before + 15


class Killed(BaseException):
    """What no code catches by accident."""


class Mortal(Endless):
    """Ends the run after some requests, once the last one was charged."""

    def __init__(self, requests: int, *, skip: int = 0) -> None:
        super().__init__(MANY, IMAGES // 4)
        self._requests = requests
        for prompts in [4, 4, 8, 16, 32][:skip]:
            self._say(prompts, 4)

    def score(self, **question: Any) -> Scores:
        scores = super().score(**question)
        if self.charged.requests > self._requests:
            raise Killed
        return scores


@pytest.mark.parametrize("requests", [0, 2])
def test_a_strict_run_is_resumed_bit_for_bit(tmp_path: Path, requests: int) -> None:
    settings = replace(STRICT, random_codes=63)
    labels = MANY.pictures(IMAGES // 4)[1]
    whole, _ = endless(tmp_path / "whole", settings)
    black_box = Mortal(requests)
    journal = Journal.create(tmp_path / "run", run_document(black_box, labels, settings))
    with pytest.raises(Killed):
        tune(black_box, labels, settings, journal)
    again = Mortal(99, skip=requests)
    result = tune(again, labels, settings, Journal.open(tmp_path / "run"))
    assert again.charged.requests == 5 - requests
    assert result.adapter.to_bytes() == whole.adapter.to_bytes()
    assert result.history == whole.history
    assert result.units == whole.units


def test_the_plain_prompt_alone_may_be_tuned_on(tmp_path: Path) -> None:
    result, journal = run(tmp_path / "run", replace(STRICT, random_codes=0, budget=1))
    assert asked(journal) == [1]
    assert result.adapter.config.codes == 0
    assert isinstance(result.adapter, Adapter)
    assert journal.summary()["deployed"] in ("plain", "ridge")


# --- the rule ---------------------------------------------------------------------------------


def test_halves_are_enough_where_they_say_the_same() -> None:
    generator = np.random.default_rng(0)

    def half(features: Array, inputs: int = LEAST_INPUTS // 2) -> Array:
        return (features @ generator.normal(size=(6, inputs))).astype(np.float32)

    features, others = generator.normal(size=(2, 60, 6)).astype(np.float32)
    assert enough(half(features), half(features))
    assert not enough(half(features), half(others))


def test_few_inputs_are_never_enough() -> None:
    """Few images are soon told apart, and others not yet."""
    inputs = np.random.default_rng(0).normal(size=(20, LEAST_INPUTS // 2)).astype(np.float32)
    assert enough(inputs, inputs)
    assert not enough(inputs[:, 1:], inputs[:, 1:])


def test_the_rule_is_the_recipes_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a rule that is never content all is asked, with one that is always, the least."""
    asked_for = []
    for content in (False, True):
        monkeypatch.setattr(craftbox, "enough", lambda *halves, content=content: content)
        _, journal = run(tmp_path / str(content), replace(STRICT, random_codes=20))
        asked_for.append(asked(journal))
    assert asked_for == [[4, 4, 8, 5], [4]]


def test_centring_removes_what_is_common_to_all_texts() -> None:
    answers, labels = answers_of(FakeClip(5, ignorance=2.0), 5)
    moved = answers + np.random.default_rng(0).normal(size=(1, 25, 1)).astype(np.float32)
    np.testing.assert_allclose(centred(moved), centred(answers), atol=1e-4)
    assert fitted(moved, labels).loss == pytest.approx(fitted(answers, labels).loss, abs=1e-4)
