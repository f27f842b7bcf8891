"""The algebra of craftbox's recipe: spanning texts, ridge and discriminant, and calibration.

Shapes: N images, D inputs, C classes. Regularisations are relative to the inputs' total variance,
so that a value means the same on every set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
_TOLERANCE = 1e-2  # of the scale: the loss, at its least, differs by far less
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
    """Ridge regression on inputs [N, D] with an unpenalised intercept.

    With the left singular vectors Q of the centred inputs X, their squared singular values s and
    f = s / (s + λ), fitted values are mean + Q f Q'Y. Q and s come from the smaller of X X' and
    X'X.
    """

    def __init__(self, inputs: Floats) -> None:
        self._mean = inputs.mean(axis=0, dtype=np.float64)
        rows = inputs - self._mean
        images, count = inputs.shape
        is_wide = images <= count
        products = rows @ rows.T if is_wide else rows.T @ rows
        values, vectors = np.linalg.eigh(products)
        there = values > ROUNDING * values.max(initial=0.0)
        self._values, vectors = values[there], vectors[:, there]
        # X'Q and Q, of which one is the eigenvectors.
        if is_wide:
            self._loadings, self._vectors = rows.T @ vectors, vectors
        else:
            self._loadings = vectors * np.sqrt(self._values)
            self._vectors = rows @ (vectors / np.sqrt(self._values))
        self._variance = self._values.sum()

    def shrinkage(self, regularisation: float) -> Double:
        """f, float64 [rank]."""
        kept: Double = self._values / (self._values + regularisation * self._variance)
        return kept

    def held_out(
        self,
        indicators: Double,
        others: Double,
        regularisations: Iterable[float],
        shares: Sequence[float],
        folds: Sequence[Labels],
    ) -> Iterator[tuple[Double, Double]]:
        """What the fit without each fold says of it, and misses, for each regularisation.

        Residuals of left-out images solve the equation of the fitted residuals with their block of
        the hat matrix (Allen's PRESS, for several images at once). With these predictions for
        targets the fit would be the same, which gives its class means over the other images.

        Args:
            indicators: of the images' classes, float64 [N, C].
            others: further targets, float64 [N, T].
            regularisations: > 0.
            shares: S of the scatter between classes that is taken out; see `discriminant`.
            folds: numbers of images that are left out together, F in all. Each leaves in others of
                all classes.

        Yields:
            Scores of the classes, float64 [S, F, C], and residuals of the further targets, [F, T].
        """
        classes = indicators.shape[1]
        targets = np.hstack([indicators, others])
        mean, counts = targets.mean(axis=0), indicators.sum(axis=0)
        rotated = self._vectors.T @ (targets - mean)
        of_classes = rotated[:, :classes].T  # of indicators too: the inputs' mean is zero
        for regularisation in regularisations:
            shrinkage = self.shrinkage(regularisation)
            slopes = shrinkage[:, None] * rotated
            sums = of_classes @ slopes[:, :classes] + np.outer(counts, mean[:classes])
            scores, further = [], []
            for fold in folds:
                vectors, own = self._vectors[fold], indicators[fold]
                unhatted = np.eye(len(fold)) - 1 / len(targets) - (vectors * shrinkage) @ vectors.T
                residuals = targets[fold] - mean - vectors @ slopes
                residuals = np.linalg.solve(unhatted, residuals)
                change = residuals[:, :classes]
                fitted = own - change
                rest = sums - (of_classes * shrinkage) @ (vectors.T @ change) - own.T @ fitted
                rest -= np.outer(counts, change.sum(axis=0) / len(targets))
                means = rest / (counts - own.sum(axis=0))[:, None]
                maps = (discriminant(means, share) for share in shares)
                scores.append(np.stack([fitted @ matrix + offsets for matrix, offsets in maps]))
                further.append(residuals[:, classes:])
            yield np.concatenate(scores, axis=1), np.concatenate(further)

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

    def solution(self, targets: Double, regularisation: float) -> tuple[Double, Double]:
        """Slopes, float64 [D, T], and intercepts, float64 [T]."""
        mean = targets.mean(axis=0)
        return self._solved(self._vectors.T @ (targets - mean), mean, regularisation)

    def discriminants(
        self, indicators: Double, regularisation: float, parts: Mapping[float, float]
    ) -> tuple[Double, Double]:
        """A weighted sum of discriminants: slopes, float64 [D, C], and intercepts, float64 [C].

        `indicators` are of the images' classes [N, C]; `parts` are weights by share.
        """
        mean = indicators.mean(axis=0)
        rotated = self._vectors.T @ (indicators - mean)
        slopes, intercepts = self._solved(rotated, mean, regularisation)
        fitted = self.shrinkage(regularisation)[:, None] * rotated
        means = mean + rotated.T @ fitted / indicators.sum(axis=0)[:, None]
        maps = [(part, *discriminant(means, share)) for share, part in parts.items()]
        matrix = sum(part * each for part, each, _ in maps)
        offsets = sum(part * each for part, _, each in maps)
        return slopes @ matrix, intercepts @ matrix + offsets

    def _solved(
        self, rotated: Double, mean: Double, regularisation: float
    ) -> tuple[Double, Double]:
        inverse = 1 / (self._values + regularisation * self._variance)
        slopes = self._loadings @ (inverse[:, None] * rotated)
        return slopes, mean - self._mean @ slopes

    def alignment(self, other: Ridge, regularisation: float) -> float:
        """Of both hat matrices, 0 to 1: 1 where both fits say the same whatever the targets."""
        mine, others = self.shrinkage(regularisation), other.shrinkage(regularisation)
        overlap = mine @ (self._vectors.T @ other._vectors) ** 2 @ others
        return float(overlap / (np.linalg.norm(mine) * np.linalg.norm(others) or 1.0))


def discriminant(means: Double, share: float) -> tuple[Double, Double]:
    """A matrix [C, C] and offsets [C]: they make fitted indicators a linear discriminant's scores.

    Ridge regression measures distances by the total scatter, the linear discriminant by what is
    left without the scatter between classes. With indicators for targets one follows from the
    other (Hastie, Buja and Tibshirani, Annals of Statistics 1995): fitted @ matrix + offsets.

    Args:
        means: of the fitted indicators, by class: float64 [C, C].
        share: of the scatter between classes that is taken out, from 0 (ridge) to 1.
    """
    centre, same = means.mean(axis=0), np.eye(len(means))
    matrix = np.linalg.inv(same - share * (means - centre)) if share else same
    # Half of what each class's own mean scores: share * (means - centre) @ matrix = matrix - same.
    offsets = centre - centre @ matrix - np.diagonal(matrix - same) / 2
    return matrix, offsets


def calibrated(logits: Double, labels: Labels, scale: float) -> tuple[float, Array]:
    """The scale of logits [N, C] of least cross-entropy, and each image's loss [N].

    By Newton's method, from the scale given. Labels are smoothed by one part in N + 1, as if one
    image more could be anything; otherwise predictions without an error would call for an infinite
    scale (Platt, 1999, smooths likewise).
    """
    truth = np.arange(len(labels)), labels
    smoothing = 1 / (len(labels) + 1)
    # Less the largest, at any scale.
    below = (logits - logits.max(axis=1, keepdims=True)).astype(np.float32)
    wanted = (1 - smoothing) * below[truth].mean() + smoothing * below.mean(dtype=np.float64)
    for _ in range(_STEPS):
        odds = np.exp(np.float32(scale) * below)
        totals = odds.sum(axis=1)
        odds *= below
        means = odds.sum(axis=1) / totals
        squares = np.einsum("nc,nc->n", odds, below) / totals
        curvature = max(float((squares - means**2).mean()), _LEAST_CURVATURE)
        step = (float(means.mean(dtype=np.float64)) - wanted) / curvature
        better = float(np.clip(scale - step, scale / 2, min(2 * scale, MAX_PARAMETER)))
        if abs(better - scale) <= _TOLERANCE * scale:
            break
        scale = better
    return scale, np.log(totals) - np.float32(scale) * below[truth]
