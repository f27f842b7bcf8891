"""Print a checkpoint's zero-shot accuracy on development pictures, and the best logit scale.

The scale is chosen by likelihood on these pictures, all data sets together; it changes no accuracy.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from open_clip.tokenizer import SimpleTokenizer

from development import Development
from tower import Shape, Tower
from train import embed_names

LOGIT_SCALES = range(5, 41)


def main() -> None:
    """Evaluate a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--dev", type=Path, nargs="+", required=True, help="from development.py")
    args = parser.parse_args()
    checkpoint = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    tower = Tower(Shape()).eval()
    tower.load_state_dict(checkpoint["tower"])
    tokenizer = SimpleTokenizer()
    print(f"{checkpoint['minutes']:.1f} minutes, {checkpoint['step']} steps")
    losses = dict.fromkeys(LOGIT_SCALES, 0.0)
    for path in args.dev:
        dev = Development.load(path)
        texts = embed_names(tower, tokenizer, dev.classes)
        print(f"{dev.name}: {dev.accuracy(texts):.2f} % of {len(dev.labels)} pictures")
        for scale in LOGIT_SCALES:
            losses[scale] += dev.negative_log_likelihood(texts, scale) / len(args.dev)
    best = min(LOGIT_SCALES, key=losses.__getitem__)
    print(f"--logit-scale {best}: {losses[best]:.4f} nats a picture")


if __name__ == "__main__":
    main()
