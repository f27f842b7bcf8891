"""What can be computed from bought answers: rank, features, a copied classifier; and how well.

It knows arrays. It does not know HTTP, levels or what answers cost. Every attack is a simple one,
so that what it finds is the least that answers give away, not the most.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]

RIDGES = np.logspace(-8, 2, 11)  # of the mean diagonal
SPAN = 1e-3  # of the widest direction: texts' features differ by rounding alone below it
# A drop between neighbouring singular values that tells a rank from a spectrum that fades.
LEAST_DROP = 2.0
FIRST_VALUES = 8


def centred(scores: NDArray[Any]) -> Array:
    """Scores [P, N, C] without each distribution's mean, as [N, P * C]: linear in the features."""
    prompts, images, classes = scores.shape
    shifted = scores.astype(np.float64)
    shifted -= shifted.mean(axis=-1, keepdims=True)
    return shifted.transpose(1, 0, 2).reshape(images, prompts * classes)


def rank_of(stacked: Array) -> dict[str, Any]:
    """Where singular values drop most from one to the next, and how far.

    A drop below `LEAST_DROP` says nothing, and no rank is given. The first values are left out (the
    pictures' mean stands apart), and the last twentieth, where what is random alone falls too.
    """
    gram = stacked @ stacked.T if stacked.shape[0] < stacked.shape[1] else stacked.T @ stacked
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0))
    values = np.maximum(values, 1e-8 * values[0])  # the Gram matrix knows no smaller ones
    drops = values[:-1] / values[1:]
    first, last = FIRST_VALUES, int(0.95 * min(stacked.shape))
    if last <= first:
        return {"rank": None, "drop": 1.0}
    where = first + int(drops[first:last].argmax())
    drop = float(drops[where])
    return {"rank": where + 1 if drop >= LEAST_DROP else None, "drop": drop}


def recover(stacked: Array, texts: Array, groups: NDArray[np.int64]) -> Array:
    """Features [N, F], up to one factor, from centred scores [N, M] and centred texts [M, F].

    Ridge regression; its weight is the one that best foretells a fifth of the questions from the
    others, and the factor between scores and features is free. `groups` [M] numbers the questions.
    """
    held = groups % 5 == 4 if groups.max() >= 4 else np.arange(len(groups)) % 5 == 4
    if not held.any():
        held[-1] = True

    def fit(columns: NDArray[np.bool_]) -> tuple[Array, Array, Array]:
        some = texts[columns]
        values, vectors = np.linalg.eigh(some.T @ some)
        return np.maximum(values, 0), vectors, (stacked[:, columns] @ some) @ vectors

    values, vectors, moments = fit(~held)
    scale = values.mean()
    asked, answered = texts[held] @ vectors, stacked[:, held]
    errors = [
        float(((answered - (moments / (values + ridge * scale)) @ asked.T) ** 2).mean())
        for ridge in RIDGES
    ]
    ridge = RIDGES[int(np.argmin(errors))]
    values, vectors, moments = fit(np.ones(len(groups), bool))
    found: Array = (moments / (values + ridge * values.mean())) @ vectors.T
    return found


def span_of(texts: Array) -> Array:
    """An orthonormal basis [F, R] of what texts' features span."""
    values, vectors = np.linalg.eigh(texts.T @ texts)
    basis: Array = vectors[:, values > (SPAN**2) * values[-1]]
    return basis


