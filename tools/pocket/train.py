"""Train the text tower: a phrase in any template goes to the phrase's target.

Loss: one minus the cosine to the target, plus the Kullback-Leibler divergence between how the
target and how the student see the 1,000 class rows (what zero-shot classification reads). The
schedule runs on wall-clock time, so that a training ends when it was said to.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor
from torch.nn.functional import kl_div

from development import Development
from tower import Shape, Tower

START, END = 49406, 49407
MAIN_TEMPLATE = "a photo of a {}."
MAIN_SHARE = 0.55
OTHER_TEMPLATES = [t("{}") for t in OPENAI_IMAGENET_TEMPLATES] + [
    *("{}", "{}.", "a {}", "a {}.", "the {}", "this is a {}.", "an image of the {}."),
    *("a picture of {}.", "a photo of {}.", "a photo of the {}.", "a photo of a {}"),
    "a photo of an {}.",
]
LONGEST = 10  # tokens of a phrase; longer ones are left out
SHARPNESS = 20.0  # of the softmax over class rows
WARMUP_STEPS = 150

Template = tuple[list[int], list[int]]


def template_tokens(tokenizer: SimpleTokenizer, template: str) -> Template:
    """Ids before the phrase, start token included, and after it, end token included."""
    before, after = template.split("{}")
    return [START, *tokenizer.encode(before.strip())], [*tokenizer.encode(after.strip()), END]


class Batches:
    """Endless weighted batches, one template each, phrases grouped by length."""

    def __init__(self, targets: Path, batch: int, seed: int) -> None:
        stored = np.load(targets)
        tokenizer = SimpleTokenizer()
        ids = [tokenizer.encode(phrase) for phrase in json.loads(str(stored["phrases"]))]
        self.lengths = np.array([len(x) for x in ids])
        self.ids = np.zeros((len(ids), LONGEST), dtype=np.int64)
        for row, x in zip(self.ids, ids, strict=True):
            row[: len(x)] = x[:LONGEST]
        usable = (self.lengths > 0) & (self.lengths <= LONGEST)
        self.cumulative = np.cumsum(np.where(usable, stored["weights"], 0.0))
        self.targets = torch.from_numpy(stored["targets"])
        self.class_rows = torch.from_numpy(stored["class_rows"])
        self.main = template_tokens(tokenizer, MAIN_TEMPLATE)
        self.others = [template_tokens(tokenizer, t) for t in OTHER_TEMPLATES]
        self.batch, self.rng = batch, np.random.default_rng(seed)

    def __iter__(self) -> Iterator[tuple[Tensor, list[Tensor], Tensor]]:
        """Yield the shared prefix [p], the groups [b_g, n_g] and the targets [batch, 512]."""
        while True:
            main = self.rng.random() < MAIN_SHARE
            other = self.others[self.rng.integers(len(self.others))]
            prefix, suffix = self.main if main else other
            draws = self.rng.random(self.batch) * self.cumulative[-1]
            rows = np.searchsorted(self.cumulative, draws, side="right")
            rows = rows[np.argsort(self.lengths[rows], kind="stable")]
            groups = []
            for length in np.unique(self.lengths[rows]):
                chosen = self.ids[rows[self.lengths[rows] == length], :length]
                ends = np.tile(suffix, (len(chosen), 1))
                groups.append(torch.from_numpy(np.concatenate([chosen, ends], axis=1)))
            yield torch.tensor(prefix), groups, self.targets[torch.from_numpy(rows)].float()


def loss_of(student: Tensor, target: Tensor, class_rows: Tensor) -> Tensor:
    """Cosine distance plus divergence over the class rows; student and target [b, 512]."""
    seen = (SHARPNESS * student @ class_rows.T).log_softmax(-1)
    wanted = (SHARPNESS * target @ class_rows.T).log_softmax(-1)
    divergence = kl_div(seen, wanted, log_target=True, reduction="batchmean")
    return 1 - (student * target).sum(-1).mean() + divergence


@torch.no_grad()
def embed_names(
    tower: Tower, tokenizer: SimpleTokenizer, names: list[str], template: str = MAIN_TEMPLATE
) -> Tensor:
    """Embeddings [len(names), 512] in the given order."""
    prefix, suffix = template_tokens(tokenizer, template)
    by_length: dict[int, list[int]] = defaultdict(list)
    ids = [tokenizer.encode(name) for name in names]
    for i, x in enumerate(ids):
        by_length[len(x)].append(i)
    groups = [torch.tensor([ids[i] + suffix for i in rows]) for rows in by_length.values()]
    order = [i for rows in by_length.values() for i in rows]
    result = torch.empty(len(names), tower.shape.embed_dim)
    result[order] = tower(torch.tensor(prefix), groups)
    return result


def save(path: Path, tower: Tower, step: int, minutes: float) -> None:
    """Write a checkpoint atomically."""
    part = path.with_suffix(".part")
    torch.save({"tower": tower.state_dict(), "step": step, "minutes": minutes}, part)
    part.replace(path)


def make_optimizer(tower: Tower, lr: float) -> torch.optim.Optimizer:
    """AdamW; biases and layer norms do not decay."""
    matrices = [p for p in tower.parameters() if p.ndim > 1]
    vectors = [p for p in tower.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": 0.02},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)


def learning_rate(peak: float, step: int, done: float) -> float:
    """Linear warm-up by steps times a cosine over the share ``done`` of the time."""
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    return peak * min(1.0, (step + 1) / WARMUP_STEPS) * (0.01 + 0.99 * cosine)


def accuracies(tower: Tower, tokenizer: SimpleTokenizer, dev: list[Development]) -> str:
    """Zero-shot accuracy on each development set, in words."""
    found = (f"{d.name} {d.accuracy(embed_names(tower, tokenizer, d.classes)):.2f} %" for d in dev)
    return "  ".join(found)


def train(tower: Tower, batches: Batches, args: argparse.Namespace) -> None:
    """Train until the time is up; report and save along the way."""
    tokenizer = SimpleTokenizer()
    dev = [Development.load(path) for path in args.dev]
    optimizer = make_optimizer(tower, args.lr)
    began = reported = time.monotonic()
    losses: list[float] = []
    for step, (prefix, groups, target) in enumerate(batches):
        minutes = (time.monotonic() - began) / 60
        if minutes >= args.minutes:
            save(args.out, tower, step, minutes)
            return
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args.lr, step, minutes / args.minutes)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            student = tower(prefix, groups)
        loss = loss_of(student, target, batches.class_rows)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        seconds = time.monotonic() - reported
        if seconds > args.report_seconds:
            rate = len(losses) * args.batch / seconds
            mean = sum(losses) / len(losses)
            print(
                f"{minutes:5.1f} min  step {step}  {rate:.0f} phrases/s  loss {mean:.4f}  "
                + accuracies(tower, tokenizer, dev),
                flush=True,
            )
            save(args.out, tower, step, minutes)
            reported, losses = time.monotonic(), []


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", type=Path, required=True, help="targets.npz of targets.py")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    parser.add_argument(
        "--dev", type=Path, nargs="*", default=[], help="pictures to report on, of development.py"
    )
    parser.add_argument("--init", type=Path, help="checkpoint to start from")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--batch", type=int, default=512, help="phrases a step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--report-seconds", type=float, default=60.0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    with np.load(args.targets) as stored:
        tower = Tower(Shape(), torch.from_numpy(stored["token_basis"]))
    if args.init:
        tower.load_state_dict(torch.load(args.init, weights_only=True)["tower"])
    train(tower, Batches(args.targets, args.batch, seed=0), args)


if __name__ == "__main__":
    main()
