"""SiM, similarity mapping: a linear map from scores of generic texts to classes, without names.

1. Ask for the scores of a vocabulary, alone, under the plain prompt: no class name is told.
2. Solve regularised least squares from them to the labels.

The regularisation is the one of least leave-one-out error, on centred scores and beside an
intercept. The released code has 0.1 for ImageNet's classes and 0.2 for WordNet's nouns, on cosines
as they are and without an intercept. Texts here are common nouns of WordNet without the task's own
names. A black box cannot be asked about images as prompts (the paper's third kind), nor for
cosines: log-probabilities are these times the model's scale, but for a number for each image, which
centring takes away.

Published: CLIP ViT-L/14, 16 shots, mean of ten data sets 83.9 (Caltech-101 97.3, Flowers-102 98.8).

Source: Zanella et al., "Vocabulary-free few-shot learning for vision-language models" (arXiv
2506.04005).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from craft_client.blackbox import Question
from craft_client.closed_form import Ridge, calibrated, usual_ridge
from craft_client.losses import accuracy_on_unseen, folds
from craft_client.presets import beside, common_nouns
from craft_client.tuning_run import Candidate, Outcome, Reading, TuningRun
from craft_shared.head import LinearHead, centred

Array = NDArray[np.float32]
Labels = NDArray[np.int64]

STRENGTHS = 10.0 ** np.arange(-3, 4)  # times what so many images call for


def run_sim(run: TuningRun, *, texts: int = 2000) -> Outcome:
    """Runs the recipe, on so many texts at most."""
    run.plain()
    nouns = beside(run.classes, common_nouns())
    vocabulary = nouns[:: -(-len(nouns) // texts)]
    labels = run.labels

    def read(log_probs: Array) -> Reading:
        loss = mapping(centred(log_probs[0]), labels).loss
        return Reading(np.array([loss], np.float32), {"log_probs": log_probs[0]})

    if not run.covers(Question(1, len(vocabulary), alone=True)):
        return Outcome("the plain prompt")
    run.generation = 1
    answer = run.ask(read, templates=[run.settings.template], texts=vocabulary, alone=True)
    scores, groups = (
        centred(answer.kept["log_probs"]),
        run.copies_in(answer.kept["log_probs"][None]),
    )
    found = mapping(scores, labels)

    def predicted(rows: NDArray[np.bool_], about: NDArray[np.bool_]) -> Array:
        part = mapping(scores[rows], labels[rows])
        return scores[about] @ part.weight + part.bias

    held_out = accuracy_on_unseen(labels, groups, predicted)
    run.report("search", found.loss, found.loss, held_out)
    classes = len(run.classes)
    # What stands before the texts weighs nothing; that the columns' sums are zero makes the mean
    # over all of them, which heads take away, weigh nothing either.
    weight = np.zeros((classes + len(vocabulary), classes), np.float32)
    weight[classes:] = found.weight - found.weight.mean(axis=0)
    head = LinearHead(weight, found.bias, found.scale, 0.0)
    return Outcome(
        "the mapping",
        texts=vocabulary,
        head=head,
        accuracy_after=held_out,
        candidates=[Candidate("mapping", 1, len(vocabulary), found.loss, found.regularisation)],
    )


@dataclass(frozen=True)
class Mapping:
    """Scores [N, D] @ weight [D, C] + bias [C], times a scale, are logits."""

    weight: Array
    bias: Array
    scale: float
    loss: float  # of images left out, or seen where there are too few, nats
    regularisation: float  # relative to the scores' variance


def mapping(scores: Array, labels: Labels) -> Mapping:
    """Least squares from centred scores [N, D] to the labels [N]."""
    targets = np.eye(int(labels.max()) + 1)[labels]
    ridge = Ridge(scores)
    alone = folds(labels, np.arange(len(labels)), most=len(labels))
    strengths = (usual_ridge(len(labels)) * STRENGTHS).tolist()
    chosen, rows = len(strengths) // 2, np.arange(len(labels))
    if alone:
        rows, none = np.concatenate(alone), np.zeros((len(labels), 0))
        tried = [one[0][0] for one in ridge.held_out(targets, none, strengths, (0,), alone)]
        chosen = int(np.argmin([((one - targets[rows]) ** 2).mean() for one in tried]))
    weight, bias = ridge.solution(targets, strengths[chosen])
    logits = tried[chosen] if alone else scores @ weight + bias
    scale, losses = calibrated(logits, labels[rows], 5.0)
    loss = float(losses.mean())
    return Mapping(
        weight.astype(np.float32), bias.astype(np.float32), scale, loss, strengths[chosen]
    )