def likeness(found: Array, true: Array) -> dict[str, float]:
    """How alike recovered and true features are, in percent or as cosines.

    `cosine` of a picture's own, `cosine_of_others` of any two pictures (what knowing nothing but
    the mean gives), and of how many pictures the most alike true features are its own.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = np.nan_to_num(found / np.linalg.norm(found, axis=1, keepdims=True))
    cosines = unit @ (true / np.linalg.norm(true, axis=1, keepdims=True)).T
    count = len(true)
    own = np.diagonal(cosines)
    return {
        "cosine": float(own.mean()),
        "cosine_of_others": float((cosines.sum() - own.sum()) / (count * (count - 1))),
        "identified": 100 * float((cosines.argmax(axis=1) == np.arange(count)).mean()),
    }


def subspace(stacked: Array, true: Array) -> dict[str, float]:
    """What scores tell of features where the text tower is not known: a linear map is missing.

    Linear CKA (Kornblith et al., ICML 2019) of scores and true features, and the R2 of true
    features on the second half of the pictures by a ridge on the scores of the first half. The map
    is fitted to true features for this report alone: an attacker would use scores as features.
    """
    scores = stacked - stacked.mean(axis=0)
    of_scores = scores @ scores.T
    features = true - true.mean(axis=0)
    of_features = features @ features.T
    cka = float(
        (of_scores * of_features).sum()
        / (np.linalg.norm(of_scores) * np.linalg.norm(of_features) or 1.0)
    )
    half = len(true) // 2
    mean = true[:half].mean(axis=0)
    kernel = stacked @ stacked.T
    errors = []
    for ridge in RIDGES:
        weight = ridge * np.trace(kernel[:half, :half]) / half
        solved = np.linalg.solve(
            kernel[:half, :half] + (weight + 1e-12) * np.eye(half), true[:half] - mean
        )
        errors.append(float(((true[half:] - mean - kernel[half:, :half] @ solved) ** 2).sum()))
    spread = float(((true[half:] - mean) ** 2).sum())
    return {"cka": cka, "r2": 1 - min(errors) / spread}


def student(
    features: Array, targets: Array, new: Array, held_out_share: float = 0.25
) -> NDArray[np.int64]:
    """Classes of new pictures, by a ridge from features to centred scores of bought ones.

    The ridge is chosen on a share of the bought pictures, by agreement with what was bought.
    """
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-9
    x, z = (features - mean) / spread, (new - mean) / spread
    kept = np.arange(len(x)) >= held_out_share * len(x)
    kernel = x @ x.T

    def solved(rows: NDArray[np.bool_], ridge: float) -> Array:
        some = kernel[np.ix_(rows, rows)]
        weight = ridge * np.trace(some) / len(some)
        dual: Array = np.linalg.solve(some + weight * np.eye(len(some)), targets[rows])
        return dual

    def agreement(ridge: float) -> float:
        guesses = kernel[np.ix_(~kept, kept)] @ solved(kept, ridge)
        return float((guesses.argmax(axis=1) == targets[~kept].argmax(axis=1)).mean())

    ridges = np.logspace(-4, 2, 13)
    best = max(ridges[::-1], key=agreement)
    every = np.ones(len(x), bool)
    return np.asarray((z @ x.T @ solved(every, best)).argmax(axis=1))


def cheap_features(files: Sequence[Path]) -> Array:
    """Colours and edges of pictures, which take no model: [N, D].

    Of 4 x 4 cells the means and spreads of three colours and a histogram of gradients' directions;
    of the whole the histogram of its colours; and the picture itself at 8 x 8.
    """
    return np.stack([_cheap(file) for file in files])


def _cheap(file: Path) -> Array:
    with Image.open(file) as opened:
        picture = opened.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture, np.float64) / 255
    small = np.asarray(picture.resize((8, 8), Image.Resampling.BOX), np.float64).ravel() / 255
    down, right = np.gradient(pixels.mean(axis=2))
    strength = np.hypot(down, right)
    direction = np.floor(np.arctan2(down, right) % np.pi / np.pi * 8).astype(int) % 8
    parts = [small]
    for i in range(0, 64, 16):
        for j in range(0, 64, 16):
            cell = np.s_[i : i + 16, j : j + 16]
            edges = np.bincount(
                direction[cell].ravel(), weights=strength[cell].ravel(), minlength=8
            )
            parts.append(edges / (np.linalg.norm(edges) + 1e-3))
            parts.append(pixels[cell].mean(axis=(0, 1)))
            parts.append(pixels[cell].std(axis=(0, 1)))
    coarse = np.floor(pixels * 3.999).astype(int)
    colours = np.bincount((coarse @ [16, 4, 1]).ravel(), minlength=64) / 4096
    return np.concatenate([*parts, np.sqrt(colours)])


def auc(without: Sequence[float], within: Sequence[float]) -> dict[str, float]:
    """The area under the curve of a threshold on latency: 0.5 tells nothing.

    Below 0.5 what is looked for is the faster one. `chance` is the standard deviation that the area
    has where there is nothing to be told.
    """
    zeros, ones = np.asarray(without), np.asarray(within)
    above = (ones[:, None] > zeros).mean() + 0.5 * (ones[:, None] == zeros).mean()
    n, m = len(zeros), len(ones)
    return {
        "auc": float(above),
        "chance": float(np.sqrt((n + m + 1) / (12 * n * m))),
        "trials": n + m,
        "median_ms_without": 1000 * float(np.median(zeros)),
        "median_ms_within": 1000 * float(np.median(ones)),
    }
