"""Output levels: what answers show, what can be read of it, and what they keep to themselves."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from craft_shared.adapter import Adapter, AdapterConfig, AdapterError
from craft_shared.head import LinearHead, log_softmax
from craft_shared.output import LABEL_REST, LEAST_REST, scores_of, shown, shown_bytes
from craft_shared.wire import EVERYTHING, Output

LABEL = Output(level="label")
LEVELS = [
    LABEL,
    Output(level="top_k", k=1),
    Output(level="top_k", k=3),
    Output(level="top_k", k=3, decimals=1),
    Output(level="probs", decimals=1),
    Output(level="probs", decimals=2, k=2),
    Output(level="log_probs", decimals=1),
    EVERYTHING,
]
SCORES = log_softmax(np.random.default_rng(0).normal(0, 2, (3, 50, 7)).astype(np.float32))


def by_name(output: Output) -> str:
    return f"{output.level}-{output.k}-{output.decimals}"


@pytest.mark.parametrize("output", LEVELS, ids=by_name)
def test_an_answer_has_the_tensors_and_shapes_of_its_level(output: Output) -> None:
    tensors = shown(SCORES, output)
    if output.level == "label":
        assert {name: tensor.shape for name, tensor in tensors.items()} == {
            "top_classes": (3, 50, 1)
        }
        assert tensors["top_classes"].dtype == np.int32
        return
    name = "probs" if output.level == "probs" else "log_probs"
    assert tensors.keys() == ({name} if output.k is None else {name, "top_classes"})
    assert {tensor.shape for tensor in tensors.values()} == {(3, 50, output.k or 7)}
    assert tensors[name].dtype == np.float32
    assert shown(SCORES, output, "float16")[name].dtype == np.float16


@pytest.mark.parametrize("output", [*LEVELS, Output(level="top_k", k=99)], ids=by_name)
def test_the_size_that_is_told_beforehand_is_that_of_the_tensors(output: Output) -> None:
    for dtype in ("float32", "float16"):
        tensors = shown(SCORES, output, dtype)
        number_bytes = np.dtype(dtype).itemsize
        told = 3 * 50 * shown_bytes(output, 7, number_bytes)
        assert told == sum(tensor.nbytes for tensor in tensors.values())


def test_more_classes_than_there_are_show_all_of_them() -> None:
    tensors = shown(SCORES, Output(level="top_k", k=99))
    np.testing.assert_array_equal(tensors["log_probs"], -np.sort(-SCORES))


@pytest.mark.parametrize(
    "output",
    [Output(level="probs", decimals=2), Output(level="probs", decimals=2, k=3)],
    ids=by_name,
)
def test_what_rounds_alike_is_answered_alike(output: Output) -> None:
    # Of each pair the second differs by less than the decimals show, in another order.
    first = np.array([0.5012, 0.2488, 0.2488, 0.0012], np.float32)
    second = np.array([0.4991, 0.2491, 0.2509, 0.0009], np.float32)
    one, other = (shown(np.log(probs), output) for probs in (first, second))
    for name, tensor in one.items():
        np.testing.assert_array_equal(other[name], tensor)


@pytest.mark.parametrize("decimals", [1, 2, 3])
def test_rounded_numbers_lie_on_the_decimals_grid(decimals: int) -> None:
    for output in (
        Output(level="probs", decimals=decimals),
        Output(level="log_probs", decimals=decimals),
        Output(level="top_k", k=2, decimals=decimals),
    ):
        numbers = next(iter(shown(SCORES, output).values())).astype(np.float64)
        np.testing.assert_allclose(numbers, np.round(numbers, decimals), atol=1e-5)
        assert not np.signbit(numbers[numbers == 0]).any()


def test_of_equal_numbers_the_lower_index_comes_first() -> None:
    tied = np.array([-2, -1, -2, -1, -1], np.float32).repeat(20)
    best = shown(tied, Output(level="top_k", k=70))
    assert best["top_classes"].tolist() == [*range(20, 40), *range(60, 100), *range(10)]
    assert shown(tied, LABEL)["top_classes"].tolist() == [20]


@pytest.mark.parametrize("output", LEVELS, ids=by_name)
def test_scores_are_distributions_that_say_what_was_shown(output: Output) -> None:
    scores = scores_of(shown(SCORES, output), output, 7)
    assert scores.shape == SCORES.shape
    assert scores.dtype == np.float32
    if output.level != "log_probs":
        np.testing.assert_allclose(np.exp(scores).sum(-1), 1, rtol=1e-4)
    if output.decimals is None:
        np.testing.assert_array_equal(scores.argmax(-1), SCORES.argmax(-1))


def test_a_label_leaves_the_others_a_share_of_the_rest() -> None:
    scores = np.exp(scores_of({"top_classes": np.array([[2]], np.int32)}, LABEL, 5))
    np.testing.assert_allclose(scores, [[LABEL_REST / 4] * 2 + [1 - LABEL_REST] + [0.025] * 2])


def test_classes_that_are_not_named_share_what_is_left() -> None:
    probs = np.array([0.5, 0.3, 0.08, 0.06, 0.06], np.float32)
    output = Output(level="top_k", k=2)
    scores = np.exp(scores_of(shown(np.log(probs), output), output, 5))
    np.testing.assert_allclose(scores, [0.5, 0.3, *[0.2 / 3] * 3], rtol=1e-5)


def test_no_unnamed_class_gets_more_than_a_named_one_and_none_gets_nothing() -> None:
    flat = np.log(np.array([0.21, 0.2, 0.2, 0.2, 0.19], np.float32))
    output = Output(level="top_k", k=1, decimals=1)
    scores = scores_of(shown(flat, output), output, 5)
    assert (scores[1:] <= scores[0]).all()
    certain = np.array([-1e-7, -18, -19, -20, -21], np.float32)
    rest = np.exp(scores_of(shown(certain, Output(level="top_k", k=1)), output, 5))[1:]
    np.testing.assert_allclose(rest, LEAST_REST / 4, rtol=2e-3)


def test_a_probability_of_zero_counts_as_half_a_unit_of_the_last_decimal() -> None:
    output = Output(level="probs", decimals=2)
    log_probs = np.log(np.array([0.97, 0.0299, 0.0001], np.float32))
    scores = scores_of(shown(log_probs, output), output, 3)
    np.testing.assert_allclose(scores[0] - scores[2], np.log(0.97 / 0.005), rtol=1e-5)


def test_whole_answers_are_read_as_they_are() -> None:
    assert scores_of(shown(SCORES, EVERYTHING), EVERYTHING, 7) is SCORES


@pytest.mark.parametrize(
    "fields",
    [
        {"level": "label", "k": 1},
        {"level": "label", "decimals": 1},
        {"level": "top_k"},
        {"level": "log_probs", "k": 3},
        {"level": "probs"},
        {"level": "probs", "decimals": 0},
        {"level": "probs", "decimals": 7},
        {"noise": -1},
        {"noise": float("nan")},
        {"level": "logits"},
    ],
)
def test_levels_that_contradict_themselves_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Output.model_validate(fields)


def _adapter(output: Output) -> Adapter:
    rng = np.random.default_rng(1)
    config = AdapterConfig(
        model="m",
        revision="r",
        classes=list("abcdefg"),
        templates=["a {}", "b {}", "c {}"],
        head="ridge",
        output=output,
    )
    head = LinearHead(
        rng.normal(size=(21, 7)).astype(np.float32), np.zeros(7, np.float32), 2.0, 0.5
    )
    return Adapter(config, np.zeros((0, 0), np.float32), head)


@pytest.mark.parametrize("output", LEVELS, ids=by_name)
def test_a_head_reads_whole_scores_as_coarse_as_those_it_was_fitted_on(output: Output) -> None:
    adapter = _adapter(output)
    seen = scores_of(shown(SCORES, output), output, 7)
    np.testing.assert_array_equal(adapter.refined(SCORES), adapter.head(seen))
    np.testing.assert_array_equal(adapter.refined(seen, output), adapter.head(seen))
    noisy = output.model_copy(update={"noise": 0.5})
    np.testing.assert_array_equal(adapter.refined(seen, noisy), adapter.head(seen))


def test_a_head_reads_no_scores_of_another_level() -> None:
    for one, other in itertools.permutations(LEVELS, 2):
        if not other.whole:
            with pytest.raises(AdapterError, match="another"):
                _adapter(one).refined(SCORES, other)


def test_an_adapter_says_its_level_and_one_that_sees_everything_is_as_it_was() -> None:
    adapter = _adapter(Output(level="probs", decimals=2, noise=0.5))
    again = Adapter.from_bytes(adapter.to_bytes())
    assert again.config.output == adapter.config.output
    assert b"output" not in _adapter(EVERYTHING).to_bytes()
    assert _level_after_travel(_adapter(EVERYTHING)) == EVERYTHING


def _level_after_travel(adapter: Adapter) -> Output:
    return Adapter.from_bytes(adapter.to_bytes()).config.output
