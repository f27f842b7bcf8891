"""The algebra of craftbox's recipe: which texts span most, ridge regression, and calibration.

Shapes: N images, D inputs, C classes. Regularisations are relative to the inputs' total variance,
so that a value means the same on every set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpstrf

from craft_shared.head import MAX_PARAMETER, centred

Array = NDArray[np.float32]
Double = NDArray[np.float64]
Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]

ROUNDING = 1e-13  # of the largest variance: directions of less are rounding
_TOLERANCE = 1e-3
_STEPS = 50
_LEAST_CURVATURE = 1e-30  # of logits that are all the same


def spanning_texts(log_probs: Array, classes: int) -> Labels:
    """Orders texts, each the one whose scores are farthest from the span of those before it.

    A Cholesky decomposition with pivots (Golub and Van Loan, Matrix Computations, section 4.2.9).

    Args:
        log_probs: of one prompt, float32 [N, C + V]. The class names come before all texts.
        classes: C.

    Returns:
        Their numbers within the vocabulary, int64 [V].
    """
    scores = centred(log_probs).astype(np.float64)
    scores -= scores.mean(axis=0)
    moments = scores.T @ scores
    of_names, across = moments[:classes, :classes], moments[:classes, classes:]
    explained = across.T @ np.linalg.pinv(of_names, rcond=1e-6, hermitian=True) @ across
    _, pivots, _, _ = dpstrf(moments[classes:, classes:] - explained)
    order: Labels = pivots.astype(np.int64) - 1
    return order


def usual_ridge(images: int) -> float:
    """The regularisation that so many images call for, whatever the classes (docs/method.md)."""
    return float(10**0.25 * images**-1.5)


def unit_of(plain: Floats, targets: Floats, *, least: float) -> float:
    """What plain predictions [N, C] are divided by to vary as much as targets [N, C].

    Infinite where they vary by no more than `least`: rounding says nothing.
    """
    spread = float(plain.std(axis=0).mean())
    return spread / float(targets.std(axis=0).mean()) if spread > least else np.inf


class Ridge:
    """Ridge regression with an unpenalised intercept.

    With the left singular vectors Q of the centred inputs X, their squared singular values s and
    f = s / (s + λ), fitted values are mean + Q f Q'Y. Q and s come from the smaller of X X' and
    X'X.

    Args:
        inputs: X, float [N, D].
    """

    def __init__(self, inputs: Floats) -> None:
        self._mean = inputs.mean(axis=0, dtype=np.float64)
        self._inputs = inputs - self._mean
        images, count = inputs.shape
        if images <= count:
            values, vectors = np.linalg.eigh(self._inputs @ self._inputs.T)
            there = values > ROUNDING * values.max(initial=0.0)
            self._values, self._vectors = values[there], vectors[:, there]
        else:
            values, directions = np.linalg.eigh(self._inputs.T @ self._inputs)
            there = values > ROUNDING * values.max(initial=0.0)
            self._values = values[there]
            self._vectors = self._inputs @ (directions[:, there] / np.sqrt(self._values))
        self._variance = self._values.sum()

    def shrinkage(self, regularisation: float) -> Double:
        """f, float64 [rank]."""
        kept: Double = self._values / (self._values + regularisation * self._variance)
        return kept

    def held_out(
        self, targets: Double, regularisations: Iterable[float], folds: Sequence[Labels]
    ) -> Iterator[Double]:
        """What the fit without each fold says of it, at each regularisation: [images of folds, C].

        Residuals of left-out images solve the equation of the fitted residuals with their block of
        the hat matrix (Allen's PRESS, for several images at once).

        Args:
            targets: float64 [N, C].
            regularisations: > 0.
            folds: numbers of images that are left out together.
        """
        mean = targets.mean(axis=0)
        rotated = self._vectors.T @ (targets - mean)
        for regularisation in regularisations:
            shrinkage = self.shrinkage(regularisation)
            slopes = shrinkage[:, None] * rotated
            parts = [targets[:0]]
            for fold in folds:
                vectors = self._vectors[fold]
                residuals = targets[fold] - mean - vectors @ slopes
                others = np.eye(len(fold)) - 1 / len(targets) - (vectors * shrinkage) @ vectors.T
                parts.append(targets[fold] - np.linalg.solve(others, residuals))
            yield np.concatenate(parts)

    def surprise(self, targets: Double, regularisation: float) -> float:
        """Negative logarithm of the targets' likelihood, [N, C], but for a constant; for each.

        Of the Gaussian process whose mean the fit is, with the most likely noise.
        """
        residuals = targets - targets.mean(axis=0)
        energies = ((self._vectors.T @ residuals) ** 2).sum(axis=1)
        kept = self.shrinkage(regularisation)
        noise = (residuals**2).sum() - (kept * energies).sum()
        noise = max(noise, ROUNDING)  # targets that never vary leave none
        return float(len(targets) * np.log(noise) - np.log1p(-kept).sum()) / 2

    def solution(self, targets: Double, regularisation: float) -> tuple[Array, Array]:
        """Weight, float32 [D, C], and bias, float32 [C]."""
        mean = targets.mean(axis=0)
        inverse = 1 / (self._values + regularisation * self._variance)
        slopes = inverse[:, None] * (self._vectors.T @ (targets - mean))
        weight = self._inputs.T @ (self._vectors @ slopes)
        bias = mean - self._mean @ weight
        return weight.astype(np.float32), bias.astype(np.float32)

    def alignment(self, other: Ridge, regularisation: float) -> float:
        """Of both hat matrices, 0 to 1: 1 where both fits say the same whatever the targets."""
        mine, others = self.shrinkage(regularisation), other.shrinkage(regularisation)
        overlap = mine @ (self._vectors.T @ other._vectors) ** 2 @ others
        return float(overlap / (np.linalg.norm(mine) * np.linalg.norm(others) or 1.0))


def calibrated(logits: Double, labels: Labels, scale: float) -> tuple[float, Array]:
    """The scale of logits [N, C] of least cross-entropy, by Newton's method, and each image's loss.

    Labels are smoothed by one part in N + 1, as if one image more could be anything; otherwise
    predictions without an error would call for an infinite scale (Platt, 1999, smooths likewise).

    Args:
        logits: float64 [N, C].
        labels: int64 [N].
        scale: to begin with, > 0.
    """
    truth = np.arange(len(labels)), labels
    smoothing = 1 / (len(labels) + 1)
    # Less the largest, at any scale.
    below = (logits - logits.max(axis=1, keepdims=True)).astype(np.float32)
    wanted = (1 - smoothing) * below[truth].mean() + smoothing * below.mean(dtype=np.float64)
    for _ in range(_STEPS):
        odds = np.exp(np.float32(scale) * below)
        totals = odds.sum(axis=1)
        weighted = odds * below
        means = weighted.sum(axis=1) / totals
        squares = (weighted * below).sum(axis=1) / totals
        curvature = max((squares - means**2).mean(), _LEAST_CURVATURE)
        step = (means.mean() - wanted) / curvature
        last, scale = scale, float(np.clip(scale - step, scale / 2, min(2 * scale, MAX_PARAMETER)))
        if abs(scale - last) <= _TOLERANCE * last:
            break
    log_totals = np.log(np.exp(np.float32(scale) * below).sum(axis=1))
    return scale, log_totals - np.float32(scale) * below[truth]
