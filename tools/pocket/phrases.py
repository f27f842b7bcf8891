"""The phrases the text tower learns: what may be named, and how often it is shown.

Sources: WordNet 3.0 (Princeton; the database files ``index.*`` and ``data.noun`` as Debian's
``wordnet-base`` installs them), ImageNet's class names (open_clip) and their synsets (timm).
This module knows words; it does not know sentence embeddings, targets or pictures.
"""

from __future__ import annotations

import random
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

WORDNET = Path("/usr/share/wordnet")

# WordNet's lexicographer files (lexnames(5WN)): what a photograph can show, what it may show.
VISIBLE = {5, 6, 8, 13, 17, 20}  # animal, artifact, body, food, object, plant
PARTLY_VISIBLE = {4, 14, 15, 18, 19, 25, 27}  # act, group, location, person, phenomenon, shape, ...

VISIBLE_WEIGHT = 3.0
PARTLY_VISIBLE_WEIGHT = 1.0
ABSTRACT_WEIGHT = 0.6
DIGIT_FACTOR = 0.5  # "hs1", "a-1"
COMMON_FACTOR = 3.0  # a noun that is one token of CLIP's vocabulary is a common word
CLASS_WEIGHT = 60.0  # their places are known, not estimated
MODIFIER_WEIGHT = 0.5  # adjectives, verbs
NOUN_NOUN_WEIGHT = 0.7
ADJECTIVE_NOUN_WEIGHT = 0.5
PLURAL_WEIGHT = 0.8


@dataclass(frozen=True)
class Synset:
    """One line of ``data.noun``: its lexicographer file and its lemmas."""

    lexfile: int
    lemmas: tuple[str, ...]


def _records(path: Path) -> Iterator[str]:
    """Lines of a WordNet file without its licence header (whose lines start with two spaces)."""
    with path.open(encoding="utf-8") as lines:
        yield from (line for line in lines if not line.startswith("  "))


def read_noun_synsets(wordnet: Path = WORDNET) -> dict[str, Synset]:
    """Every noun synset by its eight-digit offset (format: wndb(5WN))."""
    synsets = {}
    for line in _records(wordnet / "data.noun"):
        fields = line.split("|")[0].split()
        count = int(fields[3], 16)
        lemmas = tuple(fields[4 + 2 * i].replace("_", " ").lower() for i in range(count))
        synsets[fields[0]] = Synset(int(fields[1]), lemmas)
    return synsets


def read_lemmas(part: str, wordnet: Path = WORDNET) -> dict[str, tuple[str, ...]]:
    """Lemmas of one part of speech, each with its synset offsets, most frequent sense first."""
    lemmas = {}
    for line in _records(wordnet / f"index.{part}"):
        fields = line.split()
        lemmas[fields[0].replace("_", " ")] = tuple(fields[-int(fields[2]) :])
    return lemmas


def class_lemmas(synsets: dict[str, Synset]) -> list[tuple[str, ...]]:
    """For each of ImageNet's 1,000 classes: open_clip's name, then its synset's lemmas."""
    listing = files("timm.data").joinpath("_info/imagenet_synsets.txt").read_text().split()
    result = []
    for name, synset_id in zip(IMAGENET_CLASSNAMES, listing, strict=True):
        plain = re.sub(r"\s*\(.*\)", "", name).lower()
        result.append(tuple(dict.fromkeys((name.lower(), plain, *synsets[synset_id[1:]].lemmas))))
    return result


def plural(noun: str) -> str:
    """The regular English plural, without its spelling changes."""
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def noun_weight(
    noun: str,
    offsets: tuple[str, ...],
    synsets: dict[str, Synset],
    vocabulary: Container[str],
) -> float:
    """How often to show a noun, by what its commonest senses are and how common it is."""
    lexfiles = [synsets[offset].lexfile for offset in offsets[:3]]
    if not VISIBLE.isdisjoint(lexfiles):
        weight = VISIBLE_WEIGHT
    elif not PARTLY_VISIBLE.isdisjoint(lexfiles[:2]):
        weight = PARTLY_VISIBLE_WEIGHT
    else:
        weight = ABSTRACT_WEIGHT
    if re.search(r"\d", noun):
        weight *= DIGIT_FACTOR
    return weight * COMMON_FACTOR if f"{noun}</w>" in vocabulary else weight


def weighted_phrases(wordnet: Path = WORDNET, *, seed: int = 0) -> dict[str, float]:
    """All phrases with their sampling weights.

    Nouns, class names, plurals, adjectives, verbs, and random combinations ("kettle stand", "red
    kettle"), so that names outside WordNet are near something that was seen.
    """
    synsets = read_noun_synsets(wordnet)
    nouns = read_lemmas("noun", wordnet)
    adjectives = list(read_lemmas("adj", wordnet))
    verbs = list(read_lemmas("verb", wordnet))
    vocabulary = SimpleTokenizer().encoder
    weights: dict[str, float] = {}

    def add(phrase: str, weight: float) -> None:
        weights[phrase] = max(weights.get(phrase, 0.0), weight)

    for names in class_lemmas(synsets):
        for name in names:
            add(name, CLASS_WEIGHT)
    for noun, offsets in nouns.items():
        add(noun, noun_weight(noun, offsets, synsets, vocabulary))
    short = [n for n in nouns if weights[n] >= VISIBLE_WEIGHT and " " not in n and len(n) < 11]
    rng = random.Random(seed)
    for _ in range(20_000):
        add(f"{rng.choice(short)} {rng.choice(short)}", NOUN_NOUN_WEIGHT)
    for _ in range(15_000):
        add(f"{rng.choice(adjectives)} {rng.choice(short)}", ADJECTIVE_NOUN_WEIGHT)
    for noun in short:
        add(plural(noun), PLURAL_WEIGHT)
    for phrase in (*adjectives, *verbs):
        add(phrase, MODIFIER_WEIGHT)
    return weights
