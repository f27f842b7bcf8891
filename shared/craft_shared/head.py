"""Heads as functions: log-probabilities in, refined log-probabilities out.

A head is what the paper calls the prediction refinement module (CraFT, section 3.2). The tuner fits
it (`craft_client.recipes`), the server applies the very same function when it serves an adapter.

Shapes: P prompts, N images, C classes, M further texts that are scored beside the classes (none in
strict mode). Prompt 0 is the plain prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from craft_shared.codec import Tensors

HeadKind = Literal["none", "ridge", "mlp"]
HEAD_KINDS: tuple[HeadKind, ...] = get_args(HeadKind)
Array = NDArray[np.float32]
# Far outside what is fitted; of such parameters no sum or product overflows single precision.
MAX_PARAMETER = 1e6


class Head(Protocol):
    """Refines the log-probabilities of P prompts into one prediction an image."""

    @property
    def kind(self) -> HeadKind:
        """The name by which an adapter's config calls the head."""
        ...

    def __call__(self, log_probs: Array) -> Array:
        """Maps log-probabilities [P, N, C + M] to refined log-probabilities [N, C]."""
        ...

    def tensors(self) -> Tensors:
        """The head's parameters by name, as float32, for an adapter."""
        ...


def log_softmax(logits: Array) -> Array:
    """Log-probabilities along the last axis, computed without overflow."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normalised: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised


def centred(log_probs: Array) -> Array:
    """Log-probabilities [..., C] less their mean.

    That takes the softmax normaliser away, so that what is left is linear in the hidden image
    embedding: the model's scores, but for a number for each image.
    """
    scores: Array = log_probs - log_probs.mean(axis=-1, keepdims=True)
    return scores


def centred_inputs(log_probs: Array) -> Array:
    """The linear head's inputs, [N, P * (C + M)]: each prompt's centred log-probabilities."""
    prompts, images, texts = log_probs.shape
    scores = centred(log_probs).transpose(1, 0, 2)
    return np.ascontiguousarray(scores).reshape(images, prompts * texts)


@dataclass(frozen=True)
class Unrefined:
    """No refinement: the last prompt's prediction, the searched one's where there is one."""

    kind: HeadKind = "none"

    def __call__(self, log_probs: Array) -> Array:
        """See `Head`."""
        return log_softmax(log_probs[-1])

    def tensors(self) -> Tensors:
        """See `Head`."""
        return {}


@dataclass(frozen=True)
class LinearHead:
    """The closed-form head: a linear map of all prompts' centred log-probabilities.

    logits = head_scale * (X W + b) + plain_scale * (the classes' log-probabilities under prompt 0)
    """

    weight: Array  # W, float32 [P * (C + M), C]
    bias: Array  # b, float32 [C]
    head_scale: float  # how much the linear map counts, >= 0
    plain_scale: float  # how much the plain prompt's prediction counts, >= 0
    kind: HeadKind = "ridge"

    def __call__(self, log_probs: Array) -> Array:
        """See `Head`."""
        scores = centred_inputs(log_probs) @ self.weight + self.bias
        plain = log_probs[0, :, : len(self.bias)]
        return log_softmax(
            np.float32(self.head_scale) * scores + np.float32(self.plain_scale) * plain
        )

    def tensors(self) -> Tensors:
        """See `Head`."""
        return {
            "head.weight": self.weight,
            "head.bias": self.bias,
            "head.scales": np.array([self.head_scale, self.plain_scale], dtype=np.float32),
        }


@dataclass(frozen=True)
class ResidualMLPHead:
    """The paper's head: s + MLP(s) with one hidden layer and ReLU, on one prompt's scores s.

    Scores are centred log-probabilities. The prompt is the last of the P prompts, the searched one.
    Source: CraFT, section 3.2.
    """

    hidden_weight: Array  # float32 [C, H]
    hidden_bias: Array  # float32 [H]
    weight: Array  # float32 [H, C]
    bias: Array  # float32 [C]
    kind: HeadKind = "mlp"

    def __call__(self, log_probs: Array) -> Array:
        """See `Head`."""
        scores = centred(log_probs[-1])
        hidden = np.maximum(scores @ self.hidden_weight + self.hidden_bias, 0)
        return log_softmax(scores + hidden @ self.weight + self.bias)

    def tensors(self) -> Tensors:
        """See `Head`."""
        return {
            "head.hidden_weight": self.hidden_weight,
            "head.hidden_bias": self.hidden_bias,
            "head.weight": self.weight,
            "head.bias": self.bias,
        }


def head_from_tensors(
    kind: HeadKind, tensors: Tensors, *, prompts: int, classes: int, texts: int = 0
) -> Head:
    """Builds a head from an adapter's tensors after checking names, dtypes, shapes, sizes.

    `texts` is M.

    Raises:
        ValueError: a tensor is missing, unknown, not float32, of another shape, or too large; or
            the head is not one that reads texts beside the classes.
    """
    if texts and kind != "ridge":
        raise ValueError(f"a head of kind '{kind}' reads no texts beside the classes")
    if kind == "none":
        check_tensors(tensors, {})
        return Unrefined()
    if kind == "ridge":
        check_tensors(
            tensors,
            {
                "head.weight": (prompts * (classes + texts), classes),
                "head.bias": (classes,),
                "head.scales": (2,),
            },
        )
        head_scale, plain_scale = tensors["head.scales"].tolist()
        if head_scale < 0 or plain_scale < 0:
            raise ValueError("tensor 'head.scales' holds a negative scale")
        return LinearHead(tensors["head.weight"], tensors["head.bias"], head_scale, plain_scale)
    hidden = tensors["head.hidden_bias"].size if "head.hidden_bias" in tensors else 0
    check_tensors(
        tensors,
        {
            "head.hidden_weight": (classes, hidden),
            "head.hidden_bias": (hidden,),
            "head.weight": (hidden, classes),
            "head.bias": (classes,),
        },
    )
    return ResidualMLPHead(
        tensors["head.hidden_weight"],
        tensors["head.hidden_bias"],
        tensors["head.weight"],
        tensors["head.bias"],
    )


def check_tensors(tensors: Tensors, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises ValueError unless `tensors` are exactly these, float32 and not too large."""
    for name in sorted(tensors.keys() ^ shapes.keys()):
        state = "missing" if name in shapes else "not one that this adapter has"
        raise ValueError(f"tensor '{name}' is {state}")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.dtype != np.float32:
            raise ValueError(f"tensor '{name}' has dtype {tensor.dtype}; float32 is expected")
        if tensor.shape != shape:
            raise ValueError(f"tensor '{name}' has shape {tensor.shape}; {shape} is expected")
        if not (np.abs(tensor) <= MAX_PARAMETER).all():
            raise ValueError(f"tensor '{name}' holds NaN, or a number beyond {MAX_PARAMETER:g}")
