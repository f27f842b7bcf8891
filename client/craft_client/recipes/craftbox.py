"""craftbox's own recipe: one query, and a closed form.

1. Ask for the scores of class names and a vocabulary under the plain prompt, in one request. In
   strict access, without a vocabulary, ask for random codes, doubled until they are enough.
2. Keep the texts that span most, doubled until they are enough. Enough, for prompts and texts
   alike, is when two halves would predict alike whatever the labels; none is looked at.
3. Fit. Scores are linear in the hidden image embedding. A ridge regression on all of them learns
   what the plain prediction, weighted, leaves of the labels (SiM, arXiv 2506.04005, likewise); a
   share of the scatter between classes is taken out, up to the linear discriminant. The logits are
   `scale * (weight * plain + inputs @ W + b)`. Each regularisation, share and weight counts by its
   held-out cross-entropy, and by how far it is from what the number of images calls for.
4. Choose. The head is deployed unless the plain prediction is better beyond chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from craft_client.closed_form import Ridge, calibrated, spanning_texts, unit_of, usual_ridge
from craft_client.exceptions import BudgetExhausted
from craft_client.losses import accuracy, accuracy_on_unseen, clearly_less, cross_entropy, folds
from craft_client.tuning_run import Candidate, Outcome, Reading, TuningRun
from craft_shared.head import LinearHead, Unrefined, centred, centred_inputs

Array = NDArray[np.float32]
Labels = NDArray[np.int64]

ROUNDING = 1e-5  # a spread of answers that says nothing
LEAST_INPUTS = 256
ALIGNED = 0.95  # of 1: hat matrices of two halves that are enough
DECADES = np.linspace(-2, 2, 9)  # of regularisation, from what so many images call for
SHARES = (0, 0.5, 0.8, 1)  # of the scatter between classes that is taken out
PLAIN_WEIGHTS = (0, 0.1, 0.2, 0.4, 0.8, 1.5)
PRIOR_WEIGHT = 10  # nats for a decade, or for a whole share, squared
TEMPERATURE = 4
MEASURED = 2000  # images whose held-out predictions are looked at: more would say no more


def run_craftbox(run: TuningRun) -> Outcome:
    """Runs the recipe; raises as `craft_client.tune.tune` does."""
    answers, codes, texts = _ask_open(run) if run.settings.texts else _ask_strict(run)
    labels, groups = run.labels, run.copies_in(answers)
    plain = answers[0, :, : labels.max() + 1]
    fitted = fit(answers, labels, groups)
    is_plain = isinstance(fitted.head, Unrefined)

    def predicted(rows: NDArray[np.bool_], about: NDArray[np.bool_]) -> Array:
        head = fit(answers[:, rows], labels[rows], groups[rows]).head
        return plain[about] if isinstance(head, Unrefined) else head(answers[:, about])

    return Outcome(
        deployed="plain" if is_plain else "ridge",
        codes=codes[:0] if is_plain else codes,
        texts=[] if is_plain else texts,
        head=fitted.head,
        accuracy_before=accuracy(plain, labels),
        accuracy_after=accuracy_on_unseen(labels, groups, predicted),
        best_loss=run.history[-1]["best_loss"],
        candidates=[
            Candidate("plain", 1, 0, fitted.plain_loss),
            Candidate("ridge", len(answers), len(texts), fitted.loss, fitted.regularisation),
        ],
    )


def _ask_open(run: TuningRun) -> tuple[Array, Array, list[str]]:
    """Answers [1, N, C + M] to one request, no codes, and the M texts that are kept of it."""
    settings = run.settings
    codes = np.zeros((0, settings.dim), np.float32)
    answers = _ask(run, codes, templates=[settings.template], texts=settings.texts)
    classes = answers.shape[2] - len(settings.texts)
    order = spanning_texts(answers[0], classes)[: settings.keep_texts]
    scores = centred(answers[0])[:, classes + order]
    keep = LEAST_INPUTS
    while keep < len(order) and not enough(scores[:, :keep:2], scores[:, 1:keep:2]):
        keep *= 2
    kept = np.sort(order[:keep])
    columns = np.concatenate([np.arange(classes), classes + kept])
    texts = [settings.texts[text] for text in kept]
    return log_softmax(answers[:, :, columns], axis=-1), codes, texts


def _ask_strict(run: TuningRun) -> tuple[Array, Array, list[str]]:
    """Answers [P, N, C], the codes [P - 1, dim] that were asked, and no texts."""
    settings = run.settings
    generator = np.random.default_rng(settings.stream("random codes"))
    codes = generator.standard_normal((settings.random_codes, settings.dim), dtype=np.float32)
    first = settings.opening_question.prompts - 1
    answers = _ask(run, codes[:first], templates=[settings.template])
    while not enough(centred_inputs(answers[::2]), centred_inputs(answers[1::2])):
        if not run.covers():
            break
        run.generation += 1
        further = codes[len(answers) - 1 : 2 * len(answers) - 1]
        try:
            answers = np.concatenate([answers, _ask(run, further)])
        except BudgetExhausted as error:
            run.refused(error)
            break
    return answers, codes[: len(answers) - 1], []


def _ask(
    run: TuningRun, codes: Array, *, templates: Sequence[str] = (), texts: Sequence[str] = ()
) -> Array:
    """Log-probabilities [P, N, C + V] of one request, which is reported."""
    classes = slice(run.labels.max() + 1)

    def read(log_probs: Array) -> Reading:
        losses = cross_entropy(log_softmax(log_probs[..., classes], axis=-1), run.labels)
        return Reading(losses, {"log_probs": log_probs})

    reading = run.ask(read, codes, templates=templates, texts=texts)
    answers, losses = reading.kept["log_probs"], reading.losses
    best = min([float(losses.min()), *(point["best_loss"] for point in run.history)])
    plain = accuracy(answers[0, :, classes], run.labels) if templates else None
    run.report("start" if templates else "search", float(losses.mean()), best, plain)
    return answers


def enough(first: Array, second: Array) -> bool:
    """Whether ridges on inputs [N, D] and [N, E] predict alike, whatever the labels."""
    if first.shape[1] + second.shape[1] < LEAST_INPUTS:
        return False  # that few suffice to tell a few images apart, not others
    return Ridge(first).alignment(Ridge(second), usual_ridge(len(first))) > ALIGNED


@dataclass(frozen=True)
class Fit:
    """A head, or none where the plain prediction is better, and both losses of held-out images."""

    head: LinearHead | Unrefined
    loss: float | None
    plain_loss: float | None
    regularisation: float


def fit(answers: Array, labels: Labels, groups: Labels) -> Fit:
    """Fits a linear head on answers, and chooses between it and the plain prediction.

    Each fold is an image of every class, so that no class is rarer in what is left. Where no class
    has two, ridge regression's likelihood is in the place of the held-out loss.

    Args:
        answers: log-probabilities, float32 [P, N, C + M], of the plain prompt first.
        labels: int64 [N]; every class has an image.
        groups: copies of one image have one number, int64 [N].
    """
    targets = np.eye(int(labels.max()) + 1)[labels]
    images, classes = targets.shape
    inputs = centred_inputs(answers)
    inputs *= inputs.std(axis=0).max() > ROUNDING
    ridge = Ridge(inputs)
    log_probs = log_softmax(answers[0, :, :classes], axis=1)
    unit = unit_of(centred(log_probs), targets, least=max(ROUNDING, 1e-4 * inputs.std()))
    plain = centred(log_probs).astype(np.float64) / unit
    left_out = folds(labels, groups, most=MEASURED)
    rows = np.concatenate([*left_out, np.zeros(0, np.int64)])
    strengths = (usual_ridge(images) * 10**DECADES).tolist()
    shares = SHARES if left_out else SHARES[:1]
    scores = np.empty((len(DECADES), len(shares), len(PLAIN_WEIGHTS)))
    scale = 5 + classes / 2
    scales, losses = np.full_like(scores, scale), np.zeros((*scores.shape, len(rows)), np.float32)
    if left_out:
        unseen = ridge.held_out(targets, plain, strengths, shares, left_out)
        for i, (learnt, unexplained) in enumerate(unseen):
            for j, k in np.ndindex(scores.shape[1:]):
                logits = learnt[j] + PLAIN_WEIGHTS[k] * unexplained
                scales[i, j, k], losses[i, j, k] = calibrated(logits, labels[rows], scale)
                scale = scales[i, j, k]
        scores[:] = images * losses.mean(axis=-1)
    else:
        for i, k in np.ndindex(scores.shape[::2]):
            scores[i, 0, k] = ridge.surprise(targets - PLAIN_WEIGHTS[k] * plain, strengths[i])
    scores += PRIOR_WEIGHT * (DECADES[:, None, None] ** 2 + np.square(shares)[:, None])
    best = np.unravel_index(scores.argmin(), scores.shape)
    # Held-out losses of few images leave many settings likely, and a choice would be a gamble.
    parts = scales * (softmax(-scores / TEMPERATURE) if left_out else scores == scores[best])
    plain_parts = parts.sum(axis=1) @ PLAIN_WEIGHTS
    slopes, bias = np.zeros((inputs.shape[1], classes)), np.zeros(classes)
    for i in np.flatnonzero(parts.sum(axis=(1, 2)) > 1e-3 * parts.sum()).tolist():
        of_shares = dict(zip(shares, parts[i].sum(axis=1), strict=True))
        fitted = ridge.discriminants(targets, strengths[i], of_shares)
        of_plain = ridge.solution(plain_parts[i] * plain, strengths[i])
        slopes, bias = slopes + fitted[0] - of_plain[0], bias + fitted[1] - of_plain[1]
    plain_weight = float(plain_parts.sum() / unit)
    head = LinearHead(slopes.astype(np.float32), bias.astype(np.float32), 1.0, plain_weight)
    if not left_out:
        return Fit(head, None, None, strengths[best[0]])
    plain_losses = -log_probs[rows, labels[rows]]
    stays = clearly_less(plain_losses, losses[best], groups[rows])
    measured = float(losses[best].mean()), float(plain_losses.mean())
    return Fit(Unrefined() if stays else head, *measured, strengths[best[0]])
