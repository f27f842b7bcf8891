"""Tokens: from texts to token ids, whole and never silently truncated.

Texts and words are remembered for each tenant apart, so that nobody can tell by the clock which
ones others use.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Generator, Sequence
from functools import lru_cache, partial
from typing import TypeVar

import open_clip

# Of each tenant. open_clip's tokenizer remembers every word it ever saw; clients choose the words.
MAX_REMEMBERED_WORDS = 8192
MAX_REMEMBERED_TEXTS = 16_384
# One too many, and the one that has been silent for longest begins anew.
MAX_REMEMBERED_TENANTS = 32

SLOT = "{}"
# After which others may take their turn.
TURN_SECONDS = 0.05

# Texts of which the tokenizer reads each part as it reads it alone: nothing in them is cleaned, and
# no reserved token begins.
_PLAIN = re.compile(r"[ !-%'-;=-~]*")
Ids = tuple[int, ...]
T = TypeVar("T")
R = TypeVar("R")


def in_steps(function: Callable[[T], R], items: Sequence[T]) -> Generator[None, None, list[R]]:
    """`function` of each item; yields whenever others should have their turn."""
    found, began = [], time.perf_counter()
    for item in items:
        found.append(function(item))
        if time.perf_counter() - began > TURN_SECONDS:
            yield
            began = time.perf_counter()
    return found


class Tokens:
    """How one tenant's texts are read; thread-safe."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.context_length = tokenizer.context_length
        self._tokenizer = tokenizer
        words: dict[str, str] = {}
        self._remembered = lru_cache(MAX_REMEMBERED_TEXTS)(partial(tokenizer.encode, words))

    def words(self, text: str) -> Ids:
        """The ids of a piece of text, without start and end token."""
        return self._remembered(text)

    def reserved_word(self, text: str) -> str | None:
        """The start or end token's name, if the text would be read as holding that token."""
        ids = self.words(text)
        for reserved, name in self._tokenizer.reserved.items():
            if reserved in ids:
                return name
        return None

    def template(self, template: str) -> Callable[[str], Ids]:
        """What makes the sequence of a template with a class name in its one slot.

        Template and names are read once each, where that gives the same ids as the whole text.
        """
        before, _, after = template.partition(SLOT)
        if not (self._tokenizer.reads_words and _PLAIN.fullmatch(before + after)):
            return lambda name: self._sequence(self.words(template.replace(SLOT, name)))
        head, tail = self.words(before), self.words(after)

        def sequence(name: str) -> Ids:
            plain = name and _PLAIN.fullmatch(name)
            if plain and _apart(before, name) and _apart(name, after):
                return self._sequence(head + self.words(name) + tail)
            return self._sequence(self.words(template.replace(SLOT, name)))

        return sequence

    def context(self, init: str, class_name: str) -> Ids:
        """The sequence of context words, the class name and a full stop.

        The ids at 1 to len(words(init)) are those that a code moves.
        """
        return self._sequence(self.words(init) + self.words(f" {class_name}."))

    def _sequence(self, words: Ids) -> Ids:
        start, end = self._tokenizer.reserved
        return (start, *words, end)


class Tokenizer:
    """The tokenizer of one model; thread-safe.

    Attributes:
        context_length: the most tokens a text may have, start and end token included.
        vocabulary: how many token ids there are.
        reads_words: whether it reads a plain text word by word, each as if it stood alone.
        reserved: the start token's id and the end token's, in this order, with their names.
    """

    def __init__(self, tokenize: open_clip.SimpleTokenizer, context_length: int) -> None:
        self.context_length = context_length
        self.vocabulary: int = tokenize.vocab_size
        self.reserved: dict[int, str] = {
            i: tokenize.decoder[i] for i in (tokenize.sot_token_id, tokenize.eot_token_id)
        }
        lower = open_clip.tokenizer.get_clean_fn("lower")
        self.reads_words = (
            isinstance(tokenize, open_clip.SimpleTokenizer) and tokenize.clean_fn is lower
        )
        self._tokenize = tokenize
        special = (tokenize.decoder[i] for i in tokenize.all_special_ids)
        self._special_words = {word: word for word in special}
        self._lock = threading.Lock()
        self._of_tenants = lru_cache(MAX_REMEMBERED_TENANTS)(lambda _: Tokens(self))

    def of(self, tenant: str = "") -> Tokens:
        """What reads this tenant's texts, and remembers them for no other one."""
        return self._of_tenants(tenant)

    def encode(self, words: dict[str, str], text: str) -> Ids:
        """The ids of a text, without start and end token.

        `words` is what open_clip remembers of earlier texts; it adds what it reads now.
        """
        with self._lock:
            if len(words) > MAX_REMEMBERED_WORDS:
                words.clear()
            if not words:
                words.update(self._special_words)
            self._tokenize.cache = words
            return tuple(self._tokenize.encode(text))


def _apart(left: str, right: str) -> bool:
    """Whether no token of two plain texts, one after the other, is of both.

    A token is a word of letters, a digit, signs, or an apostrophe with the letters after it.
    """
    if not left or not right or left[-1] == " " or right[0] == " ":
        return True
    if left[-1].isalnum():
        return not (left[-1].isalpha() and right[0].isalpha())
    return right[0].isalnum() and left[-1] != "'"


def shared_length(sequences: Sequence[Ids]) -> int:
    """How many first tokens all sequences have in common, leaving each at least one of its own."""
    first, last = min(sequences), max(sequences)
    longest = min(len(sequence) for sequence in sequences) - 1
    pairs = zip(first[:longest], last[:longest], strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), longest)
