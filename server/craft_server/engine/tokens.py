"""Tokens: from texts to token ids, whole and never silently truncated.

It knows the tokenizer and how a prompt and a class name become one text. It does not know
embeddings or the model.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache

import open_clip

# open_clip's tokenizer remembers every word it ever saw; clients choose the words.
MAX_REMEMBERED_WORDS = 200_000
MAX_REMEMBERED_TEXTS = 16_384

SLOT = "{}"

Ids = tuple[int, ...]


class Tokens:
    """The tokenizer of one model; thread-safe.

    Attributes:
        context_length: the most tokens a text may have, start and end token included.
        vocabulary: how many token ids there are.
    """

    def __init__(self, tokenize: open_clip.SimpleTokenizer, context_length: int) -> None:
        self.context_length = context_length
        self.vocabulary: int = tokenize.vocab_size
        self._tokenize = tokenize
        self._start: int = tokenize.sot_token_id
        self._end: int = tokenize.eot_token_id
        self._lock = threading.Lock()
        self._special_words = {tokenize.decoder[i] for i in tokenize.all_special_ids}
        self._remembered = lru_cache(MAX_REMEMBERED_TEXTS)(self._encode)

    def words(self, text: str) -> Ids:
        """The ids of a piece of text, without start and end token."""
        return self._remembered(text)

    def reserved_word(self, text: str) -> str | None:
        """The start or end token's name, if the text would be read as holding that token."""
        ids = self.words(text)
        for reserved in (self._start, self._end):
            if reserved in ids:
                return str(self._tokenize.decoder[reserved])
        return None

    def template(self, template: str, class_name: str) -> Ids:
        """The sequence of a template with the class name in its one slot."""
        return self._sequence(self.words(template.replace(SLOT, class_name)))

    def context(self, init: str, class_name: str) -> Ids:
        """The sequence of context words, the class name and a full stop.

        The ids at 1 to len(words(init)) are those that a code moves.
        """
        return self._sequence(self.words(init) + self.words(f" {class_name}."))

    def _sequence(self, words: Ids) -> Ids:
        return (self._start, *words, self._end)

    def _encode(self, text: str) -> Ids:
        with self._lock:
            if len(self._tokenize.cache) > MAX_REMEMBERED_WORDS:
                self._tokenize.cache = {word: word for word in self._special_words}
            return tuple(self._tokenize.encode(text))


def shared_length(sequences: Sequence[Ids]) -> int:
    """How many first tokens all sequences have in common, leaving each at least one of its own."""
    first, last = min(sequences), max(sequences)
    longest = min(len(sequence) for sequence in sequences) - 1
    pairs = zip(first[:longest], last[:longest], strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), longest)
