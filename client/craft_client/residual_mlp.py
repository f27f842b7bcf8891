"""CraFT's prediction refinement module while it is trained: a residual MLP, in numpy.

Source: CraFT (arXiv 2402.04050), sections 3.2 and 3.3.

Shapes: N images, C classes, H hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from craft_shared.head import ResidualMLPHead, centred

Array = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]

RATE = 1e-3


class ResidualMLP:
    """The paper's head while it is trained: s + MLP(s), C-256-C with ReLU, on one prompt's scores.

    Adam with rate 1e-3, and PyTorch's default start of both layers, as in the
    released code.

    Args:
        classes: C.
        hidden: H.
        seed: any integers.
    """

    def __init__(self, classes: int, *, hidden: int = 256, seed: Sequence[int]) -> None:
        self._generator = np.random.default_rng(seed)

        def uniform(inputs: int, *shape: int) -> Array:
            bound = 1 / np.sqrt(inputs)
            return self._generator.uniform(-bound, bound, shape).astype(np.float32)

        self._parameters: list[Array] = [
            uniform(classes, classes, hidden),
            uniform(classes, hidden),
            uniform(hidden, hidden, classes),
            uniform(hidden, classes),
        ]
        self._first_moments = [np.zeros_like(parameter) for parameter in self._parameters]
        self._second_moments = [np.zeros_like(parameter) for parameter in self._parameters]
        self._steps = 0

    def head(self) -> ResidualMLPHead:
        """The head as it is now."""
        hidden_weight, hidden_bias, weight, bias = self._parameters
        return ResidualMLPHead(hidden_weight.copy(), hidden_bias.copy(), weight.copy(), bias.copy())

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """All that further training depends on: what JSON can hold, and tensors."""
        tensors = {
            f"{kind}.{number}": tensor
            for kind, group in self._groups()
            for number, tensor in enumerate(group)
        }
        return {"steps": self._steps, "generator": self._generator.bit_generator.state}, tensors

    def restore(self, document: Mapping[str, Any], tensors: Mapping[str, Array]) -> None:
        """Continues from what `state` returned."""
        self._steps = document["steps"]
        self._generator.bit_generator.state = document["generator"]
        for kind, group in self._groups():
            group[:] = [tensors[f"{kind}.{number}"].copy() for number in range(len(group))]

    def _groups(self) -> list[tuple[str, list[Array]]]:
        return [
            ("parameter", self._parameters),
            ("first moment", self._first_moments),
            ("second moment", self._second_moments),
        ]

    def train_epoch(
        self, scores: Array, labels: Labels, *, consistency_weight: float, batch_size: int = 256
    ) -> None:
        """One pass over the images' log-probabilities [N, C], in a random order.

        Loss: cross-entropy of the refined prediction plus `consistency_weight` times the divergence
        of the unrefined prediction from it (CraFT, sections 3.2 and 3.3).
        """
        scores = centred(scores)
        order = self._generator.permutation(len(labels))
        for begin in range(0, len(order), batch_size):
            batch = order[begin : begin + batch_size]
            _, gradients = mlp_loss(
                self._parameters, scores[batch], labels[batch], consistency_weight
            )
            self._adam_step(gradients)

    def _adam_step(self, gradients: list[Array]) -> None:
        """Kingma and Ba, 2015, with their constants."""
        self._steps += 1
        first, second = 1 - 0.9**self._steps, 1 - 0.999**self._steps
        for parameter, gradient, m, v in zip(
            self._parameters, gradients, self._first_moments, self._second_moments, strict=True
        ):
            m += 0.1 * (gradient - m)
            v += 0.001 * (gradient**2 - v)
            parameter -= RATE * (m / first) / (np.sqrt(v / second) + 1e-8)


def mlp_loss(
    parameters: Sequence[Floats], scores: Floats, labels: Labels, consistency_weight: float
) -> tuple[float, list[Floats]]:
    """The loss of `ResidualMLP` on log-probabilities, and its gradients.

    Args:
        parameters: hidden weight [C, H], hidden bias [H], weight [H, C], bias [C].
        scores: centred, [N, C].
        labels: int64 [N].
        consistency_weight: >= 0.

    Returns:
        The loss in nats, and gradients of the parameters' shapes and dtype.
    """
    hidden_weight, hidden_bias, weight, bias = parameters
    truth = np.arange(len(labels)), labels
    hidden = np.maximum(scores @ hidden_weight + hidden_bias, 0)
    unrefined_log_probs = log_softmax(scores, axis=-1)
    unrefined_probs = np.exp(unrefined_log_probs)
    log_probs = log_softmax(scores + hidden @ weight + bias, axis=-1)
    divergences = (unrefined_probs * (unrefined_log_probs - log_probs)).sum(axis=-1)
    loss = -log_probs[truth].mean() + consistency_weight * divergences.mean()

    probs = np.exp(log_probs)
    slope = probs + consistency_weight * (probs - unrefined_probs)
    slope[truth] -= 1
    slope /= len(labels)
    hidden_slope = slope @ weight.T * (hidden > 0)
    gradients = [
        scores.T @ hidden_slope,
        hidden_slope.sum(axis=0),
        hidden.T @ slope,
        slope.sum(axis=0),
    ]
    return float(loss), gradients
