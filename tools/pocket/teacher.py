"""The teacher: where in the image embedding pictures of a phrase should lie.

For ImageNet's classes that is known: the classifier's rows, centred and projected. Every other
phrase gets its place from theirs through sentence similarity (MiniLM): the normalised weighted sum
of a ridge map and a softmax-weighted average of class rows. This module knows linear algebra; it
does not know files, pictures or the text tower.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]

EMBED_DIM = 512
RIDGE = 1.0
TEMPERATURE = 0.05
RIDGE_SHARE = 1.0  # of the ridge map's direction, beside 1 of the softmax-weighted average's
KNOWN_SHARE = 0.5  # of a class name's estimated target, beside 1 of its classes' own rows


def normalised(x: Floats) -> Floats:
    """Rows of ``x`` scaled to unit length."""
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), dtype=np.float32)


def relu6_mean(mean: Tensor, std: Tensor) -> Tensor:
    """E[min(max(X, 0), 6)] for X ~ N(mean, std^2), elementwise."""
    normal = torch.distributions.Normal(0.0, 1.0)

    def density(x: Tensor) -> Tensor:
        return torch.exp(normal.log_prob(x))

    std = std.abs() + 1e-9
    low, high = -mean / std, (6 - mean) / std
    inside = normal.cdf(high) - normal.cdf(low)
    return mean * inside + std * (density(low) - density(high)) + 6 * (1 - normal.cdf(high))


@dataclass(frozen=True)
class Projection:
    """What turns pooled features [n, 1280] into image embeddings, and the class rows there."""

    weight: Floats  # [512, 1280]
    bias: Floats  # [512], minus the projected mean feature
    class_rows: Floats  # [1000, 512], unit norm


def vision_projection(weights: dict[str, Tensor]) -> Projection:
    """Project on the 512 leading right singular vectors of the centred classifier matrix.

    The mean feature needs no picture: the last batch normalisation leaves channel c roughly
    N(beta_c, gamma_c^2), so the mean after ReLU6 and average pooling is analytic.
    """
    classifier = weights["classifier.weight"].numpy()
    centred = classifier - classifier.mean(0)
    basis = np.linalg.svd(centred, full_matrices=False)[2][:EMBED_DIM]
    mean = relu6_mean(weights["bn2.bias"].double(), weights["bn2.weight"].double()).numpy()
    return Projection(
        basis.astype(np.float32),
        (-basis @ mean).astype(np.float32),
        normalised(centred @ basis.T),
    )


class Teacher:
    """Sentence embeddings [n, 384] to image-embedding targets [n, 512]."""

    def __init__(self, anchors: Floats, rows: Floats) -> None:
        """``anchors`` [a, 384]: sentence embeddings of class names; ``rows`` [a, 512]: theirs."""
        self.anchors, self.rows = anchors, rows
        self.centre, self.offset = anchors.mean(0), rows.mean(0)
        x = anchors - self.centre
        gram = x.T @ x + RIDGE * np.eye(x.shape[1], dtype=np.float32)
        self.matrix = np.linalg.solve(gram, x.T @ (rows - self.offset))

    def __call__(self, sentences: Floats) -> Floats:
        """Targets, unit norm."""
        linear = normalised((sentences - self.centre) @ self.matrix + self.offset)
        similarity = sentences @ self.anchors.T / TEMPERATURE
        share = np.exp(similarity - similarity.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        return normalised(RIDGE_SHARE * linear + normalised(share @ self.rows))
