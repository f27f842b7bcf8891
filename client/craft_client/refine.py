"""Fits heads: log-probabilities and labels in; a head, and what it is worth on others, out.

It knows the numbers of the pictures it is given; it does not know which prompts they came from, nor
that anybody paid for them.

Two heads: a closed-form linear one, and the residual MLP of CraFT (section 3.2).

Shapes: P prompts, N pictures, C classes, M further texts, D = P * (C + M) inputs, H hidden units.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

from craft_client.losses import accuracy, cross_entropy
from craft_shared.head import (
    Head,
    LinearHead,
    ResidualMLPHead,
    Unrefined,
    centred,
    centred_inputs,
)

Array = NDArray[np.float32]
Double = NDArray[np.float64]
Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]

# Relative to the inputs' total variance, so that a value means the same on every set.
REGULARISATIONS: Double = np.logspace(-6, 0, 13)

# Where no class has two pictures nothing can be measured, and these hold. With real image features
# and one picture a class they were within 0.01 nats of the best there for good, middling and bad
# plain prompts alike.
ONE_SHOT_REGULARISATION = 1e-3
ONE_SHOT_HEAD_SCALE_PER_NAT = 10.0
ONE_SHOT_HEAD_SCALE_AT_MOST = 20.0

# Directions of less than this part of the largest variance are rounding.
ROUNDING = 1e-13

MLP_RATE = 1e-3


@dataclass(frozen=True)
class Refinement:
    """A head, and what it says of each picture when it was fitted without it.

    By this regularisation and candidates are chosen. What is said of the one that was chosen is
    then too good: `craft_client.held_out` measures without that.

    Attributes:
        head: fitted on all pictures.
        log_probs: held-out predictions, float32 [N, C].
        accuracy: percent of the measured held-out predictions that are right; None where the labels
            leave nothing to measure.
        losses: cross-entropy of each measured held-out prediction in nats, float32 [M], M <= N.
        regularisation: of the closed form, relative to the inputs' variance; None for other heads.
        groups: of the M pictures, copies of one having one number, int64 [M]; None where there are
            no copies.
    """

    head: Head
    log_probs: Array
    accuracy: float | None
    losses: Array
    regularisation: float | None = None
    groups: Labels | None = None

    @property
    def loss(self) -> float | None:
        """Mean of `losses`; None where the labels leave nothing to measure."""
        return float(self.losses.mean(dtype=np.float64)) if self.losses.size else None

    def improves_on(self, other: Refinement, *, errors: float = 1.0) -> bool:
        """Whether it is better than another of the same pictures, beyond chance.

        Held-out accuracy must be no worse, and the loss must be lower by more than `errors`
        standard errors of the pictures' differences (as in the one-standard-error rule of Breiman
        et al., 1984), copies of a picture counting as one. With few pictures a smaller difference
        is mostly luck.
        """
        if self.accuracy is None or other.accuracy is None:
            return False
        gains = (other.losses - self.losses).astype(np.float64)
        gain = gains.mean()
        groups = np.arange(len(gains)) if self.groups is None else self.groups
        of_groups = np.bincount(groups, gains - gain)[np.unique(groups)]
        pictures = len(of_groups)
        error = np.sqrt((of_groups**2).sum() * pictures / max(1, pictures - 1)) / len(gains)
        return self.accuracy >= other.accuracy and bool(gain > errors * error)


def measurable(labels: Labels, groups: Labels | None = None) -> NDArray[np.bool_]:
    """Pictures [N] whose class has another picture, so that leaving them out leaves the class in.

    Copies of a picture, which have its number in `groups` [N], are no other one. Nothing is
    measurable where fewer than half of the pictures are: the rest would say little of the whole.
    """
    groups = np.arange(len(labels)) if groups is None else groups
    different = np.unique(np.stack([labels, groups]), axis=1)[0]
    rows: NDArray[np.bool_] = np.bincount(different)[labels] > 1
    return rows if 2 * rows.sum() >= len(rows) else np.zeros_like(rows)


def unrefined(log_probs: Array, labels: Labels, groups: Labels | None = None) -> Refinement:
    """The prediction [N, C] of one prompt as it is. It is fitted to nothing, so all is held out.

    It is measured on the same pictures as the other heads (`measurable`), or on all where these
    have none.
    """
    rows = measurable(labels, groups)
    rows = rows if rows.any() else np.ones_like(rows)
    return _measured(Unrefined(), Unrefined()(log_probs[None]), labels, rows, groups)


def fit_ridge(
    log_probs: Array,
    labels: Labels,
    regularisations: Sequence[float] | Double = REGULARISATIONS,
    *,
    groups: Labels | None = None,
) -> Refinement:
    """Fits the closed-form head on log-probabilities [P, N, C + M]; prompt 0 is the plain one.

    C is the largest label and one: each class has a picture.

    Ridge regression from the centred log-probabilities of all prompts to one-hot labels. For each
    regularisation the exact leave-one-out predictions come from one eigendecomposition; on them the
    head's two scales are calibrated, by least cross-entropy, and the regularisation whose
    leave-one-out cross-entropy is then least is kept. (Chosen by squared error it was up to two
    points worse at 2 and 4 pictures a class.) Copies of one picture, which have one number in
    `groups` [N], are left out together.

    A picture alone in its class cannot be left out sensibly, for then nothing knows the class:
    such pictures are fitted but not measured. Where hardly any other is left (one-shot), the
    regularisation is a constant, the plain prediction is calibrated on its own, and the head's
    scale grows with the loss that this leaves; accuracy and loss are None, and `log_probs` is the
    calibrated plain prediction.
    """
    inputs = centred_inputs(log_probs).astype(np.float64)
    targets = np.eye(int(labels.max()) + 1)[labels]
    plain = log_probs[0, :, : targets.shape[1]].astype(np.float64)
    path = _RidgePath(inputs, targets)
    rows = measurable(labels, groups)
    if not rows.any():
        return _one_shot(path, plain, labels)
    copies = _copies(groups)

    def fits() -> Iterator[tuple[float, float, Double, Double]]:
        scales: Double = np.array([10.0, 0.5])
        for regularisation in regularisations:
            scores = path.leave_one_out(regularisation, copies)
            # Starting from the last scales, because neighbours' are alike.
            scales, loss = _calibrate(np.stack([scores[rows], plain[rows]]), labels[rows], scales)
            yield loss, float(regularisation), scales, scores

    # One after the other, because their scores are as many as the answers.
    _, regularisation, (head_scale, plain_scale), scores = min(fits(), key=lambda fit: fit[0])
    held_out = log_softmax(head_scale * scores + plain_scale * plain, axis=-1).astype(np.float32)
    head = path.head(regularisation, float(head_scale), float(plain_scale))
    return _measured(head, held_out, labels, rows, groups, regularisation)


class _RidgePath:
    """Ridge regression with an unpenalised intercept, at any regularisation, by one factorisation.

    With the left singular vectors Q of the centred inputs X, their squared singular values s, and
    f = s / (s + λ), fitted values are mean + Q f Q'Y and the hat matrix has the diagonal 1/N + Σ Q²
    f; a left-out residual is the residual over one minus that (Allen's PRESS), and those of
    pictures that are left out together solve the same equation with their block of the hat matrix.
    λ is `regularisation` times the trace of X X', with the left-out picture in it. Q and s come
    from the smaller of X X' and X'X.
    """

    def __init__(self, inputs: Double, targets: Double) -> None:
        self._input_mean = inputs.mean(axis=0)
        self._target_mean = targets.mean(axis=0)
        self._inputs = inputs - self._input_mean
        self._targets = targets
        pictures, count = inputs.shape
        if pictures <= count:
            values, self._vectors = np.linalg.eigh(self._inputs @ self._inputs.T)
            self._values = np.maximum(values, 0)
        else:
            values, directions = np.linalg.eigh(self._inputs.T @ self._inputs)
            there = values > ROUNDING * values.max(initial=0.0)
            self._values = values[there]
            self._vectors = self._inputs @ (directions[:, there] / np.sqrt(self._values))
        self._variance = self._values.sum() or 1.0
        self._rotated = self._vectors.T @ (targets - self._target_mean)

    def leave_one_out(self, regularisation: float, copies: Sequence[Labels] = ()) -> Double:
        """What the fit without picture i says of it, for all i: float64 [N, C].

        Pictures that are `copies` of each other, their numbers, are left out together.
        """
        kept = self._values / (self._values + regularisation * self._variance)
        fitted = self._target_mean + self._vectors @ (kept[:, None] * self._rotated)
        residuals = self._targets - fitted
        leverage = 1 / len(fitted) + self._vectors**2 @ kept
        scores: Double = self._targets - residuals / (1 - leverage)[:, None]
        for same in copies:
            vectors = self._vectors[same]
            others = np.eye(len(same)) - 1 / len(fitted) - (vectors * kept) @ vectors.T
            scores[same] = self._targets[same] - np.linalg.solve(others, residuals[same])
        return scores

    def head(self, regularisation: float, head_scale: float, plain_scale: float) -> LinearHead:
        """The head with this fit's weight and bias."""
        kept = 1 / (self._values + regularisation * self._variance)
        weight = self._inputs.T @ (self._vectors @ (kept[:, None] * self._rotated))
        bias = self._target_mean - self._input_mean @ weight
        return LinearHead(
            weight.astype(np.float32), bias.astype(np.float32), head_scale, plain_scale
        )


def _one_shot(path: _RidgePath, plain: Double, labels: Labels) -> Refinement:
    (plain_scale,), _ = _calibrate(plain[None], labels, np.array([0.5]))
    held_out = log_softmax(plain_scale * plain, axis=-1).astype(np.float32)
    plain_loss = float(cross_entropy(held_out[None], labels)[0])
    head_scale = min(ONE_SHOT_HEAD_SCALE_PER_NAT * plain_loss, ONE_SHOT_HEAD_SCALE_AT_MOST)
    head = path.head(ONE_SHOT_REGULARISATION, head_scale, float(plain_scale))
    return Refinement(head, held_out, None, np.zeros(0, np.float32), ONE_SHOT_REGULARISATION)


def _calibrate(logits: Double, labels: Labels, start: Double) -> tuple[Double, float]:
    """The weights >= 0 of K logits [K, N, C] whose sum has the least cross-entropy, and that.

    Labels are smoothed by one part in N + 1, as if one picture more could be anything; otherwise
    predictions without an error would call for infinite weights (Platt, 1999, smooths likewise).
    """
    pictures, classes = logits.shape[1:]
    smoothing = 1 / (pictures + 1)
    targets = np.full((pictures, classes), smoothing / classes)
    targets[np.arange(pictures), labels] += 1 - smoothing

    def loss_and_gradient(weights: Double) -> tuple[float, Double]:
        log_probs = log_softmax(np.tensordot(weights, logits, axes=1), axis=-1)
        slope = np.exp(log_probs) - targets
        gradient: Double = np.tensordot(logits, slope, axes=2) / pictures
        return -float(np.vdot(targets, log_probs)) / pictures, gradient

    found = minimize(
        loss_and_gradient,
        start,
        jac=True,
        # Not the default, whose linear algebra waits for BLAS threads at every step.
        method="TNC",
        bounds=[(0, None)] * len(logits),
    )
    return found.x, float(found.fun)


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
        """Goes on from what `state` told."""
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
        """One pass over the pictures' log-probabilities [N, C], in a random order.

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
            parameter -= MLP_RATE * (m / first) / (np.sqrt(v / second) + 1e-8)


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


def _copies(groups: Labels | None) -> list[Labels]:
    """The pictures of each group that has several."""
    if groups is None:
        return []
    order = np.argsort(groups, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    return [part for part in parts if len(part) > 1]


def _measured(
    head: Head,
    held_out: Array,
    labels: Labels,
    rows: NDArray[np.bool_],
    groups: Labels | None,
    regularisation: float | None = None,
) -> Refinement:
    losses = -held_out[np.flatnonzero(rows), labels[rows]]
    measured = None if groups is None else groups[rows]
    return Refinement(
        head, held_out, accuracy(held_out[rows], labels[rows]), losses, regularisation, measured
    )
