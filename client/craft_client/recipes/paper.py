"""The paper's recipe: prompts searched and a residual MLP trained, each with the other's help.

Each generation,

1. asks CMA-ES for a population of codes and tells it their losses: cross-entropy of the prompt's
   prediction, plus the divergence of the refined prediction from it;
2. draws a second population and takes its mean code for the prompt;
3. trains the head on that prompt's scores for one epoch: cross-entropy of the refined prediction,
   plus, in the first part of the run, the divergence of the unrefined prediction from it.

The last mean code and the head are deployed, whatever they are worth. docs/evidence/reproduction.md
says where this follows the released code rather than the paper, and where it can follow neither.

Without refinement it is black-box tuning (`bbt`), request for request, so that the two differ in
nothing else. Source: BBT (Sun et al., ICML 2022, arXiv 2201.03514), which itself searches for
continuous prompt tokens of a language model.

Shapes: N images, C classes, H hidden units.

Source: CraFT (arXiv 2402.04050), sections 3.1 to 3.4 and 4.1, and the released code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from craft_client.exceptions import BudgetExhausted
from craft_client.losses import accuracy, cross_entropy, divergence
from craft_client.search import search_for
from craft_client.tuning_run import Outcome, Reading, TuningRun
from craft_shared.head import ResidualMLPHead, Unrefined, centred

Array = NDArray[np.float32]

# What the scores of means may take in the journal before the head's state is saved in their place.
HELD_BYTES = 16 * 2**20

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]

RATE = 1e-3


def run_paper(run: TuningRun) -> Outcome:
    """Runs the recipe, or without refinement `bbt`; raises as `craft_client.tune.tune` does."""
    settings, labels = run.settings, run.labels
    refinement = settings.refinement and settings.recipe != "bbt"
    plain_scores, codes = run.plain(), run.no_codes
    best_loss: float = run.history[-1]["best_loss"]
    mlp = ResidualMLP(plain_scores.shape[1], hidden=settings.hidden, seed=settings.stream("mlp"))

    def with_scores(log_probs: Array) -> Reading:
        return Reading(cross_entropy(log_probs, labels), {"log_probs": log_probs[0]})

    def losses_of(log_probs: Array) -> Reading:
        losses = cross_entropy(log_probs, labels)
        if refinement and settings.consistency:
            head = mlp.head()
            refined = np.stack([head(one[None]) for one in log_probs])
            losses += np.float32(settings.consistency_weight) * divergence(refined, log_probs)
        return Reading(losses, {})

    def train(scores: Array) -> None:
        within = run.generation <= settings.consistency_share * run.planned_generations
        weight = settings.consistency_weight if settings.consistency and within else 0.0
        mlp.train_epoch(scores, labels, batch_size=settings.batch_size, consistency_weight=weight)

    def learn(scores: Array) -> float:
        """Trains on the mean's scores; the accuracy on them."""
        if refinement:
            train(scores)
        refined = mlp.head()(scores[None]) if refinement else scores
        return accuracy(refined, labels)

    search = search_for(settings)
    while run.covers():
        run.generation += 1
        population = search.ask()
        try:
            losses = run.ask(losses_of, population).losses
            search.tell(population, losses)
            mean = search.current()[None]
            of_mean, codes = run.ask(with_scores, mean), mean
        except BudgetExhausted as error:
            run.refused(error)
            break
        loss, best_loss = float(losses.mean()), min(best_loss, float(losses.min()))
        if not run.answers.learnt:
            run.report("search", loss, best_loss, learn(of_mean.kept["log_probs"]))
            if run.answers.held_bytes > HELD_BYTES:
                run.save_checkpoint(*mlp.state())
        elif (checkpoint := run.answers.checkpoint) is not None:
            mlp.restore(checkpoint.document, checkpoint.tensors)
            run.history[:] = checkpoint.document["history"]

    if not settings.search and refinement:
        for _ in range(settings.budget // settings.population):
            train(plain_scores)
    return Outcome(
        deployed="the last mean, refined" if refinement else "the last mean",
        codes=codes,
        head=mlp.head() if refinement else Unrefined(),
        best_loss=best_loss,
    )


class ResidualMLP:
    """The paper's head while it is trained: s + MLP(s), C-H-C with ReLU, on one prompt's scores.

    Adam with rate 1e-3, and PyTorch's default start of both layers, as in the released code.
    """

    def __init__(self, classes: int, *, hidden: int = 256, seed: Sequence[int]) -> None:
        self._generator = np.random.default_rng(seed)

        def uniform(inputs: int, *shape: int) -> Array:
            bound = 1 / np.sqrt(inputs)
            return self._generator.uniform(-bound, bound, shape).astype(np.float32)

        self._parameters: list[Array] = [
            uniform(classes, classes, hidden),
            uniform(classes, hidden),
            uniform(hidden, hidden, classes),
            uniform(hidden, classes),
        ]
        self._first_moments = [np.zeros_like(parameter) for parameter in self._parameters]
        self._second_moments = [np.zeros_like(parameter) for parameter in self._parameters]
        self._steps = 0

    def head(self) -> ResidualMLPHead:
        """The head as it is now."""
        hidden_weight, hidden_bias, weight, bias = self._parameters
        return ResidualMLPHead(hidden_weight.copy(), hidden_bias.copy(), weight.copy(), bias.copy())

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """All that further training depends on: what JSON can hold, and tensors."""
        tensors = {
            f"{kind}.{number}": tensor
            for kind, group in self._groups()
            for number, tensor in enumerate(group)
        }
        return {"steps": self._steps, "generator": self._generator.bit_generator.state}, tensors

    def restore(self, document: Mapping[str, Any], tensors: Mapping[str, Array]) -> None:
        """Continues from what `state` returned."""
        self._steps = document["steps"]
        self._generator.bit_generator.state = document["generator"]
        for kind, group in self._groups():
            group[:] = [tensors[f"{kind}.{number}"].copy() for number in range(len(group))]

    def _groups(self) -> list[tuple[str, list[Array]]]:
        return [
            ("parameter", self._parameters),
            ("first moment", self._first_moments),
            ("second moment", self._second_moments),
        ]

    def train_epoch(
        self, scores: Array, labels: Labels, *, consistency_weight: float, batch_size: int = 256
    ) -> None:
        """One pass over the images' log-probabilities [N, C], in a random order.

        Loss: cross-entropy of the refined prediction plus `consistency_weight` times the divergence
        of the unrefined prediction from it (CraFT, sections 3.2 and 3.3).
        """
        scores = centred(scores)
        order = self._generator.permutation(len(labels))
        for begin in range(0, len(order), batch_size):
            batch = order[begin : begin + batch_size]
            _, gradients = mlp_loss(
                self._parameters, scores[batch], labels[batch], consistency_weight
            )
            self._adam_step(gradients)

    def _adam_step(self, gradients: list[Array]) -> None:
        """Kingma and Ba, 2015, with their constants."""
        self._steps += 1
        first, second = 1 - 0.9**self._steps, 1 - 0.999**self._steps
        for parameter, gradient, m, v in zip(
            self._parameters, gradients, self._first_moments, self._second_moments, strict=True
        ):
            m += 0.1 * (gradient - m)
            v += 0.001 * (gradient**2 - v)
            parameter -= RATE * (m / first) / (np.sqrt(v / second) + 1e-8)


def mlp_loss(
    parameters: Sequence[Floats], scores: Floats, labels: Labels, consistency_weight: float
) -> tuple[float, list[Floats]]:
    """The loss in nats of `ResidualMLP` on centred log-probabilities [N, C], and its gradients.

    Parameters are the hidden weight [C, H] and bias [H], the weight [H, C] and bias [C].
    """
    hidden_weight, hidden_bias, weight, bias = parameters
    truth = np.arange(len(labels)), labels
    hidden = np.maximum(scores @ hidden_weight + hidden_bias, 0)
    unrefined_log_probs = log_softmax(scores, axis=-1)
    unrefined_probs = np.exp(unrefined_log_probs)
    log_probs = log_softmax(scores + hidden @ weight + bias, axis=-1)
    divergences = (unrefined_probs * (unrefined_log_probs - log_probs)).sum(axis=-1)
    loss = -log_probs[truth].mean() + consistency_weight * divergences.mean()

    probs = np.exp(log_probs)
    slope = probs + consistency_weight * (probs - unrefined_probs)
    slope[truth] -= 1
    slope /= len(labels)
    hidden_slope = slope @ weight.T * (hidden > 0)
    gradients = [
        scores.T @ hidden_slope,
        hidden_slope.sum(axis=0),
        hidden.T @ slope,
        slope.sum(axis=0),
    ]
    return float(loss), gradients
