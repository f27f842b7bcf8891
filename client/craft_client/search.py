"""Ask/tell search over codes: CMA-ES with pycma behind it, and what it is compared with.

Sources: N. Hansen's pycma; bounds, population and start as in CraFT (section 4.1 and its code).
J. Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient
approximation", IEEE TAC 37 (1992), and his guidelines for gains (IEEE TAES 34, 1998); with momentum
as in BlackVIP (Oh et al., CVPR 2023).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from craft_client.settings import Strategy, TuneSettings

with warnings.catch_warnings():
    # pycma says on import that it cannot plot where matplotlib is missing; nothing here plots.
    warnings.filterwarnings("ignore", message="Could not import matplotlib")
    import cma


Codes = NDArray[np.float32]


class CodeSearch(Protocol):
    """Looks for the code of least loss: each generation is one `ask` and one `tell`.

    Two searches of equal arguments and losses ask for equal codes, whatever else draws numbers.
    """

    def ask(self) -> Codes:
        """The next generation: codes, float32 [population, dim], within the bounds."""
        ...

    def tell(self, codes: Codes, losses: Codes) -> None:
        """Reports the losses [population] of the codes that `ask` gave last.

        Raises:
            ValueError: these are not those codes, or there is not one finite loss for each.
        """
        ...

    def current(self) -> Codes:
        """The code that the search stands for after a generation, float32 [dim]."""
        ...


def _check(asked: Codes, codes: Codes, losses: Codes) -> None:
    if not np.array_equal(codes, asked):
        raise ValueError("these are not the codes that were asked for last")
    if losses.shape != (len(codes),) or not np.isfinite(losses).all():
        raise ValueError(f"{len(codes)} codes need as many finite losses")


class CMAES:
    """Covariance matrix adaptation, from zero.

    `sigma` is the initial standard deviation of each coordinate, `bound` what none passes (0: no
    bound), `population` at least 4, and `seed` any integers.
    """

    def __init__(
        self, dim: int, *, population: int, sigma: float, bound: float, seed: Sequence[int]
    ) -> None:
        generator = np.random.default_rng(seed)

        def standard_normal(*shape: int) -> NDArray[np.float64]:
            return generator.standard_normal(shape)

        self._strategy = cma.CMAEvolutionStrategy(
            np.zeros(dim),
            sigma,
            {
                "popsize": population,
                # By name, since pycma's default has changed: the paper's results are this one's.
                "AdaptSigma": cma.sigma_adaptation.CMAAdaptSigmaCSA,
                "bounds": [-bound, bound] if bound else None,
                # A generator of its own: pycma's seed would set numpy's global one, and takes 0
                # for the clock.
                "randn": standard_normal,
                "seed": math.nan,
                "verbose": -9,
                "verb_log": 0,
                "verb_disp": 0,
            },
        )
        self._asked: list[NDArray[np.float64]] = []

    def ask(self) -> Codes:
        """See `CodeSearch`."""
        self._asked = self._strategy.ask()
        return np.asarray(self._asked, dtype=np.float32)

    def tell(self, codes: Codes, losses: Codes) -> None:
        """See `CodeSearch`."""
        _check(np.asarray(self._asked, dtype=np.float32), codes, losses)
        # Its own solutions, because it treats others, even when only rounded, as strangers'.
        self._strategy.tell(self._asked, losses.astype(np.float64).tolist())

    def current(self) -> Codes:
        """The mean of a second population, drawn for this alone, as in the released code."""
        strategy = self._strategy
        # Not by `ask`, which counts on each of its populations being told.
        steps = np.asarray(strategy.sm.sample(strategy.popsize))
        codes = [
            strategy.gp.pheno(
                strategy.mean + strategy.sigma * strategy.sigma_vec.scaling * step,
                into_bounds=strategy.boundary_handler.repair,
            )
            for step in steps
        ]
        mean: NDArray[np.float64] = np.mean(codes, axis=0)
        return mean.astype(np.float32)


class RandomSearch:
    """Draws from one normal distribution, whatever the losses, and stands for the best so far."""

    def __init__(
        self, dim: int, *, population: int, sigma: float, bound: float, seed: Sequence[int]
    ) -> None:
        self._generator = np.random.default_rng(seed)
        self._shape = population, dim
        self._sigma = sigma
        self._bound = bound or np.inf
        self._asked = np.zeros((0, dim), np.float32)
        self._best = np.zeros(dim, np.float32), np.inf

    def ask(self) -> Codes:
        """See `CodeSearch`."""
        codes = self._sigma * self._generator.standard_normal(self._shape)
        self._asked = np.clip(codes, -self._bound, self._bound).astype(np.float32)
        return self._asked

    def tell(self, codes: Codes, losses: Codes) -> None:
        """See `CodeSearch`."""
        _check(self._asked, codes, losses)
        first = int(np.argmin(losses))
        if losses[first] < self._best[1]:
            self._best = codes[first].copy(), float(losses[first])

    def current(self) -> Codes:
        """See `CodeSearch`."""
        return self._best[0]


class SPSA:
    """Descends along slopes measured in random directions: pairs of codes about the centre."""

    MOMENTUM = 0.9
    # The distance of a pair's codes from the centre, and a coordinate's first step, in sigmas.
    PERTURBATION = 0.1
    FIRST_STEP = 0.1
    # Spall's exponents of the two gains' decay, and a tenth of some 200 generations.
    STEP_DECAY = 0.602
    PERTURBATION_DECAY = 0.101
    STABILITY = 20

    def __init__(
        self, dim: int, *, population: int, sigma: float, bound: float, seed: Sequence[int]
    ) -> None:
        self._generator = np.random.default_rng(seed)
        self._population = population
        self._sigma = sigma
        self._bound = bound or np.inf
        self._centre = np.zeros(dim)
        self._velocity = np.zeros(dim)
        self._gain = 0.0
        self._generation = 0
        self._directions = np.zeros((0, dim))
        self._asked = np.zeros((0, dim), np.float32)

    def ask(self) -> Codes:
        """See `CodeSearch`. The centre itself is the last of an odd population."""
        pairs = self._population // 2
        shape = pairs, len(self._centre)
        self._directions = self._generator.choice([-1.0, 1.0], shape) * self._distance
        codes = np.concatenate(
            [
                self._centre + self._directions,
                self._centre - self._directions,
                np.tile(self._centre, (self._population - 2 * pairs, 1)),
            ]
        )
        self._asked = np.clip(codes, -self._bound, self._bound).astype(np.float32)
        return self._asked

    def tell(self, codes: Codes, losses: Codes) -> None:
        """See `CodeSearch`."""
        _check(self._asked, codes, losses)
        pairs = len(self._directions)
        slopes = (losses[:pairs] - losses[pairs : 2 * pairs]).astype(np.float64)
        self._descend(slopes @ self._directions / (2 * pairs * self._distance**2))

    def _descend(self, gradient: NDArray[np.float64]) -> None:
        if not self._gain:
            size = np.abs(gradient).mean() or 1.0
            first = (1 + self.STABILITY) ** self.STEP_DECAY
            self._gain = self.FIRST_STEP * self._sigma * first / size
        self._velocity = self.MOMENTUM * self._velocity + (1 - self.MOMENTUM) * gradient
        self._move(self._velocity)

    def _move(self, slope: NDArray[np.float64]) -> None:
        """One step down, by Spall's gain a / (k + A)^alpha."""
        self._generation += 1
        step = self._gain / (self._generation + self.STABILITY) ** self.STEP_DECAY
        self._centre = np.clip(self._centre - step * slope, -self._bound, self._bound)

    def current(self) -> Codes:
        """See `CodeSearch`."""
        return self._centre.astype(np.float32)

    @property
    def _distance(self) -> float:
        decay: float = (self._generation + 1) ** self.PERTURBATION_DECAY
        return self.PERTURBATION * self._sigma / decay


