"""How good what is deployed is on pictures that no choice has seen: whole fits, repeated in folds.

What a fit says by leave-one-out of its own pictures is too good once anything was chosen by it: the
regularisation, or one candidate of several. So the accuracy that is reported comes from doing all
of it again, the choices included, without a part of the pictures, and asking about these. Each part
has as many of every class as of the others, because a class of which more is left out is predicted
less often; copies of a picture are never in two parts.

It knows labels and folds; it does not know heads, nor how anything is chosen.

Source: Cawley and Talbot, JMLR 2010 (nested cross-validation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from craft_client.refine import measurable

Array = NDArray[np.float32]
Labels = NDArray[np.int64]
Rows = NDArray[np.bool_]

FOLDS = 5
# Further parts would say little more: the standard error is below two points.
ENOUGH_PICTURES = 1000


def accuracy_on_unseen(
    labels: Labels, groups: Labels, predicted: Callable[[Rows, Rows], Array | None]
) -> float | None:
    """Percent of pictures that are predicted rightly by what was made without them.

    Args:
        labels: int64 [N].
        groups: copies of one picture have one number, int64 [N].
        predicted: is given which pictures may be learnt from [N] and which are asked about [N], K
            of them; gives log-probabilities [K, C], or None where it has none to give.

    Returns:
        None where fewer than half of the pictures can be left out, or there is no prediction.
    """
    rows = measurable(labels, groups)
    right = asked = 0
    for left_out in parts(labels, groups) if rows.any() else ():
        about = left_out & rows
        log_probs = predicted(~left_out, about)
        if log_probs is None:
            return None
        right += int((log_probs.argmax(axis=-1) == labels[about]).sum())
        asked += int(about.sum())
        if asked >= ENOUGH_PICTURES:
            break
    return 100.0 * right / asked if asked else None


def parts(labels: Labels, groups: Labels) -> Iterator[Rows]:
    """The parts that are left out in turn [N]; the rest of each has pictures of every class.

    The pictures of a class go round the parts in their order, its copies with the first of them.
    """
    part_of_group: dict[int, int] = {}
    seen: dict[int, int] = {}
    for label, group in zip(labels.tolist(), groups.tolist(), strict=True):
        if group not in part_of_group:
            part_of_group[group] = seen.get(label, 0)
            seen[label] = part_of_group[group] + 1
    count = min(FOLDS, max(seen.values(), default=0))
    part = np.array([part_of_group[group] % count for group in groups.tolist()])
    classes = len(np.unique(labels))
    for number in range(count):
        left_out: Rows = part == number
        if len(np.unique(labels[~left_out])) == classes:
            yield left_out
