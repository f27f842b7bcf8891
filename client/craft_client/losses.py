"""Losses of predictions: cross-entropy, and the divergence that prediction consistency measures.

It knows log-probabilities and labels; it does not know which prompt or head they came from.

Shapes: P predictions (one a prompt), N pictures, C classes. Values are in nats a picture.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def cross_entropy(log_probs: Array, labels: NDArray[np.int64]) -> Array:
    """Mean cross-entropy of each prediction.

    Args:
        log_probs: float32 [P, N, C].
        labels: int64 [N].

    Returns:
        float32 [P].
    """
    chosen = log_probs[:, np.arange(len(labels)), labels]
    losses: Array = -chosen.mean(axis=1, dtype=np.float64).astype(np.float32)
    return losses


def divergence(targets: Array, log_probs: Array) -> Array:
    """Mean Kullback-Leibler divergence KL(target || prediction) over pictures.

    Prediction consistency (CraFT, section 3.3) is this in one direction for the search, where the
    target is the refined prediction, and in the other for the head, where it is the unrefined one.

    Args:
        targets: log-probabilities, float32 [N, C] for all predictions alike, or [P, N, C].
        log_probs: float32 [P, N, C].

    Returns:
        float32 [P], >= 0.
    """
    pictures = log_probs.shape[1]
    probs = np.exp(targets)
    if targets.ndim == 2:
        # One matrix-vector product, because the whole population shares one target.
        against_self = np.vdot(probs, targets)
        across = log_probs.reshape(len(log_probs), -1) @ probs.ravel()
        summed = against_self - across
    else:
        summed = np.einsum("pnc,pnc->p", probs, targets - log_probs)
    divergences: Array = np.maximum(summed / pictures, 0).astype(np.float32)
    return divergences


def accuracy(log_probs: Array, labels: NDArray[np.int64]) -> float:
    """Percent of pictures [N, C] whose most probable class is their label."""
    return 100.0 * int((log_probs.argmax(axis=-1) == labels).sum()) / len(labels)


def clearly_less(losses: Array, others: Array, groups: NDArray[np.int64]) -> bool:
    """Whether losses [N] of images are less than others, by more than a standard error.

    Copies of an image, which have one number in `groups` [N], count as one.
    """
    _, copy, count = np.unique(groups, return_inverse=True, return_counts=True)
    gains = np.bincount(copy, others - losses) / count
    return bool(gains.mean() > gains.std() / np.sqrt(len(gains)))
