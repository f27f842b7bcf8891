"""What answers give away, level by level: attacks on a running server, over HTTP alone.

Starts a craft-server of its own and attacks it with keys that see less and less. At each level:

- rank: the singular values of stacked, centred scores, against the number of queries. Scores are
  linear in the hidden features, so that a drop among the values tells the hidden width.
- features, the text tower known: the attacker runs the model's text tower (pocket's is public) and
  solves for each picture's hidden features.
- features, the text tower unknown: what scores tell of them up to a linear map.
- copy: a student of bought answers, and how often it agrees with the served model on new pictures.

The questions of the first three are asked with all class names, and with short lists of them: few
classes at a time are a way around levels that name few. And once, since no level changes them:

- the clock: classes, caches, other tenants' calls and ids, from latency.
- membership: whether a tenant can tell which pictures another one has uploaded.
- counting: whether ids of charges tell how many calls others make.

True features and the unrestricted answers that attacks are held against are computed in this
process, for the report alone. Prints tables and writes JSON; where the accuracy by level was
measured (`output_levels.py`), also draws accuracy against leakage beside it. The first data set is
that of all attacks; on further ones only the copy is made.

    python benchmarks/leakage.py --data DIR [DIR ...] --json benchmarks/results/leakage.json
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from craft_client.api import Client
from craft_client.data import Sample
from craft_client.layouts import load_dataset
from craft_client.remote import RemoteBlackBox
from craft_server.engine import Engine, ModelSpec, Prompts
from craft_shared.wire import Context, ImageSet
from leakage_attacks import (
    Array,
    centred,
    cheap_features,
    likeness,
    rank_of,
    recover,
    span_of,
    student,
    subspace,
)
from leakage_timing import Tenant, by_the_clock, counting, membership
from options import parser_for, present, save
from output_levels import LEVELS
from plot_leakage import draw
from serving import command, serving

CONTEXT = Context(scale=3.0)
CODES_A_CALL = 16
QUERIES = (1, 2, 4, 16, 64)  # of all class names
SHORT_QUERIES = (16, 64, 128, 256)
SHORT = {"top_k --k 5": 5}  # classes in a short list, so that all of them are named; else 2
TEMPLATE = "a photo of a {}."
PICTURES = 300  # of rank and features; more than the text tower's width
NEW = 160
BOUGHT = (20, 40, 80, 160, 320)
MOST_PIXELS = 50_000_000
IMAGES_AT_ONCE = 32
PARTS = ("clock", "levels")


@dataclass(frozen=True)
class Victim:
    """The pictures of one data set, on the server and here.

    Attributes:
        classes: names.
        files: of the bought pictures, and after them of the new ones.
        image_set: of them all.
        features: true ones of them all, [N, F].
        bought: how many come first.
    """

    classes: tuple[str, ...]
    files: list[Path]
    image_set: ImageSet
    features: Array
    bought: int


class Tower:
    """The model in this process: the attacker's text tower, and the report's true features."""

    def __init__(self, model: str) -> None:
        self._engine = Engine.load(ModelSpec(model, device="cpu"))
        self._known: dict[tuple[Any, ...], Array] = {}

    def close(self) -> None:
        """Ends the worker."""
        self._engine.close()

    def texts(self, codes: NDArray[np.float32], classes: tuple[str, ...]) -> Array:
        """Features of prompts' texts without each prompt's mean, [P * C, F]."""
        name = codes.tobytes(), classes
        if name not in self._known:
            encoded = self._engine.encode_prompts(Prompts((), CONTEXT, codes), classes)
            features = asyncio.run(encoded).astype(np.float64)
            features -= features.mean(axis=1, keepdims=True)
            self._known[name] = features.reshape(-1, features.shape[-1])
        return self._known[name]

    async def _features(self, files: list[bytes]) -> Array:
        decoded = await self._engine.decode_images(files, max_pixels=MOST_PIXELS)
        return await self._engine.encode_images(decoded)

    def pictures(self, files: list[Path]) -> Array:
        """Image features, [N, F]."""
        parts = []
        for i in range(0, len(files), IMAGES_AT_ONCE):
            some = [file.read_bytes() for file in files[i : i + IMAGES_AT_ONCE]]
            parts.append(asyncio.run(self._features(some)))
        return np.concatenate(parts).astype(np.float64)


def drawn(samples: tuple[Sample, ...], count: int, seed: int) -> list[Path]:
    """Some pictures, in random order."""
    draw = random.Random(seed)
    return [sample.path for sample in draw.sample(samples, min(count, len(samples)))]


def victim(client: Client, tower: Tower, folder: Path) -> Victim:
    """Uploads pictures of a data set and computes their true features."""
    data = load_dataset(folder)
    bought = drawn(data.train, max(BOUGHT), 1)
    files = [*bought, *drawn(data.split("test"), NEW, 2)]
    image_set = client.create_image_set(client.model().name)
    image_set = client.upload_images(image_set, [file.read_bytes() for file in files])
    return Victim(data.classes, files, image_set, tower.pictures(files), len(bought))


@dataclass(frozen=True)
class Questions:
    """Queries in the order in which they are asked: lists of class names, and codes of each."""

    lists: list[tuple[str, ...]]
    codes: list[NDArray[np.float32]]

    @classmethod
    def of(cls, classes: tuple[str, ...], length: int, queries: int) -> Questions:
        """`length` class names in each list, drawn anew for each few codes."""
        rng = np.random.default_rng(length)
        calls = queries // CODES_A_CALL
        lists = [
            tuple(classes[i] for i in rng.choice(len(classes), length, replace=False))
            if length < len(classes)
            else classes
            for _ in range(calls)
        ]
        codes = np.random.default_rng(1).normal(size=(calls, CODES_A_CALL, CONTEXT.dim))
        return cls(lists, list(codes.astype(np.float32)))


def attack(
    client: Client,
    tower: Tower,
    target: Victim,
    pictures: ImageSet,
    length: int,
    counts: tuple[int, ...],
) -> list[dict[str, Any]]:
    """Rank and features from so many queries, with lists of `length` class names."""
    asked = Questions.of(target.classes, length, max(counts))
    true = target.features[: pictures.count]
    parts, texts = [], []
    for names, codes in zip(asked.lists, asked.codes, strict=True):
        box = RemoteBlackBox(client, pictures, names, dtype="float32")
        parts.append(centred(box.score(context=CONTEXT, codes=codes).log_probs))
        texts.append(tower.texts(codes, names))
    stacked, known = np.concatenate(parts, axis=1), np.concatenate(texts)
    del parts, texts
    reach = span_of(known)
    within = (true @ reach) @ reach.T
    found = []
    for queries in counts:
        columns = queries * length
        groups = np.arange(columns) // length
        some = stacked[:, :columns]
        recovered = recover(some, known[:columns], groups)
        # Centred, the last class of each question is what the others leave.
        free = np.delete(some, np.s_[length - 1 :: length], axis=1)
        found.append(
            {
                "queries": queries,
                "classes": length,
                "predictions": queries * pictures.count,
                **rank_of(free),
                **likeness(recovered, within),
                **subspace(some, within),
            }
        )
    return found


def width_of(found: list[dict[str, Any]]) -> int | None:
    """The rank that more queries do not raise; answers that merely repeat have one that grows."""
    ranks = [one["rank"] for one in found]
    return next((b for a, b in itertools.pairwise(ranks) if a is not None and a == b), None)


def copy(
    client: Client, served: NDArray[np.int64], target: Victim, own: dict[str, Array]
) -> list[dict[str, Any]]:
    """Students of bought answers to the plain prompt, on the attacker's own features."""
    box = RemoteBlackBox(client, target.image_set, target.classes, dtype="float32")
    answers = centred(box.score(templates=[TEMPLATE]).log_probs)
    found = []
    for name, features in own.items():
        new = features[target.bought :]
        for count in BOUGHT:
            guesses = student(features[:count], answers[:count], new)
            agreement = 100 * float((guesses == served[target.bought :]).mean())
            found.append({"features": name, "bought": count, "agreement": agreement})
    return found


