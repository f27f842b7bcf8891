"""Copies of one image: which images of a task are the same, and what is said of it.

A copy gives a fit the label of its twin, so that copies are held out together, and what is in two
classes or two splits is named. Images are the same where their files are, byte for byte, or where
whole answers about them are, number for number (another file of the same pixels).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from craft_client.data import Sample, Split, digest_of

Array = NDArray[np.float32]
Groups = NDArray[np.int64]  # [N], the same number for copies of one image, from 0 without a gap

# Of fewer numbers an image, two images may have the same by chance.
_LEAST_NUMBERS = 16
_NAMED_AT_MOST = 3
_COMPARED_AT_MOST = 100_000
_WITHIN = "in one class, which are held out together"
_ACROSS = "in two classes"


def groups_of(digests: Sequence[str] | None, count: int) -> Groups:
    """Which of so many images are copies of one, by their files' digests, where they are known."""
    if digests is None:
        return np.arange(count)
    return _dense(np.unique(np.asarray(digests, dtype=str), return_inverse=True)[1])


def with_equal_answers(groups: Groups, log_probs: Array) -> Groups:
    """The groups, joined where all the log-probabilities [P, N, C + M] of images are equal."""
    answers = log_probs.transpose(1, 0, 2).reshape(len(groups), -1)
    if answers.shape[1] < _LEAST_NUMBERS:
        return groups
    _, same = np.unique(answers, axis=0, return_inverse=True)
    # Images are joined with their groups, and these with all that answer alike.
    alike = groups.max(initial=-1) + 1 + same.reshape(-1)
    nodes = int(alike.max(initial=-1)) + 1
    joined = coo_array((np.ones(len(groups)), (groups, alike)), shape=(nodes, nodes))
    return _dense(connected_components(joined, directed=False)[1][groups])


def notes(
    samples: Sequence[Sample],
    digests: Sequence[str],
    others: Iterable[tuple[Split | None, Sample, str]] = (),
) -> tuple[str, ...]:
    """What is said of copies, a line each: in one class, in two classes, and in other splits.

    Args:
        samples: images of one split.
        digests: of their files.
        others: further images of the data and their digests, each with the name of its split, or
            None where that is the samples' own.
    """
    known: dict[str, dict[int, Sample]] = {}  # the first of each class, by digest
    pairs: dict[str, list[tuple[str, str]]] = {}

    def add(where: str, twin: Sample, sample: Sample) -> None:
        pairs.setdefault(where, []).append((str(twin.path), str(sample.path)))

    for sample, digest in zip(samples, digests, strict=True):
        twins = known.setdefault(digest, {})
        if sample.label in twins:
            add(_WITHIN, twins[sample.label], sample)
        elif twins:
            add(_ACROSS, next(iter(twins.values())), sample)
        twins.setdefault(sample.label, sample)
    for split, other, digest in others:
        twins = known.get(digest, {})
        if twins and split is not None:
            add(f"in the {split} split too", next(iter(twins.values())), other)
        elif twins and other.label not in twins:
            add(_ACROSS, next(iter(twins.values())), other)
    return tuple(_line(found, where) for where, found in pairs.items())


def in_common(
    tuned: Mapping[str, str], samples: Sequence[Sample], digests: Sequence[str]
) -> tuple[str, ...]:
    """A line on images that were tuned on (names by digest), if any is among the samples."""
    pairs = [
        (tuned[digest], str(sample.path))
        for sample, digest in zip(samples, digests, strict=True)
        if digest in tuned
    ]
    return (_line(pairs, "that were tuned on too"),) if pairs else ()


def twins_of(
    samples: Sequence[Sample], others: Sequence[tuple[Split | None, Sample]]
) -> Iterator[tuple[Split | None, Sample, str]]:
    """Those others that may be copies of the samples, with their digests: files of their sizes.

    Of more than can be looked at in no time, none.
    """
    sizes = {sample.path.stat().st_size for sample in samples}
    for split, other in others if len(others) <= _COMPARED_AT_MOST else ():
        with suppress(OSError):
            if other.path.stat().st_size in sizes:
                yield split, other, digest_of(other.path)


def _line(pairs: Sequence[tuple[str, str]], where: str) -> str:
    named = [f"'{one}' and '{other}'" for one, other in pairs[:_NAMED_AT_MOST]]
    more = ["..."] if len(pairs) > _NAMED_AT_MOST else []
    return f"Copies of one picture {where} ({len(pairs):,}): {', '.join([*named, *more])}."


def _dense(groups: NDArray[np.integer[Any]]) -> Groups:
    """The same groups, numbered from 0 in the order in which they come."""
    _, first, numbers = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    dense: Groups = rank[numbers.reshape(-1)]
    return dense
