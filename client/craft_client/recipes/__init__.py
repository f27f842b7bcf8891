"""The recipes: ways of tuning, one a module, and the one table of them.

A recipe is called with a `craft_client.tuning_run.TuningRun` and returns its `Outcome`; so is a
plug-in's, which is found by its entry point. Each of craftbox's own has a row in `OWN`: a further
one is a module and a row. A recipe's module is imported when it runs, since the names are needed
where nothing slow may be imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Protocol

from craft_shared import plugins
from craft_shared.plugins import Group, Plugin, PluginError

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
    where: str  # what runs it, as entry points name it
    # Prompts of each request of a generation, by the population; craftbox's own are counted by
    # `TuneSettings`.
    generation: Callable[[int], tuple[int, ...]]
    # Whether its first request is the plain prompt alone and its settings are the paper's, by data
    # set and shots.
    like_paper: bool = True
    # Those of `TuneSettings` that choose or switch off a part of a method, and that this one has;
    # it refuses the others of them.
    settings: frozenset[str] = frozenset()

    def run(self, run: TuningRun) -> Outcome:
        """Imports the recipe and runs it."""
        tunes: Run = resolve_name(self.where)
        return tunes(run)


_SEARCH_AND_HEAD = frozenset({"strategy", "search", "refinement", "consistency"})

_CRAFTBOX = Recipe(
    "craftbox",
    "one query and a closed form",
    "craft_client.recipes.craftbox:run_craftbox",
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
        "craft_client.recipes.paper:run_paper",
        lambda population: (population, 1),
        settings=_SEARCH_AND_HEAD,
    ),
    Recipe(
        "bbt",
        "the prompt alone by CMA-ES",
        "craft_client.recipes.paper:run_paper",
        lambda population: (population, 1),
    ),
    Recipe(
        "random",
        "the best of random prompts, a baseline",
        "craft_client.recipes.prompt_alone:run_random",
        lambda population: (population,),
    ),
    Recipe(
        "spsa",
        "the prompt alone by SPSA, a baseline",
        "craft_client.recipes.prompt_alone:run_spsa",
        lambda population: (2,),
    ),
)
OWN = {recipe.name: recipe for recipe in _ALL}
RECIPES = Group("craftbox.recipes", "recipe", tuple(OWN))


def described() -> str:
    """All of them with what they do, for a command's help."""
    return "; ".join(f"{recipe.name} ({recipe.about})" for recipe in OWN.values())


def counted_as(name: str) -> Recipe:
    """The row that counts for a recipe."""
    return OWN.get(name, _PLUGIN)


def plugin_of(name: str) -> Plugin | None:
    """The plug-in whose recipe has that name, not yet imported; None for craftbox's own.

    Raises:
        UnusablePlugin: there is none, or more than one.
    """
    if name in OWN:
        return None
    with usable_plugins():
        return plugins.find(RECIPES, name)


@contextmanager
def usable_plugins() -> Iterator[None]:
    """Raises UnusablePlugin where a plug-in is not installed, cannot be loaded or failed."""
    from craft_client.exceptions import UnusablePlugin

    try:
        yield
    except PluginError as error:
        message = str(error)
        raise UnusablePlugin(
            f"{message[0].upper()}{message[1:]}.", remedy="'craft plugins' lists what is installed."
        ) from error
