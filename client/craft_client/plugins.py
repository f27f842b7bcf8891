"""Recipes of other packages, found by their entry points.

A recipe is called with a `craft_client.tuning_run.TuningRun` and returns its `Outcome`, as
craftbox's own are; see `craft_client.recipes`. It ends in a head of a kind that servers know, which
is data: no code of a recipe's is ever published.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from craft_client import recipes
from craft_client.exceptions import CraftError, UnusablePlugin
from craft_shared import plugins
from craft_shared.plugins import Group, Plugin, PluginError

OWN_RECIPES = tuple(recipes.OWN)

RECIPES = Group("craftbox.recipes", "recipe", OWN_RECIPES)


def find(name: str) -> Plugin:
    """The recipe of that name; nothing of it is imported.

    Raises:
        UnusablePlugin: there is none, or more than one.
    """
    with _as_client_errors():
        return plugins.find(RECIPES, name)


@contextmanager
def running(plugin: Plugin) -> Iterator[None]:
    """Loads and calls a plug-in.

    Raises:
        UnusablePlugin: it cannot be loaded, or failed.
    """
    with _as_client_errors(), plugin.running(CraftError):
        yield


@contextmanager
def _as_client_errors() -> Iterator[None]:
    try:
        yield
    except PluginError as error:
        message = str(error)
        raise UnusablePlugin(
            f"{message[0].upper()}{message[1:]}.", remedy="'craft plugins' lists what is installed."
        ) from error