def short_of(level: str) -> int:
    """How many class names a short list has: as many as the level names, or two."""
    return next((length for name, length in SHORT.items() if name in level), 2)


def by_level(
    env: dict[str, str], tower: Tower, targets: list[tuple[str, Victim]]
) -> Iterator[dict[str, Any]]:
    """All attacks that depend on the level, at each of them."""
    prefix = env["CRAFT_API_KEY"].split("_")[1]
    client = Client(env["CRAFT_URL"], env["CRAFT_API_KEY"])
    first = targets[0][1]
    pictures = client.create_image_set(first.image_set.model)
    files = first.files[:PICTURES]
    pictures = client.upload_images(pictures, [file.read_bytes() for file in files])
    served, own = {}, {}
    for name, target in targets:
        box = RemoteBlackBox(client, target.image_set, target.classes, dtype="float32")
        served[name] = box.score(templates=[TEMPLATE]).log_probs[0].argmax(axis=1)
        own[name] = {
            "colours and edges": cheap_features(target.files),
            "a public image tower": target.features,
        }
    for level in LEVELS:
        began = time.monotonic()
        policy = command(env, "craft-server", "keys", "policy", prefix, *level.split())
        result: dict[str, Any] = {
            "level": level,
            "output": policy["policies"][0]["output"],
            "all_names": attack(client, tower, first, pictures, len(first.classes), QUERIES),
            "short_lists": attack(client, tower, first, pictures, short_of(level), SHORT_QUERIES),
            "copies": {name: copy(client, served[name], one, own[name]) for name, one in targets},
        }
        result["width"] = width_of(result["all_names"]) or width_of(result["short_lists"])
        yield result
        print(f"{level}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    client.close()


def hidden(tower: Tower, targets: list[tuple[str, Victim]]) -> dict[str, int]:
    """What rank is to be held against: the width, and how much of it texts span."""
    (_, first), *_ = targets
    asked = Questions.of(first.classes, len(first.classes), CODES_A_CALL)
    texts = tower.texts(asked.codes[0], first.classes)
    return {"width": first.features.shape[1], "texts_span": span_of(texts).shape[1]}


def by_neighbours(env: dict[str, str], folder: Path, trials: int) -> dict[str, Any]:
    """What one tenant can tell of another, whatever its level."""
    ann, bob = (
        Tenant(
            env["CRAFT_URL"],
            command(env, "craft-server", "keys", "create", "--owner", owner)["key"],
        )
        for owner in ("ann", "bob")
    )
    data = load_dataset(folder)
    pictures = [file.read_bytes() for file in drawn(data.train, 144, 3)]
    return {
        "clock": by_the_clock(ann, bob, pictures[:64], data.classes, trials),
        "membership": membership(ann, bob, pictures[64:], data.classes),
        "counting": counting(ann, bob, data.classes, pictures),
    }


def print_summary(report: dict[str, Any]) -> None:
    """A Markdown table with a line for each level."""
    copies = "".join(f" copy, {data} |" for data in report["data"])
    print(f"| level | width | cosine, 1 query | most | identified, 1 query | most | R2 |{copies}")
    print("|---|---|---|---|---|---|---|" + "---|" * len(report["data"]))
    for level in report["levels"]:
        every = [*level["all_names"], *level["short_lists"]]
        one = level["all_names"][0]
        best = max(every, key=lambda found: found["cosine"])
        most = max(found["identified"] for found in every)
        figures = [
            f"`{level['level'].removeprefix('--level ')}`",
            str(level["width"] or "-"),
            f"{one['cosine']:.3f}",
            f"{best['cosine']:.3f} ({best['queries']} of {best['classes']} names)",
            f"{one['identified']:.0f} %",
            f"{most:.0f} %",
            f"{max(found['r2'] for found in every):.2f}",
        ]
        for data in report["data"]:
            last = [f for f in level["copies"][data] if f["bought"] == max(BOUGHT)]
            figures.append(" / ".join(f"{f['agreement']:.0f} %" for f in last))
        print(f"| {' | '.join(figures)} |")


def print_tables(report: dict[str, Any]) -> None:
    """Markdown tables: a summary, and after it every figure."""
    print_summary(report)
    print()
    print("| level | lists | queries | rank (drop) | cosine | identified % | CKA | R2 |")
    print("|---|---|---|---|---|---|---|---|")
    for level in report["levels"]:
        name = level["level"].removeprefix("--level ")
        for lists in ("all_names", "short_lists"):
            for one in level[lists]:
                rank = "-" if one["rank"] is None else f"{one['rank']} ({one['drop']:,.0f}x)"
                print(
                    f"| `{name}` | {one['classes']} names | {one['queries']} | {rank} "
                    f"| {one['cosine']:.3f} | {one['identified']:.0f} | {one['cka']:.2f} "
                    f"| {one['r2']:.2f} |"
                )
    shown = {level["level"]: level["width"] for level in report["levels"]}
    print(f"\nwidth shown, of {report['hidden']}: {shown}")
    for data in report["data"]:
        bought = "".join(f" {count} |" for count in BOUGHT)
        print(f"\n{data}: agreement of a copy, %\n\n| level | features |{bought}")
        print("|---|---|" + "---|" * len(BOUGHT))
        for level in report["levels"]:
            name = level["level"].removeprefix("--level ")
            copies = level["copies"][data]
            for features in dict.fromkeys(one["features"] for one in copies):
                figures = "".join(
                    f" {one['agreement']:.1f} |" for one in copies if one["features"] == features
                )
                print(f"| `{name}` | {features} |{figures}")
    print("\n| what latency is to tell | AUC | chance | trials | ms without | ms with |")
    print("|---|---|---|---|---|---|")
    uploads = report["membership"]
    clock = {
        **report["clock"],
        "whether another tenant has uploaded a picture": uploads["latency"],
        "whether the tenant has uploaded a picture itself": uploads[
            "latency of the tenant's own second upload"
        ],
    }
    for what, area in clock.items():
        print(
            f"| {what} | {area['auc']:.3f} | ±{area['chance']:.3f} | {area['trials']} "
            f"| {area['median_ms_without']:.1f} | {area['median_ms_within']:.1f} |"
        )
    print(f"\nmembership: {uploads}\n\ncounting: {report['counting']}")


def main() -> None:
    """Runs the attacks."""
    parser = parser_for(__doc__)
    parser.add_argument("--trials", type=int, default=100, help="pairs of timed calls, of each")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        help="others are kept as the file has them",
    )
    args = parser.parse_args()
    folders = present(args.data)
    report: dict[str, Any] = {"seconds": {}}
    if args.json and args.json.exists() and set(args.parts) != set(PARTS):
        report = json.loads(args.json.read_text())
    tower = Tower(args.model)
    with tempfile.TemporaryDirectory() as folder, serving(args.model, Path(folder)) as env:
        for part in args.parts:
            began = time.monotonic()
            if part == "clock":
                report |= by_neighbours(env, folders[0], args.trials)
            else:
                report |= {"model": args.model, "pictures": PICTURES, "levels": []}
                with Client(env["CRAFT_URL"], env["CRAFT_API_KEY"]) as client:
                    targets = [(path.name, victim(client, tower, path)) for path in folders]
                report |= {"data": [name for name, _ in targets], "hidden": hidden(tower, targets)}
                for result in by_level(env, tower, targets):
                    report["levels"].append(result)
                    save(report, args.json)
            report["seconds"][part] = time.monotonic() - began
            save(report, args.json)
    tower.close()
    print_tables(report)
    if args.json:
        draw(args.json, args.json.with_name("output_levels.json"))


if __name__ == "__main__":
    main()
