import numpy as np
import pytest

from craft_shared.head import (
    MAX_PARAMETER,
    LinearHead,
    ResidualMLPHead,
    Unrefined,
    centred_inputs,
    head_from_tensors,
    log_softmax,
)

P, N, C, H = 3, 5, 4, 6
RNG = np.random.default_rng(0)
LOG_PROBS = log_softmax(RNG.normal(size=(P, N, C)).astype(np.float32))


def _array(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


HEADS = [
    Unrefined(),
    LinearHead(_array(P * C, C), _array(C), 2.0, 0.5),
    ResidualMLPHead(_array(C, H), _array(H), _array(H, C), _array(C)),
]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.kind)
def test_heads_give_log_probabilities(head) -> None:
    refined = head(LOG_PROBS)
    assert refined.shape == (N, C)
    assert refined.dtype == np.float32
    np.testing.assert_allclose(np.exp(refined).sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.kind)
def test_heads_survive_their_tensors(head) -> None:
    again = head_from_tensors(head.kind, head.tensors(), prompts=P, classes=C)
    np.testing.assert_array_equal(again(LOG_PROBS), head(LOG_PROBS))


def test_linear_head_ignores_a_constant_added_to_the_logits_of_an_image() -> None:
    head = LinearHead(_array(P * C, C), _array(C), 1.0, 0.0)
    moved = LOG_PROBS + _array(P, N, 1)
    np.testing.assert_allclose(head(moved), head(LOG_PROBS), atol=1e-4)


def test_a_linear_head_reads_further_texts_and_predicts_the_classes_alone() -> None:
    head = LinearHead(_array(P * (C + 2), C), _array(C), 1.5, 0.5)
    log_probs = log_softmax(_array(P, N, C + 2))
    scores = centred_inputs(log_probs) @ head.weight + head.bias
    expected = log_softmax(1.5 * scores + 0.5 * log_probs[0, :, :C])
    np.testing.assert_allclose(head(log_probs), expected, rtol=1e-5)
    again = head_from_tensors("ridge", head.tensors(), prompts=P, classes=C, texts=2)
    np.testing.assert_array_equal(again(log_probs), head(log_probs))


@pytest.mark.parametrize("head", [HEADS[0], HEADS[2]], ids=lambda head: head.kind)
def test_other_heads_read_no_further_texts(head) -> None:
    with pytest.raises(ValueError, match="reads no texts beside the classes"):
        head_from_tensors(head.kind, head.tensors(), prompts=P, classes=C, texts=1)


def test_inputs_are_grouped_by_prompt() -> None:
    inputs = centred_inputs(LOG_PROBS)
    expected = LOG_PROBS[1, 2] - LOG_PROBS[1, 2].mean()
    np.testing.assert_allclose(inputs[2, C : 2 * C], expected, rtol=1e-6)


@pytest.mark.parametrize("head", HEADS[1:], ids=lambda head: head.kind)
def test_the_largest_parameters_give_log_probabilities(head) -> None:
    tensors = head.tensors()
    largest = {name: np.copysign(np.float32(MAX_PARAMETER), tensors[name]) for name in tensors}
    refined = head_from_tensors(head.kind, largest, prompts=P, classes=C)(LOG_PROBS)
    assert np.isfinite(refined).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.bias": None}, "'head.bias' is missing"),
        ({"extra": np.zeros(1, np.float32)}, "'extra' is not one"),
        ({"head.bias": np.zeros(C)}, "has dtype float64"),
        ({"head.bias": np.zeros(C + 1, np.float32)}, "has shape"),
        ({"head.bias": np.full(C, np.nan, np.float32)}, "NaN"),
        ({"head.bias": np.full(C, -3e38, np.float32)}, r"beyond 1e\+06"),
        ({"head.scales": np.array([-1, 1], np.float32)}, "negative"),
    ],
)
def test_wrong_tensors_are_refused_by_name(change: dict, message: str) -> None:
    tensors = {**HEADS[1].tensors(), **change}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        head_from_tensors("ridge", tensors, prompts=P, classes=C)
