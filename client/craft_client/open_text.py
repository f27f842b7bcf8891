"""Open-text mode: a vocabulary, and the few of its texts whose scores say most that is new.

Scores are linear in the hidden image embedding, so each text shows one direction of it; the class
names alone show C at most. Any text may be a class of a prediction, so a wider vocabulary shows
more, for one query. An adapter can afford few texts, so those are kept that together span most.

It knows texts and scores; it does not know labels (chosen by labels, texts fit the few training
pictures rather than the classes), heads, or black boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from craft_client.exceptions import DataError
from craft_shared.head import centred_inputs
from craft_shared.names import REMEDY, fault, same_text, twins
from craft_shared.text_files import NotTextError, lines_of, read_text
from craft_shared.wire.messages import LONGEST_CLASS_NAME

COMMON_NOUNS = "common_nouns.txt"

# Directions of less than this part of the class names' spread are rounding.
_ROUNDING = 1e-3


def common_nouns() -> tuple[str, ...]:
    """About a thousand names of things that can be seen, from WordNet (see NOTICE)."""
    return _texts(files("craft_client").joinpath(COMMON_NOUNS).read_text(encoding="utf-8"))


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """The texts of a file, one a line; repeated and empty lines are left out.

    Raises:
        DataError: it cannot be read, is not UTF-8, holds no text, or what is no name.
    """
    remedy = "Give a text file in UTF-8, one text a line."
    try:
        texts = _texts(read_text(path))
    except OSError as error:
        raise DataError(f"'{path}': {error.strerror}.", remedy=remedy) from error
    except NotTextError as error:
        raise DataError(f"'{path}' cannot be read: {error}.", remedy=remedy) from error
    if not texts:
        raise DataError(f"'{path}' holds no text.", remedy=remedy)
    longest = max(texts, key=len)
    if len(longest) > LONGEST_CLASS_NAME:
        raise DataError(
            f"'{path}' holds a text of {len(longest)} characters; {LONGEST_CLASS_NAME} are "
            "allowed.",
            remedy="Shorten it: texts are scored as class names are.",
        )
    for text in texts:
        if found := fault(text):
            raise DataError(f"'{path}': the text '{text}' {found}.", remedy=REMEDY)
    return texts


def beside(classes: Sequence[str], vocabulary: Sequence[str]) -> tuple[str, ...]:
    """The vocabulary without class names, which are scored anyway."""
    names = {same_text(name) for name in classes}
    return tuple(text for text in vocabulary if same_text(text) not in names)


def spanning_texts(log_probs: NDArray[np.float32], classes: int, keep: int) -> NDArray[np.int64]:
    """Chooses texts by what is new in their scores: a pivoted QR decomposition.

    Each in turn is the one whose scores lie farthest from the span of the class names' scores and
    of the texts before it (Golub and Van Loan, Matrix Computations, section 5.4.2).

    Args:
        log_probs: of one prompt, float32 [N, C + V].
        classes: C.
        keep: how many to choose, of V.

    Returns:
        Their numbers within the vocabulary, int64 [min(keep, V)], in the order of choice.
    """
    scores = centred_inputs(log_probs[None]).astype(np.float64)
    scores -= scores.mean(axis=0)
    names, new = scores[:, :classes], scores[:, classes:].copy()
    directions, spread, _ = np.linalg.svd(names, full_matrices=False)
    span = directions[:, spread > _ROUNDING * spread.max(initial=0.0)]
    new -= span @ (span.T @ new)
    left = np.ones(new.shape[1], bool)
    chosen = []
    for _ in range(min(keep, new.shape[1])):
        sizes = np.where(left, (new**2).sum(axis=0), -1.0)
        text = int(sizes.argmax())
        chosen.append(text)
        left[text] = False
        if sizes[text] > 0:
            direction = new[:, text] / np.sqrt(sizes[text])
            new -= np.outer(direction, direction @ new)
    return np.array(chosen, np.int64)


def _texts(text: str) -> tuple[str, ...]:
    lines = [line for _, line in lines_of(text)]
    repeated = {place for place, _ in twins(lines)}
    return tuple(line for place, line in enumerate(lines) if place not in repeated)
