"""The recipes: ways of tuning, one a module, and the one table of them.

A recipe is called with a `craft_client.tuning_run.TuningRun` and returns its `Outcome`; so is a
plug-in's, which is found by its entry point, and one's own in a file, `FILE.py:NAME`. Its
keyword arguments, all with defaults, are settings of its own (`--set NAME=VALUE`). Each of
craftbox's has a row in `OWN`: a further one is a module and a row. A recipe's module is imported
when it is needed, since the names are where nothing slow may be imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Protocol

from craft_shared import plugins
from craft_shared.plugins import Group, Plugin, PluginError

if TYPE_CHECKING:
    from craft_client.settings import TuneSettings
    from craft_client.tuning_run import Outcome, TuningRun

Option = bool | int | float | str  # the value of a setting of a recipe's own


class Run(Protocol):
    """What tunes: a recipe of craftbox's own, a plug-in's, or one in a file."""

    def __call__(self, run: TuningRun, /, **options: Option) -> Outcome:
        """Asks by `run.ask` while `run.covers()` it, and reports each generation.

        Raises:
            CraftError: see `craft_client.tune.tune`.
        """
        ...


@dataclass(frozen=True)
class Recipe:
    """A row of the table."""

    name: str  # what `--recipe` calls it
    about: str  # what it does, in a few words
    where: str = ""  # what runs it, as entry points name it
    # Prompts of the first request, and of each request of a generation, from 1. None where a recipe
    # finds out as it goes what it asks, after the plain prompt.
    opening: Callable[[TuneSettings], int] = lambda settings: 1
    generation: Callable[[TuneSettings, int], tuple[int, ...]] | None = None
    # Whether a run begins only where a generation, if there is one, is covered too.
    searches: bool = True
    # Whether its settings are the paper's, by data set and shots.
    like_paper: bool = False
    # Whether it scores texts in the place of class names, of which coarse answers show too little.
    reads_texts: bool = False
    # Of `TuneSettings`, where this has others than they have; without a budget it is the paper's.
    defaults: Mapping[str, Any] = field(default_factory=dict)
    # Those of `TuneSettings` that choose or switch off a part of a method, and that this one has;
    # it refuses the others of them.
    settings: frozenset[str] = frozenset()

    def load(self) -> Run:
        """Imports what tunes.

        Raises:
            UnusablePlugin: it is a plug-in's or in a file, and cannot be loaded.
        """
        plugin = plugin_of(self.name)
        if plugin is None:
            own: Run = resolve_name(self.where)
            return own
        with usable_plugins():
            tunes: Run = plugin.load()
            return tunes

    def options(self, given: Mapping[str, Option]) -> dict[str, Option]:
        """Settings of the recipe's own, of the types that their defaults have.

        Raises:
            ValueError: it has no such setting, or a value is of another type; the message says so.
            UnusablePlugin: see `load`.
        """
        own = {
            name: parameter.default
            for name, parameter in inspect.signature(self.load()).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        if unknown := [name for name in given if name not in own]:
            has = f"it has {', '.join(own)}" if own else "it has none"
            raise ValueError(f"'{self.name}' has no setting '{unknown[0]}'; {has}")
        return {name: _read(name, value, own[name]) for name, value in given.items()}


def _read(name: str, value: Option, default: Option) -> Option:
    kind = type(default)
    if type(value) is kind:
        return value
    try:
        if kind is bool:
            return {"true": True, "false": False}[str(value).lower()]
        return kind(value)
    except (ValueError, KeyError) as error:
        raise ValueError(f"'{name}' is '{value}', not {_KINDS.get(kind, 'a text')}") from error


_KINDS = {bool: "true or false", int: "an integer", float: "a number"}


FIRST_PROMPTS = 4


def _first_prompts(settings: TuneSettings) -> int:
    prompts = 1 if settings.texts else min(FIRST_PROMPTS, 1 + settings.random_codes)
    return min(prompts, settings.budget) if settings.budget_unit == "queries" else prompts


def _doubled(settings: TuneSettings, number: int) -> tuple[int, ...]:
    """Doubles the prompts while there are codes."""
    asked = settings.opening_question.prompts * 2 ** (number - 1)
    further = 0 if settings.texts else min(asked, 1 + settings.random_codes - asked)
    return (further,) if further > 0 else ()


_ALL = (
    Recipe(
        "craftbox",
        "one query and a closed form",
        "craft_client.recipes.craftbox:run_craftbox",
        _first_prompts,
        _doubled,
        searches=False,
    ),
    Recipe(
        "paper",
        "CraFT as published, with its settings for the data set",
        "craft_client.recipes.paper:run_paper",
        generation=lambda settings, number: (settings.population, 1),
        like_paper=True,
        settings=frozenset({"strategy", "search", "refinement", "consistency"}),
    ),
    Recipe(
        "bbt",
        "the prompt alone by CMA-ES",
        "craft_client.recipes.paper:run_paper",
        generation=lambda settings, number: (settings.population, 1),
        like_paper=True,
    ),
    Recipe(
        "random",
        "the best of random prompts, a baseline",
        "craft_client.recipes.prompt_alone:run_random",
        generation=lambda settings, number: (settings.population,),
        like_paper=True,
    ),
    Recipe(
        "spsa",
        "the prompt alone by SPSA, a baseline",
        "craft_client.recipes.prompt_alone:run_spsa",
        generation=lambda settings, number: (2,),
        like_paper=True,
    ),
    Recipe(
        "sim",
        "a linear map of generic texts' scores, without class names",
        "craft_client.recipes.sim:run_sim",
        reads_texts=True,
        defaults={"budget": 2},
    ),
    Recipe(
        "zip",
        "low-rank codes by clipped zeroth-order steps on mini-batches",
        "craft_client.recipes.zip:run_zip",
        defaults={"budget": 5001, "scale": 50.0},
    ),
    Recipe(
        "words",
        "readable templates by evolution",
        "craft_client.recipes.words:run_words",
        defaults={"budget": 1001},
    ),
    Recipe(
        "descriptions",
        "sentences about each class, from a file",
        "craft_client.recipes.descriptions:run_descriptions",
        reads_texts=True,
        defaults={"budget": 2},
    ),
    Recipe(
        "bpt-text",
        "the text half of BPT-VLM, by CMA-ES",
        "craft_client.recipes.bpt_text:run_bpt_text",
        defaults={"budget": 5001, "scale": 1.0},
    ),
    Recipe(
        "blackvip",
        "a visual prompt by SPSA with gradient correction",
        "craft_client.recipes.blackvip:run_blackvip",
        defaults={"budget": 501},
    ),
)
OWN = {recipe.name: recipe for recipe in _ALL}
# Of this program's functions the one that is run now, here and in no other thread.
_FUNCTION: ContextVar[Plugin | None] = ContextVar("function", default=None)
RECIPES = Group("craftbox.recipes", "recipe", tuple(OWN))


def described() -> str:
    """All of them with what they do, for a command's help."""
    return "; ".join(f"{recipe.name} ({recipe.about})" for recipe in OWN.values())


