"""What predictions are worth: their losses, and how good they are of images that none has seen.

Shapes: P predictions (one a prompt), N images, C classes. Losses are in nats an image.

What a fit says of images that are left out is too good once anything was chosen by it: the
regularisation, or one candidate of several. So the accuracy that is reported comes from doing all
of it again, the choices included, without a part of the images, and asking about these. Each part
has as many of every class as of the others, because a class of which more is left out is predicted
less often. Copies of an image, which have one number in `groups` [N], are never in two parts.

Source: Cawley and Talbot, JMLR 2010 (nested cross-validation).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Labels = NDArray[np.int64]
Rows = NDArray[np.bool_]

FOLDS = 5
# Further parts would say little more: the standard error is below two points.
ENOUGH_IMAGES = 1000


def accuracy_on_unseen(
    labels: Labels, groups: Labels, predicted: Callable[[Rows, Rows], Array]
) -> float | None:
    """Percent of images that are predicted rightly by what was made without them.

    `predicted` is given which images may be learnt from [N] and which are asked about [N], K of
    them, and gives log-probabilities [K, C].

    Returns:
        None where fewer than half of the images can be left out.
    """
    rows, turns = _measurable(labels, groups), _turns(labels, groups)
    count = min(FOLDS, int(turns.max(initial=0)) + 1)
    right = asked = 0
    for part in range(count) if rows.any() else ():
        left_out = turns % count == part
        if len(np.unique(labels[~left_out])) < len(np.unique(labels)):
            continue
        about = left_out & rows
        predictions = predicted(~left_out, about).argmax(axis=-1)
        right += int((predictions == labels[about]).sum())
        asked += int(about.sum())
        if asked >= ENOUGH_IMAGES:
            break
    return 100.0 * right / asked if asked else None


def folds(labels: Labels, groups: Labels, *, most: int) -> list[Labels]:
    """The numbers of images that are left out together: one of each class that has several.

    Its copies go with it. What would leave a class without an image is no fold. After `most` images
    there are no further folds; there is none where fewer than half of the images can be left out.
    """
    rows, turns = _measurable(labels, groups), _turns(labels, groups)
    found: list[Labels] = []
    count = 0
    for turn in range(int(turns.max(initial=-1)) + 1) if rows.any() else ():
        fold = np.flatnonzero(rows & (turns == turn))
        rest = np.delete(labels, fold)
        if len(fold) and len(np.unique(rest)) == len(np.unique(labels)):
            found.append(fold)
            count += len(fold)
        if count >= most:
            break
    return found


def _measurable(labels: Labels, groups: Labels) -> Rows:
    """Images [N] whose class has another image, no copy: leaving them out leaves the class in.

    None where fewer than half of the images are: the rest would say little of the whole.
    """
    different = np.unique(np.stack([labels, groups]), axis=1)[0]
    rows: Rows = np.bincount(different)[labels] > 1
    return rows if 2 * rows.sum() >= len(rows) else np.zeros_like(rows)


def _turns(labels: Labels, groups: Labels) -> Labels:
    """Which image of its class each one is, from 0, in their order; copies are one. [N]."""
    turn_of_group: dict[int, int] = {}
    seen: dict[int, int] = {}
    for label, group in zip(labels.tolist(), groups.tolist(), strict=True):
        if group not in turn_of_group:
            turn_of_group[group] = seen.get(label, 0)
            seen[label] = turn_of_group[group] + 1
    return np.array([turn_of_group[group] for group in groups.tolist()], np.int64)


def cross_entropy(log_probs: Array, labels: NDArray[np.int64]) -> Array:
    """Mean cross-entropy [P] of log-probabilities [P, N, C]."""
    chosen = log_probs[:, np.arange(len(labels)), labels]
    losses: Array = -chosen.mean(axis=1, dtype=np.float64).astype(np.float32)
    return losses


def divergence(targets: Array, log_probs: Array) -> Array:
    """Mean Kullback-Leibler divergence KL(target || prediction) over images, [P], >= 0.

    Prediction consistency (CraFT, section 3.3) is this in one direction for the search, where the
    target is the refined prediction, and in the other for the head, where it is the unrefined one.
    Targets are log-probabilities [N, C], for all predictions alike, or [P, N, C].
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
    """Whether losses [N] of images, copies as one, are less than others by a standard error."""
    _, copy, count = np.unique(groups, return_inverse=True, return_counts=True)
    gains = np.bincount(copy, others - losses) / count
    return bool(gains.mean() > gains.std() / np.sqrt(len(gains)))
