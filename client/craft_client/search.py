"""Ask/tell search over codes: CMA-ES, with pycma behind it.

It knows codes and their losses; it does not know prompts, images, or how a loss comes about.

Source: N. Hansen's pycma; bounds, population and start as in CraFT (section 4.1 and its code).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

with warnings.catch_warnings():
    # pycma says on import that it cannot plot where matplotlib is missing; nothing here plots.
    warnings.filterwarnings("ignore", message="Could not import matplotlib")
    import cma


class CodeSearch:
    """Looks for the code of least loss.

    Each generation is one `ask` and one `tell`. Two searches of equal arguments that are told equal
    losses ask for equal codes, whatever else draws random numbers meanwhile.

    Args:
        dim: length of a code.
        population: codes a generation, >= 4.
        sigma: initial standard deviation of each coordinate, > 0; the start is zero.
        bound: that no coordinate passes; 0 for none.
        seed: any integers.
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
        self._best: tuple[NDArray[np.float32], float] | None = None

    def ask(self) -> NDArray[np.float32]:
        """The next generation: codes, float32 [population, dim], within the bounds."""
        self._asked = self._strategy.ask()
        return np.asarray(self._asked, dtype=np.float32)

    def tell(self, codes: NDArray[np.float32], losses: NDArray[np.float32]) -> None:
        """Reports the losses [population] of the codes that `ask` gave last.

        Raises:
            ValueError: these are not those codes, a loss is not finite, or there is not one for
                each code.
        """
        if not np.array_equal(codes, np.asarray(self._asked, dtype=np.float32)):
            raise ValueError("these are not the codes that were asked for last")
        if losses.shape != (len(codes),) or not np.isfinite(losses).all():
            raise ValueError(f"{len(codes)} codes need as many finite losses")
        # Its own solutions, because it treats others, even when only rounded, as strangers'.
        self._strategy.tell(self._asked, losses.astype(np.float64).tolist())
        first = int(np.argmin(losses))
        if self._best is None or losses[first] < self._best[1]:
            self._best = codes[first].copy(), float(losses[first])

    def drawn_mean(self) -> NDArray[np.float32]:
        """The mean of a second population, drawn for this alone, float32 [dim].

        The released code's prompt after a generation.
        """
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

    @property
    def mean(self) -> NDArray[np.float32]:
        """The centre of the distribution that codes are drawn from, float32 [dim]."""
        return np.asarray(self._strategy.result.xfavorite, dtype=np.float32)

    @property
    def best(self) -> tuple[NDArray[np.float32], float]:
        """The code of least loss told so far, float32 [dim], and that loss.

        Raises:
            ValueError: nothing has been told.
        """
        if self._best is None:
            raise ValueError("nothing has been told yet")
        return self._best