def recipe_of(name: str) -> Recipe:
    """The row of craftbox's own, or one for a plug-in's or a file's, which need not be there."""
    return OWN.get(name) or Recipe(name, "")


@contextmanager
def added(tunes: Run) -> Iterator[str]:
    """Lets a function of this program's be a recipe, for as long as the block; what it is called.

    Raises:
        ValueError: craftbox has a recipe of that name.
    """
    function = plugins.own_function(RECIPES, tunes)
    if function.name in OWN:
        raise ValueError(f"'{function.name}' is a recipe of craftbox's own: rename yours")
    token = _FUNCTION.set(function)
    try:
        yield function.name
    finally:
        _FUNCTION.reset(token)


def plugin_of(name: str) -> Plugin | None:
    """The plug-in, file or function that has that name, not yet imported; None for craftbox's own.

    Raises:
        UnusablePlugin: there is none, or more than one.
    """
    if name in OWN:
        return None
    function = _FUNCTION.get()
    if function is not None and function.name == name:
        return function
    with usable_plugins():
        return plugins.own_file(RECIPES, name) or plugins.find(RECIPES, name)


def loaded_file(text: str) -> Any:
    """What `FILE.py:NAME` names, loaded.

    Raises:
        UnusablePlugin: it is no such text, or cannot be loaded.
    """
    with usable_plugins():
        found = plugins.own_file(RECIPES, text)
        if found is None:
            raise PluginError(f"'{text}' is not FILE.py:NAME")
        return found.load()


def resolved(name: str) -> str:
    """The name, from wherever it is resumed: of a file, with its whole path."""
    own = plugins.own_file(RECIPES, name)
    return name if own is None else f"{own.path.resolve()}:{name.rpartition(':')[2]}"


def is_file(name: str) -> bool:
    """Whether that is FILE.py:NAME."""
    return plugins.own_file(RECIPES, name) is not None


def began(name: str, document: Mapping[str, Any]) -> bool:
    """Whether the run of that document began by this recipe, be its file mended or moved since."""
    begun: str = document["settings"]["recipe"]
    if resolved(name) == begun:
        return True
    own, plugin = plugins.own_file(RECIPES, name), str(document.get("plugin"))
    return own is not None and own.name == label(begun) and own.digest in plugin


def label(name: str) -> str:
    """What reports call a recipe: of a file's path its last part, since folders are the user's."""
    own = plugins.own_file(RECIPES, name)
    return name if own is None else own.name


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
