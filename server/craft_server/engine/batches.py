"""Batches: a prompt's texts cut into pieces of bounded work.

It knows token sequences and a bound in tokens. It does not know embeddings or the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from craft_server.engine.tokens import Ids, shared_length


@dataclass(frozen=True)
class Group:
    """Classes whose own tokens are equally many.

    Attributes:
        classes: their indices.
        suffixes: their tokens after the prefix, one row a class.
    """

    classes: tuple[int, ...]
    suffixes: tuple[Ids, ...]


@dataclass(frozen=True)
class Batch:
    """Some prompts with some classes; what one task of the worker computes.

    Attributes:
        prompts: the prompts, as a range of indices.
        prefix: the tokens that all classes share.
        groups: the classes by the number of their own tokens.
    """

    prompts: range
    prefix: Ids
    groups: tuple[Group, ...]


def batches(sequences: Sequence[Ids], *, prompts: int, max_tokens: int) -> Iterator[Batch]:
    """Cuts prompts x classes into batches of about `max_tokens` tokens, never none.

    Args:
        sequences: for each class, the tokens of its text under each of the prompts (which only
            differ in what the tokens' embeddings are).
        prompts: how many prompts.
        max_tokens: bound on prompts x (prefix + own tokens of all classes) in a batch.
    """
    cut = shared_length(sequences)
    prefix = sequences[0][:cut]
    for classes in _slices([len(sequence) - cut for sequence in sequences], max_tokens):
        groups = tuple(
            Group(tuple(members), tuple(sequences[i][cut:] for i in members))
            for _, members in (
                (length, list(group))
                for length, group in groupby(classes, key=lambda i: len(sequences[i]))
            )
        )
        tokens = cut + sum(len(sequences[i]) - cut for i in classes)
        step = max(1, max_tokens // tokens)
        for first in range(0, prompts, step):
            yield Batch(range(first, min(first + step, prompts)), prefix, groups)


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
