"""The recipes: ways of tuning, one a module, and the one table of them.

A recipe is called with a `TuningRun` and returns its `Outcome`; so is a plug-in's. Each of
craftbox's own has a row in `OWN`, which says what must be known of it before it runs. A further one
is a module and a row. Names are needed where nothing slow may be imported, so that a recipe's
module is imported when it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from craft_client.tuning_run import Outcome, TuningRun


class Run(Protocol):
    """What tunes: a recipe of craftbox's own, or a plug-in's."""

    def __call__(self, run: TuningRun, /) -> Outcome:
        """Asks by `run.ask` while `run.covers_generation()`, and reports each generation.

        Raises:
            CraftError: see `craft_client.tune.tune`.
        """
        ...


@dataclass(frozen=True)
class Recipe:
    """A row of the table."""

    name: str  # what `--recipe` calls it
    about: str  # what it does, in a few words
    run: Run
    # Prompts of each request of a generation, by the population; craftbox's own are counted by
    # `TuneSettings`.
    generation: Callable[[int], tuple[int, ...]]
    # Whether its first request is the plain prompt alone and its settings are the paper's, by data
    # set and shots.
    like_paper: bool = True
    # Those of `TuneSettings` that choose or switch off a part of a method, and that this one has;
    # it refuses the others of them.
    settings: frozenset[str] = frozenset()


def _craftbox(run: TuningRun, /) -> Outcome:
    from craft_client.recipes.craftbox import run_craftbox

    return run_craftbox(run)


def _paper(run: TuningRun, /) -> Outcome:
    from craft_client.recipes.paper import run_paper

    return run_paper(run)


def _bbt(run: TuningRun, /) -> Outcome:
    from craft_client.recipes.prompt_alone import run_bbt

    return run_bbt(run)


def _random(run: TuningRun, /) -> Outcome:
    from craft_client.recipes.prompt_alone import run_random

    return run_random(run)


def _spsa(run: TuningRun, /) -> Outcome:
    from craft_client.recipes.prompt_alone import run_spsa

    return run_spsa(run)


_SEARCH_AND_HEAD = frozenset({"strategy", "search", "refinement", "consistency"})

_CRAFTBOX = Recipe(
    "craftbox",
    "one query and a closed form",
    _craftbox,
    lambda population: (),
    like_paper=False,
)
# Of a plug-in's recipe the random codes come first, with the plain prompt, then one generation
# after another.
_PLUGIN = replace(_CRAFTBOX, generation=lambda population: (population,), settings=_SEARCH_AND_HEAD)

_ALL = (
    _CRAFTBOX,
    Recipe(
        "paper",
        "CraFT as published, with its settings for the data set",
        _paper,
        lambda population: (population, 1),
        settings=_SEARCH_AND_HEAD,
    ),
    Recipe(
        "bbt",
        "the prompt alone by CMA-ES",
        _bbt,
        lambda population: (population, 1),
    ),
    Recipe(
        "random",
        "the best of random prompts, a baseline",
        _random,
        lambda population: (population,),
    ),
    Recipe(
        "spsa",
        "the prompt alone by SPSA, a baseline",
        _spsa,
        lambda population: (2,),
    ),
)
OWN = {recipe.name: recipe for recipe in _ALL}


def described() -> str:
    """All of them with what they do, for a command's help."""
    return "; ".join(f"{recipe.name} ({recipe.about})" for recipe in OWN.values())


def counted_as(name: str) -> Recipe:
    """The row that counts for a recipe."""
    return OWN.get(name, _PLUGIN)
