"""Vocabularies: texts that are scored beside the class names."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from craft_client.exceptions import DataError
from craft_shared.names import REMEDY, fault, same_text, twins
from craft_shared.text_files import NotTextError, lines_of, read_text
from craft_shared.wire.messages import LONGEST_CLASS_NAME

COMMON_NOUNS = "common_nouns.txt"


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
