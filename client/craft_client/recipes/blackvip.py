"""BlackVIP: a visual prompt, added to the pixels, by SPSA with gradient correction.

The prompt is a coarse grid of colours that is drawn large (bilinear), so that it has few
parameters. Each step draws directions, makes the mini-batch's images with the prompt on both sides
of the present one, asks for the plain prompt on them, and moves against the mean slope with
Nesterov's momentum. Its images are encoded by the server each time: `images` is what it spends.

What a black box, and a client without torch, cannot follow: the coordinator, which draws another
prompt for each image from a pretrained encoder's features (an adapter carries one prompt for all),
and steps of less than one grey level, since images travel in 8 bits: the released code's distance,
0.01 of normalised pixels, is 0.7 levels. Its step is kept: 0.01 of normalised pixels a nat is 46
grey levels of a nat a level. Random crops are left out too. The released code has a momentum of its
own for each data set, from 0.3 to 0.95, mostly 0.9; 0.8 is that of its copy in ZIP's repository.

Published figures are of the coordinator, and say nothing of one prompt for all images.

Source: Oh et al., "BlackVIP: black-box visual prompting for robust transfer learning" (CVPR 2023,
arXiv 2303.14773), and the released code.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from craft_client.blackbox import Question
from craft_client.exceptions import BudgetExhausted
from craft_client.losses import cross_entropy
from craft_client.search import SegmentedSPSA, batches
from craft_client.tuning_run import Outcome, Reading, TuningRun
from craft_shared.adapter import prompted

Array = NDArray[np.float32]
Double = NDArray[np.float64]


def run_blackvip(
    run: TuningRun,
    *,
    grid: int = 7,
    batch: int = 128,
    directions: int = 5,
    step: float = 46.0,
    distance: float = 8.0,
    momentum: float = 0.8,
    most: float = 64.0,
) -> Outcome:
    """Runs the recipe.

    Args:
        run: the run.
        grid: cells of the prompt a side.
        batch: images of a step.
        directions: that a step measures, each by two prompts.
        step: the first step's length, in grey levels, of a slope of one nat a level.
        distance: of a direction's prompts from the present one, in grey levels, at first.
        momentum: of the slopes.
        most: grey levels that the prompt adds at most.
    """
    side = run.images.shape[1]  # before anything is asked, since they may not be there
    run.plain()
    generator = np.random.default_rng(run.settings.stream("search"))
    search = SegmentedSPSA(
        np.zeros(grid * grid * 3),
        generator,
        step=step,
        distance=distance,
        momentum=momentum,
        bound=most,
    )
    batch = min(batch, len(run.labels))
    rows = batches(len(run.labels), batch, generator)
    best_loss: float = run.history[0]["best_loss"]
    question = Question(1, images=2 * directions * batch, sent=True)
    while run.covers(question):
        run.generation += 1
        prompts = [drawn(point, grid, side) for point in search.ask(directions)]
        try:
            losses = _losses(run, next(rows), prompts)
        except BudgetExhausted as error:
            run.refused(error)
            break
        search.tell(losses)
        loss = float(losses.mean())
        best_loss = min(best_loss, float(losses.min()))
        run.report("search", loss, best_loss, None)
    if len(run.history) == 1:
        return Outcome("the plain prompt")
    return Outcome("the last visual prompt", visual=drawn(search.centre, grid, side))


def _losses(run: TuningRun, rows: NDArray[np.int64], prompts: list[Array]) -> Array:
    """Cross-entropies [K] of the rows' images under each of K visual prompts, in one question."""
    images = np.concatenate([prompted(run.images[rows], prompt) for prompt in prompts])
    labels = run.labels[rows]

    def read(log_probs: Array) -> Reading:
        of_prompts = log_probs[0].reshape(len(prompts), len(rows), -1)
        return Reading(cross_entropy(of_prompts, labels), {})

    asked = np.tile(rows, len(prompts))
    return run.ask(read, templates=[run.settings.template], rows=asked, images=images).losses


def drawn(point: Double, grid: int, side: int) -> Array:
    """A grid's colours [grid * grid * 3] as a prompt, float32 [S, S, 3], bilinear between cells."""
    cells = point.reshape(grid, grid, 3)
    places = (np.arange(side) + 0.5) * grid / side - 0.5
    weights = np.maximum(0, 1 - np.abs(np.clip(places, 0, grid - 1)[:, None] - np.arange(grid)))
    large = np.einsum("ia,jb,abc->ijc", weights, weights, cells)
    return np.asarray(large, np.float32)
