"""A tuner of one's own: the cross-entropy method over codes, with craftbox's closed-form head.

What a method decides is `CrossEntropyMethod` and `tune`: thirty lines that know a black box,
labels and a budget. The rest of the file writes a run directory, so that `craft compare`, `craft
bench`, `craft evaluate` and `craft publish` treat the run like any other. Address and key come from
CRAFT_URL and CRAFT_API_KEY.

    python own_tuner.py --data PICTURES --shots 8 --seed 1 --budget 65 --run RUN
"""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from craft_client import Client
from craft_client.blackbox import BlackBox, Scores
from craft_client.data import few_shot
from craft_client.journal import Journal
from craft_client.layouts import load_dataset
from craft_client.losses import accuracy, cross_entropy
from craft_client.recipes.craftbox import fit
from craft_client.remote import RemoteBlackBox
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import Head, Unrefined
from craft_shared.units import Units
from craft_shared.wire import Context, Provenance

Array = NDArray[np.float32]
Labels = NDArray[np.int64]
Record = Callable[[Scores, Array, Array], None]
Tuned = tuple[Array, Head]

NAME = "cross-entropy-method"
TEMPLATE = "a photo of a {}."


# --- the method -------------------------------------------------------------------------------


class CrossEntropyMethod:
    """Draws codes from a diagonal Gaussian, which it fits to the best quarter of each generation.

    Source: Rubinstein, "The cross-entropy method for combinatorial and continuous optimization",
    Methodology and Computing in Applied Probability 1 (1999).
    """

    def __init__(self, dim: int, population: int, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        self.mean, self.spread = np.zeros(dim, np.float32), np.ones(dim, np.float32)
        self.shape = population, dim

    def ask(self) -> Array:
        """The next generation's codes."""
        noise = self.generator.standard_normal(self.shape, dtype=np.float32)
        return self.mean + self.spread * noise

    def tell(self, codes: Array, losses: Array) -> None:
        """Learns from their losses."""
        best = codes[losses.argsort()[: len(codes) // 4]]
        self.mean, self.spread = best.mean(axis=0), best.std(axis=0) + np.float32(0.1)


def tune(box: BlackBox, labels: Labels, context: Context, budget: int, record: Record) -> Tuned:
    """Spends at most `budget` queries; the codes to keep, and a head on the plain prompt and them.

    The best code of each generation is kept. `record` gets every answer as it is paid for.
    """
    search = CrossEntropyMethod(context.dim, population=8, seed=context.seed)
    codes = np.zeros((0, context.dim), np.float32)
    scores = box.score(templates=[TEMPLATE], name="plain")
    kept, spent = scores.log_probs, scores.charged
    record(scores, codes, cross_entropy(kept, labels))
    while (spent + box.units(8)).queries <= budget:
        asked = search.ask()
        scores = box.score(context=context, codes=asked, name=f"generation-{len(codes)}")
        losses = cross_entropy(scores.log_probs, labels)
        search.tell(asked, losses)
        best = int(losses.argmin())
        codes = np.concatenate([codes, asked[best][None]])
        kept = np.concatenate([kept, scores.log_probs[best][None]])
        spent += scores.charged
        record(scores, asked, losses)
    head = fit(kept, labels, groups=np.arange(len(labels))).head
    # Where the plain prompt is better there is no head, and no code is to be kept.
    return (codes[:0] if isinstance(head, Unrefined) else codes), head


# --- a run like any other ---------------------------------------------------------------------


def run_document(
    box: BlackBox, labels: Labels, data: Path, run: str, args: argparse.Namespace
) -> dict[str, object]:
    """What `run.json` holds: what the run was asked for."""
    return {
        "craftbox": version("craftbox"),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": run,
        "data": str(data.resolve()),
        "model": box.model,
        "revision": box.revision,
        "classes": list(box.classes),
        "labels": labels.tolist(),
        "settings": {
            "recipe": NAME,
            "shots": args.shots,
            "seed": args.seed,
            "budget": args.budget,
            "template": TEMPLATE,
        },
    }


def run_method(
    box: BlackBox, labels: Labels, journal: Journal, args: argparse.Namespace
) -> Adapter:
    """Tunes, and writes journal, adapter and summary."""
    history: list[dict[str, object]] = []
    total, plain_accuracy = Units(), 0.0

    def record(scores: Scores, codes: Array, losses: Array) -> None:
        nonlocal total, plain_accuracy
        if not history:
            plain_accuracy = accuracy(scores.log_probs[0], labels)
        total += scores.charged
        line = {
            "generation": len(history),
            "charged": scores.charged.model_dump(),
            "cost_micros": scores.cost_micros,
            "mean_loss": float(losses.mean()),
            "best_loss": float(losses.min()),
        }
        journal.append(line, {f"{len(history):06d}": {"codes": codes, "losses": losses}})
        box.acknowledge(scores)
        best = scores.log_probs[losses.argmin()]
        history.append({"generation": len(history), "accuracy": accuracy(best, labels)})

    context = Context(dim=64, seed=args.seed, scale=3.0)
    codes, head = tune(box, labels, context, args.budget, record)
    config = AdapterConfig(
        model=box.model,
        revision=box.revision,
        classes=list(box.classes),
        templates=[TEMPLATE],
        context=context if len(codes) else None,
        codes=len(codes),
        head=head.kind,
        output=box.output,
        provenance=Provenance(
            recipe=NAME,
            shots=args.shots,
            seed=args.seed,
            accuracy_before=plain_accuracy,
            # The codes were chosen by all labels: nothing was held out.
            accuracy_after=None,
            units=total,
        ),
    )
    adapter = Adapter(config, codes, head)
    summary = {
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "accuracy_before": plain_accuracy,
        "accuracy_after": None,
        "units": total.model_dump(),
        "stopped_by": None,
        "adapter": adapter.digest,
        "deployed": "the best code of each generation",
        "candidates": [],
        "history": history,
    }
    journal.finish(adapter, summary)
    return adapter


def main() -> None:
    """Draws the pictures as `craft tune` does, uploads them, and tunes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="image folders")
    parser.add_argument("--shots", type=int, default=16, help="pictures a class")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--budget", type=int, default=65, help="queries")
    parser.add_argument("--run", type=Path, required=True, help="a new or empty directory")
    args = parser.parse_args()

    dataset = load_dataset(args.data)
    samples = few_shot(dataset.split("train"), args.shots, args.seed, dataset.classes)
    labels = np.array([sample.label for sample in samples], np.int64)
    name = f"{NAME}-{uuid.uuid4().hex}"
    with Client(run=name) as client:
        image_set = client.create_image_set(client.model().name)
        image_set = client.upload_images(image_set, (one.path.read_bytes() for one in samples))
        box = RemoteBlackBox(client, image_set, dataset.classes, run=name)
        journal = Journal.create(args.run, run_document(box, labels, args.data, name, args))
        adapter = run_method(box, labels, journal, args)
    print(f"{adapter.config.prompts} prompts. Measure it: craft evaluate {args.run} --data DATA")


if __name__ == "__main__":
    main()