class CorrectedSPSA(SPSA):
    """SPSA-GC, BlackVIP's optimizer: one pair of codes a step, and Nesterov's momentum.

    Several pairs about the start choose the gain before the first step, as Spall advises: the slope
    that one pair measures may be next to none. Directions are of Spall's signs, where BlackVIP's
    released code draws lengths too.
    """

    FIRST_PAIRS = 5
    # A tenth of SPSA's, because the momentum here sums what it averages there.
    FIRST_STEP = 0.01
    # A tenth of some 1,000 steps.
    STABILITY = 100

    def __init__(self, dim: int, *, sigma: float, bound: float, seed: Sequence[int]) -> None:
        super().__init__(dim, population=2, sigma=sigma, bound=bound, seed=seed)
        self._first_sizes: list[float] = []

    def _descend(self, gradient: NDArray[np.float64]) -> None:
        if not self._gain:
            self._first_sizes.append(float(np.abs(gradient).mean()))
            if len(self._first_sizes) == self.FIRST_PAIRS:
                size = float(np.mean(self._first_sizes)) or 1.0
                first = (1 + self.STABILITY) ** self.STEP_DECAY
                self._gain = self.FIRST_STEP * self._sigma * first / size
            return
        self._velocity = self.MOMENTUM * self._velocity + gradient
        self._move(gradient + self.MOMENTUM * self._velocity)


