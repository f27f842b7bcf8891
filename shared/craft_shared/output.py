"""Output levels: what an answer shows of log-probabilities, and what can be read of it.

`shown` takes from log-probabilities what a level lets through; `scores_of` makes of that what heads
and losses read, and `ranked` what people do. The server answers with the first and the client
learns from the second; a head that was fitted on a level's scores is served on the same two, one
after the other.

Shapes: any leading axes, then C classes, of which a level may leave k.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from craft_shared.codec import Tensors
from craft_shared.head import log_softmax
from craft_shared.wire import Output

DType = Literal["float32", "float16"]
Array = NDArray[np.float32]

# What a label leaves for all other classes together. Heads do not depend on it: centred, the scores
# of a label are the same but for a factor.
LABEL_REST = 0.1
# What is left, at least, for all classes that an answer does not name: of less, the last bits of
# the named ones' probabilities would decide.
LEAST_REST = 1e-3


def shown(log_probs: Array, output: Output, dtype: DType = "float32") -> Tensors:
    """What an answer of this level shows of log-probabilities [..., C].

    Numbers are rounded, to decimals and to the dtype, before they are put in order, so that their
    order tells no more than they do. Of equal numbers the one of the lower index comes first.

    Returns:
        `label`: `top_classes` int32 [..., 1]. Other levels: `probs` or `log_probs`, of the dtype,
        [..., C]; with k, [..., min(k, C)] in descending order, and of the same
        shape `top_classes`.
    """
    if output.level == "label":
        return {"top_classes": log_probs.argmax(axis=-1)[..., None].astype(np.int32)}
    name = "probs" if output.level == "probs" else "log_probs"
    numbers = np.exp(log_probs) if name == "probs" else log_probs
    if output.decimals is not None:
        # Adding nothing takes the sign from a zero.
        numbers = np.round(numbers, output.decimals) + np.float32(0)
    numbers = numbers.astype(dtype, copy=False)
    if output.k is None:
        return {name: numbers}
    order = np.argsort(-numbers, axis=-1, kind="stable")[..., : output.k]
    return {
        name: np.take_along_axis(numbers, order, axis=-1),
        "top_classes": order.astype(np.int32),
    }


def ranked(tensors: Tensors) -> tuple[NDArray[np.int32], NDArray[np.float64] | None]:
    """The classes of an answer [..., k], the most probable first, and their probabilities.

    These are None where the answer has no numbers. Of equal ones the lower index comes first.
    """
    order = tensors.get("top_classes")
    if "probs" in tensors:
        numbers = tensors["probs"].astype(np.float64)
    elif "log_probs" in tensors:
        numbers = np.exp(tensors["log_probs"].astype(np.float64))
    else:
        return tensors["top_classes"], None
    if order is None:
        order = np.argsort(-numbers, axis=-1, kind="stable").astype(np.int32)
        numbers = np.take_along_axis(numbers, order, axis=-1)
    return order, numbers


def shown_bytes(output: Output, classes: int, number_bytes: int = 4, index_bytes: int = 4) -> int:
    """How many bytes of numbers and indices `shown` has of one distribution over C classes."""
    if output.level == "label":
        return index_bytes
    if output.k is None:
        return classes * number_bytes
    return min(output.k, classes) * (number_bytes + index_bytes)


def scores_of(tensors: Tensors, output: Output, classes: int) -> Array:
    """What heads and losses read of an answer: log-probabilities over all C classes.

    - `label`: the class has the probability 1 - `LABEL_REST`, the others share the rest.
    - with k: classes that are not named share what the named ones leave, at least `LEAST_REST`, but
      none gets more than the least that is named.
    - `probs`: a probability is at least half a unit of the last decimal.
    - `log_probs` of all classes: as they are.

    Args:
        tensors: that `shown` made, in single precision.
        output: the level that it was given.
        classes: C.

    Returns:
        float32 [..., C], normalised unless they are taken as they are.
    """
    if output.level == "log_probs":
        return tensors["log_probs"].astype(np.float32, copy=False)
    if output.level == "label":
        rest = np.float32(LABEL_REST / max(1, classes - 1))
        return _spread(tensors["top_classes"], np.float32(1 - LABEL_REST), rest, classes)
    if "probs" in tensors:
        least = 0.5 * 10.0 ** -(output.decimals or 0)
        named = np.maximum(tensors["probs"], np.float32(least))
    else:
        named = np.exp(tensors["log_probs"])
    if output.k is None:
        return log_softmax(np.log(named, dtype=np.float32))
    left = np.maximum(1 - named.sum(axis=-1, keepdims=True), np.float32(LEAST_REST))
    unnamed = max(1, classes - named.shape[-1])
    rest = np.minimum(left / unnamed, named.min(axis=-1, keepdims=True))
    return _spread(tensors["top_classes"], named, rest, classes)


def _spread(
    named: NDArray[np.int32], probs: Array | np.float32, rest: Array | np.float32, classes: int
) -> Array:
    """Log-probabilities [..., C] of named classes [..., k] with `probs`, all others with `rest`."""
    scores = np.empty((*named.shape[:-1], classes), np.float32)
    scores[...] = np.log(rest)
    np.put_along_axis(scores, named, np.broadcast_to(np.log(probs), named.shape), axis=-1)
    return log_softmax(scores)
