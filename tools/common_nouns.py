"""Writes client/craft_client/common_nouns.txt: names of things that can be seen, from WordNet.

The most frequent first senses of each kind of thing, in quotas, so that rare kinds are there too.
Frequencies are WordNet's own tag counts; among equals, the more general noun comes first.

    apt install wordnet-base wordnet-sense-index
    python tools/common_nouns.py /usr/share/wordnet
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

OUT = Path(__file__).parent.parent / "client" / "craft_client" / "common_nouns.txt"
# WordNet's lexicographer files, and how many nouns of each.
QUOTAS = {
    "05": 190,  # animals
    "06": 400,  # artifacts
    "08": 50,  # parts of bodies
    "13": 120,  # food
    "17": 70,  # natural objects
    "20": 130,  # plants
    "27": 40,  # substances
}
PLAIN = re.compile(r"[a-z]+(_[a-z]+)?")
# Ranks of taxonomy are no things.
TAXONOMY = re.compile(r"_(family|genus|order|class)$")


def main() -> None:
    """Writes the file."""
    wordnet = Path(sys.argv[1])
    counts = {}
    for line in (wordnet / "index.sense").read_text().splitlines():
        sense, synset, number, count = line.split()
        if number == "1" and "%1:" in sense:
            counts[sense.split("%")[0], synset] = int(count)

    nouns: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for line in (wordnet / "data.noun").read_text().splitlines():
        fields = line.split("|")[0].split()
        if line.startswith("  ") or fields[1] not in QUOTAS:
            continue
        synset, kind, noun = fields[0], fields[1], fields[4]
        count = counts.get((noun, synset))
        if count is not None and PLAIN.fullmatch(noun) and not TAXONOMY.search(noun):
            nouns[kind].append((-count, -fields.count("~"), noun.replace("_", " ")))
    chosen = {noun for kind, quota in QUOTAS.items() for _, _, noun in sorted(nouns[kind])[:quota]}
    OUT.write_text("".join(f"{noun}\n" for noun in sorted(chosen)))
    print(f"{len(chosen)} nouns in {OUT}")


if __name__ == "__main__":
    main()