SEARCHES: dict[Strategy, Callable[..., CodeSearch]] = {
    "cma-es": CMAES,
    "random": RandomSearch,
    "spsa": SPSA,
}


def search_for(settings: TuneSettings, strategy: Strategy | None = None) -> CodeSearch:
    """The search of a run with these settings; by another strategy, where one is given."""
    return SEARCHES[strategy or settings.strategy](
        settings.dim,
        population=settings.population,
        sigma=settings.sigma,
        bound=settings.bound,
        seed=settings.stream("search"),
    )


class SegmentedSPSA:
    """SPSA as ZIP's and BlackVIP's released codes have it: directions of lengths from 1/2 to 1.

    `ask` gives points on both sides of `centre`; `tell` moves it. Gains are a / (k + 1)^0.4 and
    c / k^0.1 of step k, from 1. With `momentum` it is SPSA-GC (BlackVIP): Nesterov's.
    """

    STEP_DECAY = 0.4
    DISTANCE_DECAY = 0.1

    def __init__(
        self,
        start: NDArray[np.float64],
        generator: np.random.Generator,
        *,
        step: float,
        distance: float,
        momentum: float = 0.0,
        bound: float = np.inf,
    ) -> None:
        self.centre = start.astype(np.float64)
        self._generator = generator
        self._gains = step, distance
        self._momentum = momentum
        self._bound = bound
        self._velocity = np.zeros_like(self.centre)
        self._directions = np.zeros((0, self.centre.size))
        self._number = 1

    @property
    def _distance(self) -> float:
        return float(self._gains[1] / self._number**self.DISTANCE_DECAY)

    def ask(self, directions: int) -> NDArray[np.float64]:
        """Points [2 * directions, D]: the centre plus each direction, then minus each."""
        shape = directions, self.centre.size
        lengths = self._generator.uniform(0.5, 1.0, shape)
        self._directions = lengths * self._generator.choice([-1.0, 1.0], shape)
        moved = self._distance * self._directions
        return np.concatenate([self.centre + moved, self.centre - moved])

    def tell(self, losses: Codes, *, most: float = np.inf) -> None:
        """Moves by the mean slope of losses [2 * directions], no longer than `most`."""
        half = len(self._directions)
        rises = (losses[:half] - losses[half:]).astype(np.float64)[:, None]
        slope = (rises / (2 * self._distance * self._directions)).mean(axis=0)
        length = float(np.linalg.norm(slope))
        if length > most:
            slope *= most / length
        self._velocity = self._momentum * self._velocity + slope
        slope = slope + self._momentum * self._velocity
        step = self._gains[0] / (self._number + 1) ** self.STEP_DECAY
        self.centre = np.clip(self.centre - step * slope, -self._bound, self._bound)
        self._number += 1


def batches(count: int, size: int, generator: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Rows of mini-batches without end: each pass is in an order of its own, a rest left out."""
    while True:
        order = generator.permutation(count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]
