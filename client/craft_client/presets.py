"""Settings of recipes: the paper's, by shots and data set; craftbox's, with its vocabulary.

Source: CraFT (arXiv 2402.04050), section 4.1, and the configurations of its released code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from craft_client import recipes
from craft_client.exceptions import DataError
from craft_client.settings import SettingsError, TuneSettings, random_codes_for, shows_texts
from craft_shared.names import REMEDY, fault, same_text, twins
from craft_shared.problems import FieldError
from craft_shared.text_files import NotTextError, lines_of, read_text
from craft_shared.wire import EVERYTHING, ModelCard
from craft_shared.wire.messages import LONGEST_CLASS_NAME

POPULATION = 40
# Queries that the paper counts, one for each code of each population, by shots.
BUDGETS = {1: 2000, 2: 4000, 4: 4000, 8: 8000, 16: 8000}

# What differs from the settings of most data sets. Data sets go by many names: see `_key`.
_MOST: dict[str, Any] = {
    "scale": "paper",
    "sigma": 1.0,
    "bound": 5.0,
    "consistency_weight": 0.1,
    "consistency_share": 1 / 4,
    "hidden": 256,
    "batch_size": 256,
}
_OF_DATA: dict[str, dict[str, Any]] = {
    "caltech101": {},
    "oxfordflowers": {},
    "stanfordcars": {},
    "sun397": {},
    "ucf101": {},
    "describabletextures": {
        "scale": "paper-wide",
        "sigma": 0.02,
        "consistency_weight": 0.001,
        "consistency_share": 1.0,
    },
    "eurosat": {
        "scale": "paper-wide",
        "sigma": 0.02,
        "consistency_weight": 0.01,
        "consistency_share": 1.0,
    },
    "fgvcaircraft": {"sigma": 0.02, "bound": 0.0},
    "food101": {"bound": 0.0, "consistency_weight": 1.0, "consistency_share": 1.0},
    "oxfordpets": {"sigma": 0.02, "consistency_share": 1.0, "batch_size": 64},
    "imagenet": {
        "scale": "paper-imagenet",
        "bound": 0.0,
        "consistency_weight": 0.0,
        "consistency_share": 1.0,
        "hidden": 512,
    },
}
_OTHER_NAMES = {
    "flowers102": "oxfordflowers",
    "flowers": "oxfordflowers",
    "cars": "stanfordcars",
    "dtd": "describabletextures",
    "fgvc": "fgvcaircraft",
    "aircraft": "fgvcaircraft",
    "food": "food101",
    "pets": "oxfordpets",
    "caltech": "caltech101",
}

COMMON_NOUNS = "common_nouns.txt"


def paper_settings(data: str, shots: int | None) -> dict[str, Any]:
    """Settings of the paper's recipe, as arguments of `TuneSettings`.

    The budget covers what the paper's budget covers, and the queries that the paper does not count:
    the plain prompt's and one of each generation's mean. Shots between the paper's, or None where
    classes differ, get the next larger one's. A data set that it does not have gets most's
    settings.
    """
    most = max(BUDGETS)
    counted = BUDGETS[min((known for known in BUDGETS if known >= (shots or most)), default=most)]
    key = _key(data)
    if key == "imagenet":
        counted = min(counted, 4000)
    return {
        "population": POPULATION,
        "dim": 512,
        "random_codes": 0,
        "budget": 1 + counted // POPULATION * (POPULATION + 1),
        **_MOST,
        **_OF_DATA.get(key, {}),
    }


def recipe_settings(
    recipe: str,
    data: str,
    shots: int | None,
    *,
    classes: Sequence[str],
    vocabulary: Sequence[str] | None = None,
    strict: bool = False,
    card: ModelCard | None = None,
    **given: Any,
) -> TuneSettings:
    """Settings of a recipe for a data set, in which what is `given` and not None comes first.

    craftbox's recipe scores a vocabulary beside the class names, in one query. In strict access it
    asks for random codes instead, and so where answers show little of so many texts
    (`craft_client.settings.shows_texts`), unless a vocabulary is given.

    Args:
        recipe: its name.
        data: the data set's name.
        shots: images a class; None where classes differ.
        classes: their names, which are left out of the vocabulary.
        vocabulary: None for common nouns.
        strict: whether to ask about nothing but the classes.
        card: the model's, with what the key may see and ask; None is not bounded.
        given: arguments of `TuneSettings`.

    Raises:
        SettingsError: an option's value is impossible.
    """
    output = EVERYTHING if card is None else card.output
    prompt_limit = None if card is None else card.prompts_per_image_set
    chosen = {name: value for name, value in given.items() if value is not None}
    if vocabulary is not None:
        chosen["texts"] = beside(classes, vocabulary)
        if strict or not chosen["texts"]:
            why = "strict access asks for none." if strict else "there is none but the class names."
            error = FieldError(field="texts", message=why, remedy="Leave them out.")
            raise SettingsError("The settings cannot be used.", errors=[error])
    recipe = recipes.resolved(recipe)
    row, paper = recipes.recipe_of(recipe), paper_settings(data, shots)
    if row.like_paper:
        settings = {**paper, **chosen}
    elif recipe == "craftbox":
        settings = {"random_codes": random_codes_for(output, prompt_limit), **chosen}
        settings.setdefault("budget", 1 + settings["random_codes"])
    else:
        settings = {"budget": paper["budget"], **row.defaults, **chosen}
    if prompt_limit is not None and recipe == "craftbox":  # one prompt may be several queries
        settings["random_codes"] = min(settings["random_codes"], prompt_limit - 1)
    elif prompt_limit is not None and settings.get("budget_unit", "queries") == "queries":
        settings["budget"] = min(settings["budget"], prompt_limit)
    if recipe == "craftbox" and vocabulary is None and not strict and shows_texts(output):
        nouns = beside(classes, common_nouns())
        room = len(nouns) if card is None else max(0, card.limits.classes - len(classes))
        # They are in the order of the alphabet: as many of each letter.
        settings["texts"] = nouns[:: -(-len(nouns) // room)] if room else ()
    return TuneSettings(**settings, recipe=recipe, shots=shots)


def _key(data: str) -> str:
    key = re.sub(r"[^a-z0-9]", "", data.lower())
    return _OTHER_NAMES.get(key, key)


def common_nouns() -> tuple[str, ...]:
    """About a thousand names of things that can be seen, from WordNet (see NOTICE)."""
    return _texts(files("craft_client").joinpath(COMMON_NOUNS).read_text(encoding="utf-8"))


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """The texts of a file, one a line; repeated and empty lines are left out.

    Raises:
        DataError: it cannot be read, is not UTF-8, holds no text, or what is no name.
    """
    remedy = "Give a text file in UTF-8, one text a line."
    try:
        texts = _texts(read_text(path))
    except OSError as error:
        raise DataError(f"'{path}': {error.strerror}.", remedy=remedy) from error
    except NotTextError as error:
        raise DataError(f"'{path}' cannot be read: {error}.", remedy=remedy) from error
    if not texts:
        raise DataError(f"'{path}' holds no text.", remedy=remedy)
    longest = max(texts, key=len)
    if len(longest) > LONGEST_CLASS_NAME:
        raise DataError(
            f"'{path}' holds a text of {len(longest)} characters; {LONGEST_CLASS_NAME} are "
            "allowed.",
            remedy="Shorten it: texts are scored as class names are.",
        )
    for text in texts:
        if found := fault(text):
            raise DataError(f"'{path}': the text '{text}' {found}.", remedy=REMEDY)
    return texts


def beside(classes: Sequence[str], vocabulary: Sequence[str]) -> tuple[str, ...]:
    """The vocabulary without class names, which are scored anyway."""
    names = {same_text(name) for name in classes}
    return tuple(text for text in vocabulary if same_text(text) not in names)


def _texts(text: str) -> tuple[str, ...]:
    lines = [line for _, line in lines_of(text)]
    repeated = {place for place, _ in twins(lines)}
    return tuple(line for place, line in enumerate(lines) if place not in repeated)
