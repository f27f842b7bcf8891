"""Policies: who may see what, how requests narrow it, and how they are stored."""

from __future__ import annotations

import numpy as np
import pytest

from craft_server.policy import (
    Policy,
    answerable,
    narrowed,
    policies,
    policy_of,
    with_policy,
)
from craft_shared.head import log_softmax
from craft_shared.wire import EVERYTHING, KeyPolicy, Output

SCORES = log_softmax(np.random.default_rng(0).normal(0, 2, (2, 4, 6)).astype(np.float32))
LABEL = Output(level="label")


def test_a_key_without_policies_sees_everything() -> None:
    assert policy_of(None, "pocket") == Policy() == Policy(EVERYTHING, None)
    assert policies(None) == []


def test_a_models_own_policy_comes_before_the_one_for_all() -> None:
    stored = with_policy(None, [KeyPolicy(model="RN50", output=LABEL, prompts_per_image_set=9)])
    assert policy_of(stored, "RN50") == Policy(LABEL, 9)
    assert policy_of(stored, "pocket") == Policy()
    stored = with_policy(stored, [KeyPolicy(output=Output(level="top_k", k=2))])
    assert policy_of(stored, "RN50") == Policy(LABEL, 9)
    assert policy_of(stored, "pocket") == Policy(Output(level="top_k", k=2))
    stored = with_policy(stored, [KeyPolicy(model="RN50")])
    assert policy_of(stored, "RN50") == Policy()
    assert [one.model for one in policies(stored)] == [None, "RN50"]


@pytest.mark.parametrize(
    ("output", "top_k", "expected"),
    [
        (EVERYTHING, None, EVERYTHING),
        (EVERYTHING, 3, Output(level="top_k", k=3)),
        (LABEL, 3, LABEL),
        (Output(level="top_k", k=2), 3, Output(level="top_k", k=2)),
        (Output(level="top_k", k=5), 3, Output(level="top_k", k=3)),
        (Output(level="top_k", k=5), None, Output(level="top_k", k=5)),
        (Output(level="probs", decimals=2), 3, Output(level="probs", decimals=2, k=3)),
        (Output(level="log_probs", decimals=1), 3, Output(level="top_k", k=3, decimals=1)),
    ],
)
def test_a_request_only_narrows(output: Output, top_k: int | None, expected: Output) -> None:
    made = narrowed(output, top_k)
    assert made == expected
    assert Output.model_validate(made.model_dump()) == expected


def test_a_head_reads_what_its_publisher_sees_and_no_more() -> None:
    fine, coarse = Output(level="probs", decimals=3), Output(level="probs", decimals=2)
    assert Policy().reads(fine)
    assert Policy(Output(noise=1.0)).reads(LABEL)
    assert Policy(coarse).reads(coarse)
    assert Policy(coarse.model_copy(update={"noise": 1.0})).reads(coarse)
    for output in (fine, EVERYTHING, LABEL, Output(level="top_k", k=1)):
        assert not Policy(coarse).reads(output)


def test_noise_comes_before_the_level() -> None:
    noise = np.zeros_like(SCORES)
    least = SCORES.argmin(-1)[..., None]
    np.put_along_axis(noise, least, 50, -1)
    np.testing.assert_array_equal(answerable(SCORES, LABEL, noise)["top_classes"], least)
    answered = answerable(SCORES, Output(noise=1.0), noise)["log_probs"]
    np.testing.assert_allclose(np.exp(answered).sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(answered, least, -1), 0, atol=1e-5)


def test_numbers_that_are_equal_as_they_are_sent_come_in_the_order_of_classes() -> None:
    near = np.array([[[-3.0, -0.1 - 1e-6, -0.1]]], np.float32)
    output = Output(level="top_k", k=2)
    assert answerable(near, output)["top_classes"].tolist() == [[[2, 1]]]
    assert answerable(near, output, dtype="float16")["top_classes"].tolist() == [[[1, 2]]]


LEVELS = {
    "all": Output(),
    "2 decimals": Output(decimals=2),
    "noisy": Output(noise=0.5),
    "top 5": Output(level="top_k", k=5),
    "top 2": Output(level="top_k", k=2),
    "probs": Output(level="probs", decimals=2),
    "2 probs": Output(level="probs", decimals=2, k=2),
    "label": Output(level="label"),
}
WITHIN = {
    "all": {"all"},
    "2 decimals": {"all", "2 decimals"},
    "noisy": {"all", "noisy"},
    "top 5": {"all", "top 5"},
    "top 2": {"all", "top 5", "top 2"},
    "probs": {"all", "probs"},
    "2 probs": {"all", "probs", "top 5", "top 2", "2 probs"},
    "label": set(LEVELS) - {"noisy"},
}


@pytest.mark.parametrize("name", LEVELS)
def test_levels_are_within_those_that_are_as_fine(name: str) -> None:
    found = {other for other in LEVELS if Policy(LEVELS[name]).within(Policy(LEVELS[other]))}
    assert found == WITHIN[name]
