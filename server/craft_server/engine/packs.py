"""Packs: a prompt's texts cut into pieces of bounded work.

It knows token sequences and a bound in tokens. It does not know embeddings or the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from craft_server.engine.tokens import Ids, shared_length


@dataclass(frozen=True)
class Pack:
    """Some prompts with some classes.

    Attributes:
        prompts: the prompts, as a range of indices.
        prefix: the tokens that all texts share.
        classes: the classes' indices; shorter texts come first.
        suffixes: each class's own tokens, which come after the prefix; at least one.
    """

    prompts: range
    prefix: Ids
    classes: tuple[int, ...]
    suffixes: tuple[Ids, ...]

    @cached_property
    def tokens(self) -> int:
        """How many tokens are read: prompts x (shared tokens + all own tokens)."""
        return len(self.prompts) * (len(self.prefix) + sum(map(len, self.suffixes)))


def packs(sequences: Sequence[Ids], *, prompts: int, max_tokens: int) -> Iterator[Pack]:
    """Cuts prompts x classes into packs of about `max_tokens` tokens, never none.

    Args:
        sequences: for each class, the tokens of its text under each of the prompts (which only
            differ in what the tokens' embeddings are).
        prompts: how many prompts.
        max_tokens: bound on `Pack.tokens`, as far as one prompt with one class allows.
    """
    cut = shared_length(sequences)
    prefix = sequences[0][:cut]
    for classes in _slices([len(sequence) - cut for sequence in sequences], max_tokens):
        suffixes = tuple(sequences[i][cut:] for i in classes)
        step = max(1, max_tokens // (cut + sum(map(len, suffixes))))
        for first in range(0, prompts, step):
            yield Pack(range(first, min(first + step, prompts)), prefix, tuple(classes), suffixes)


def _slices(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices by length, cut so that each slice's lengths add up to at most `max_tokens`."""
    members: list[int] = []
    total = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if members and total + lengths[i] > max_tokens:
            yield members
            members, total = [], 0
        members.append(i)
        total += lengths[i]
    yield members
