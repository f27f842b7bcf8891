"""Descriptions: what classes look like, in sentences from a file, in the place of templates.

1. Ask for the scores of all descriptions, alone, in one query: each stands for its class.
2. A class scores the mean of its descriptions' scores (CuPL). With `select`, descriptions that
   raise the training loss are left out, one after another (ProAPO's choice, but without questions
   of its own: scores of each description are known already).

The file is JSON, `{"CLASS": ["sentence", ...], ...}`, as CuPL and ProAPO publish theirs. CuPL
averages features and then makes the mean one of unit length; a mean of scores differs from it by
that factor, which a black box does not show (docs/methods.md has what that costs). ProAPO's
mutations by a language model are `words`' affair.

Published: CuPL, without images, is more than one point above handwritten templates on ImageNet.

Sources: Pratt et al., "What does a platypus look like?" (ICCV 2023, arXiv 2209.03320); Qu et al.,
"ProAPO" (CVPR 2025), and its released files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from craft_client.blackbox import Question
from craft_client.exceptions import DataError
from craft_client.losses import accuracy, cross_entropy
from craft_client.tuning_run import Outcome, Reading, TuningRun
from craft_shared.head import LinearHead, centred
from craft_shared.names import fault, same_text
from craft_shared.text_files import NotTextError, read_text
from craft_shared.wire.messages import LONGEST_CLASS_NAME

Array = NDArray[np.float32]
Labels = NDArray[np.int64]

ALONE = "{}"  # the template of a whole sentence


def run_descriptions(
    run: TuningRun, *, file: str = "", most: int = 10, select: bool = False
) -> Outcome:
    """Runs the recipe on the file's descriptions, `most` of each class, the first ones."""
    found = read_descriptions(Path(file), run.classes, most)
    texts = list(dict.fromkeys(text for some in found for text in some))
    owners = np.zeros((len(texts), len(found)), np.float32)
    for label, some in enumerate(found):
        owners[[texts.index(text) for text in some], label] = 1
    run.plain()
    if not run.covers(Question(1, len(texts), alone=True)):
        return Outcome("the plain prompt")
    run.generation = 1
    labels = run.labels

    def read(log_probs: Array) -> Reading:
        mean = log_softmax(centred(log_probs) @ _means(owners), axis=-1)
        return Reading(cross_entropy(mean, labels), {"log_probs": log_probs[0]})

    reading = run.ask(read, templates=[ALONE], texts=texts, alone=True)
    scores, loss = centred(reading.kept["log_probs"]), float(reading.losses[0])
    if select:
        owners, loss = chosen(scores, owners, labels)
    logits = scores @ _means(owners)
    run.report("search", loss, loss, accuracy(logits, labels))
    kept = np.flatnonzero(owners.any(axis=1))
    classes = len(run.classes)
    # All columns sum to one, so that the mean that heads take away is the same for all classes.
    weight = np.zeros((2, classes + len(kept), classes), np.float32)
    weight[1, classes:] = _means(owners)[kept]
    return Outcome(
        "the chosen descriptions" if select else "the mean of all descriptions",
        templates=[ALONE],
        texts=[texts[place] for place in kept],
        head=LinearHead(weight.reshape(-1, classes), np.zeros(classes, np.float32), 1.0, 0.0),
    )


def _means(owners: Array) -> Array:
    """Weights [T, C] of texts in their classes' means."""
    means: Array = owners / owners.sum(axis=0)
    return means


def chosen(scores: Array, owners: Array, labels: Labels) -> tuple[Array, float]:
    """Which texts [T, C] are left where each that raises the training loss goes, worst first."""
    owners = owners.copy()
    loss = _loss(scores, owners, labels)
    while True:
        tried: list[tuple[float, int, int]] = []
        for text, label in np.argwhere(owners * (owners.sum(axis=0) > 1)).tolist():
            owners[text, label] = 0
            tried.append((_loss(scores, owners, labels), text, label))
            owners[text, label] = 1
        least, text, label = min(tried, default=(np.inf, 0, 0))
        if least >= loss:
            return owners, loss
        owners[text, label], loss = 0, least


def _loss(scores: Array, owners: Array, labels: Labels) -> float:
    return float(cross_entropy(log_softmax(scores @ _means(owners), axis=-1)[None], labels)[0])


def read_descriptions(path: Path, classes: Sequence[str], most: int) -> list[list[str]]:
    """The descriptions of each class; what is no text that a server scores beside them is left out.

    Raises:
        DataError: the file cannot be read, or a class has none.
    """
    remedy = 'Give --set file=FILE.json, which holds {"CLASS": ["sentence", ...], ...}.'
    try:
        document = json.loads(read_text(path))
    except (OSError, NotTextError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"Descriptions '{path}' cannot be read: {reason}.", remedy=remedy
        ) from error
    if not isinstance(document, dict):
        raise DataError(f"Descriptions '{path}' are no JSON object.", remedy=remedy)
    by_name = {_key(name): texts for name, texts in document.items()}
    found = []
    for name in classes:
        texts = by_name.get(_key(name), [])
        some = [text for text in texts if isinstance(text, str)] if isinstance(texts, list) else []
        usable = [
            text
            for text in some
            if 1 <= len(text) <= LONGEST_CLASS_NAME and not fault(text) and text not in classes
        ]
        if not usable:
            raise DataError(
                f"Descriptions '{path}' have none of '{name}' of 1 to {LONGEST_CLASS_NAME} "
                "characters.",
                remedy=remedy,
            )
        found.append(list(dict.fromkeys(usable))[:most])
    return found


def _key(name: str) -> str:
    return same_text(name.replace("_", " "))
