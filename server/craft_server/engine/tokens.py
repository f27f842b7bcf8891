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
from typing import Any, TypeVar

from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, get_clean_fn

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
# Shows where a tokenizer puts its special tokens, and is shorter than so many tokens.
_PROBE, _PROBE_LENGTH = "a photo of a cat", 64
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

        A code moves the first len(words(init)) ids after the start token, or, where the tokenizer
        has none, the first ones.
        """
        words = self.words(init)
        if not self._tokenizer.reads_words:
            whole = self.words(f"{init} {class_name}.")
            if whole[: len(words)] == words:
                return self._sequence(whole)
        return self._sequence(words + self.words(f" {class_name}."))

    def _sequence(self, words: Ids) -> Ids:
        return (*self._tokenizer.start, *words, *self._tokenizer.end)


class Tokenizer:
    """The tokenizer of one model; thread-safe.

    Attributes:
        context_length: the most tokens a text may have, start and end token included.
        start: ids before a text's own: the start token, if there is one.
        end: ids after a text's own: the end token.
        padding: the id that fills a text up.
        vocabulary: how many token ids there are.
        reads_words: whether it reads a plain text word by word, each as if it stood alone.
        reserved: ids that no text may hold, with their names; first start and end token.
    """

    def __init__(self, tokenize: SimpleTokenizer | HFTokenizer, context_length: int) -> None:
        reading = (_Clip if isinstance(tokenize, SimpleTokenizer) else _HuggingFace)(tokenize)
        self.context_length = context_length
        self.start, self.end = reading.start, reading.end
        self.padding = reading.padding
        self.vocabulary = reading.vocabulary
        self.reads_words = reading.reads_words
        self.reserved = reading.reserved
        self._reading = reading
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
            return self._reading.encode(words, text)


class _Clip:
    """How open_clip's own tokenizer reads."""

    padding = 0

    def __init__(self, tokenize: SimpleTokenizer) -> None:
        self.start, self.end = (tokenize.sot_token_id,), (tokenize.eot_token_id,)
        self.vocabulary: int = tokenize.vocab_size
        self.reserved: dict[int, str] = {i: tokenize.decoder[i] for i in self.start + self.end}
        self.reads_words: bool = tokenize.clean_fn is get_clean_fn("lower")
        self._tokenize = tokenize
        special = (tokenize.decoder[i] for i in tokenize.all_special_ids)
        self._special_words = {word: word for word in special}

    def encode(self, words: dict[str, str], text: str) -> Ids:
        if len(words) > MAX_REMEMBERED_WORDS:
            words.clear()
        if not words:
            words.update(self._special_words)
        self._tokenize.cache = words
        return tuple(self._tokenize.encode(text))


class _HuggingFace:
    """How a tokenizer of Hugging Face reads, with what open_clip does before and after.

    Raises:
        UnreadableTokenizerError: it reads otherwise than own tokens between a start and an end,
            filled up at the end.
    """

    reads_words = False

    def __init__(self, tokenize: HFTokenizer) -> None:
        self._tokenizer = tokenize.tokenizer
        self._clean = tokenize.clean_fn
        _remember_no_words(self._tokenizer)
        own, whole = self.encode({}, _PROBE), self._ids(_PROBE, special_tokens=True)
        first = _place(own, whole)
        self.start, self.end = whole[:first], whole[first + len(own) :]
        if tokenize.strip_sep_token:
            self.end = tuple(0 if i == self._tokenizer.sep_token_id else i for i in self.end)
        self.padding: int = self._tokenizer.pad_token_id
        self.vocabulary = len(self._tokenizer)
        special = set(self._tokenizer.all_special_ids) - {self._tokenizer.unk_token_id}
        ids = [*self.start, *self.end, *sorted(special)]
        self.reserved: dict[int, str] = {i: self._tokenizer.convert_ids_to_tokens(i) for i in ids}
        row = tokenize([_PROBE], context_length=_PROBE_LENGTH)[0].tolist()
        text = [*self.start, *own, *self.end]
        if row != text + [self.padding] * (_PROBE_LENGTH - len(text)):
            raise UnreadableTokenizerError("it puts tokens elsewhere than before and after a text")

    def encode(self, _words: dict[str, str], text: str) -> Ids:
        return self._ids(text, special_tokens=False)

    def _ids(self, text: str, *, special_tokens: bool) -> Ids:
        read = self._tokenizer(
            self._clean(text), add_special_tokens=special_tokens, truncation=False, verbose=False
        )
        return tuple(read.input_ids)


class UnreadableTokenizerError(ValueError):
    """A tokenizer reads texts in a way that is not known here."""


def _remember_no_words(tokenizer: Any) -> None:
    """Keeps it from remembering words of all tenants alike; see `Tokens`."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    resize = getattr(model, "_resize_cache", None)
    if resize is not None:
        resize(0)


def _place(part: Ids, whole: Ids) -> int:
    """Where a part begins in the whole."""
    for i in range(len(whole) - len(part) + 1):
        if whole[i : i + len(part)] == part:
            return i
    raise UnreadableTokenizerError("its special tokens change how it reads a text")


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
