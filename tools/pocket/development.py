"""Judge a text tower by pictures: zero-shot on the training and validation splits of data sets.

Test splits are never read here. Run as a script it encodes a data set's pictures once:

    python development.py --targets OUT/targets.npz --data DIR --out OUT/NAME.npz
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, normalize

from craft_client.layouts import load_dataset
from craft_server.pocket import CLASSIFIER, VISION_MODEL, load_vision_weights
from export import PREPROCESS


@dataclass(frozen=True)
class Development:
    """A data set's pictures as image embeddings.

    Attributes:
        name: of the data set.
        classes: its class names.
        embeddings: float32 [n, 512], unit norm.
        labels: int64 [n].
    """

    name: str
    classes: list[str]
    embeddings: Tensor
    labels: Tensor

    @classmethod
    def load(cls, path: Path) -> Development:
        """What `main` wrote."""
        with np.load(path) as stored:
            return cls(
                path.stem,
                json.loads(str(stored["classes"])),
                torch.from_numpy(stored["embeddings"]).float(),
                torch.from_numpy(stored["labels"]),
            )

    def accuracy(self, texts: Tensor) -> float:
        """Zero-shot top-1 accuracy, percent, of text embeddings [classes, 512]."""
        right = (self.embeddings @ texts.T).argmax(-1) == self.labels
        return 100 * right.float().mean().item()

    def negative_log_likelihood(self, texts: Tensor, logit_scale: float) -> float:
        """Of the labels, nats a picture."""
        return cross_entropy(logit_scale * self.embeddings @ texts.T, self.labels).item()


@torch.inference_mode()
def encode(paths: list[Path], weight: Tensor, bias: Tensor, *, batch: int = 64) -> Tensor:
    """Image embeddings [len(paths), 512], unit norm; weight [512, 1280] and bias [512] project."""
    vision = timm.create_model(VISION_MODEL, pretrained=False, num_classes=0).eval()
    weights = {k: v for k, v in load_vision_weights().items() if k not in CLASSIFIER}
    missing, unexpected = vision.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    preprocess = image_transform_v2(PreprocessCfg(**PREPROCESS), is_train=False)
    parts = []
    for i in range(0, len(paths), batch):
        pictures = [preprocess(Image.open(path).convert("RGB")) for path in paths[i : i + batch]]
        features = vision(torch.stack(pictures))
        parts.append(normalize(linear(features, weight, bias), dim=-1))
    return torch.cat(parts)


def main() -> None:
    """Encode a data set's training and validation pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", type=Path, required=True, help="targets.npz of targets.py")
    parser.add_argument("--data", type=Path, required=True, help="a folder that craft tune reads")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    dataset = load_dataset(args.data)
    samples = [*dataset.train, *dataset.validation]
    with np.load(args.targets) as stored:
        weight, bias = (torch.from_numpy(stored[f"vision_{part}"]) for part in ("weight", "bias"))
    embeddings = encode([sample.path for sample in samples], weight, bias)
    np.savez(
        args.out,
        classes=json.dumps(list(dataset.classes)),
        embeddings=embeddings.half().numpy(),
        labels=np.array([sample.label for sample in samples]),
    )
    print(f"{args.out.name}: {len(samples)} pictures, {len(dataset.classes)} classes")


if __name__ == "__main__":
    main()
