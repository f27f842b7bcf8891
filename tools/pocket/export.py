"""Write the files the server ships: half-precision text tower, vision projection, config.

The checkpoint comes from train.py, the projection from targets.py. Files are replaced atomically,
so that an export over an existing one is never seen half-done.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from tower import CONTEXT_LENGTH, VOCAB_SIZE, Shape

SIZE_BOUND = 16_000_000
PREPROCESS = {
    "size": [224, 224],
    "mode": "RGB",
    "mean": [127 / 255] * 3,
    "std": [128 / 255] * 3,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}


def model_config(shape: Shape) -> dict[str, Any]:
    """Keyword arguments of ``open_clip.model.CLIP``."""
    return {
        "embed_dim": shape.embed_dim,
        "vision_cfg": {
            "image_size": 224,
            "timm_model_name": "tf_efficientnet_lite0",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "timm_proj_bias": True,
        },
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": VOCAB_SIZE,
            "width": shape.width,
            "heads": shape.heads,
            "layers": shape.layers,
        },
    }


def text_tensors(tower: dict[str, Tensor], logit_scale: float) -> dict[str, Tensor]:
    """The tower under open_clip's names, float16; the token table stays a product of two."""
    renamed = {"token_factor": "token_embedding.factor", "token_mix": "token_embedding.mix"}
    tensors = {renamed.get(name, name): tensor for name, tensor in tower.items()}
    tensors["logit_scale"] = torch.tensor(math.log(logit_scale))
    half = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    bad = [name for name, tensor in half.items() if not tensor.isfinite().all()]
    if bad:
        raise ValueError(f"not finite in half precision: {', '.join(bad)}")
    return half


def write(path: Path, content: bytes) -> None:
    """Replace ``path`` atomically."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)
    print(f"{path.name}: {len(content):,} bytes")


def main() -> None:
    """Export a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--targets", type=Path, required=True, help="targets.npz of targets.py")
    parser.add_argument("--out", type=Path, required=True, help="the package craft_server/pocket")
    parser.add_argument("--logit-scale", type=float, default=20.0, help="see evaluate.py")
    args = parser.parse_args()
    checkpoint = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    stored = np.load(args.targets)
    projection = {
        "weight": torch.from_numpy(stored["vision_weight"]).half(),
        "bias": torch.from_numpy(stored["vision_bias"]).float(),
    }
    text = save(text_tensors(checkpoint["tower"], args.logit_scale))
    if len(text) >= SIZE_BOUND:
        raise ValueError(f"the text tower takes {len(text):,} bytes, the bound is {SIZE_BOUND:,}")
    config = {
        "model_cfg": model_config(Shape()),
        "preprocess_cfg": PREPROCESS,
        "training": {"steps": checkpoint["step"], "minutes": round(checkpoint["minutes"], 1)},
    }
    write(args.out / "text.safetensors", text)
    write(args.out / "vision_projection.safetensors", save(projection))
    write(args.out / "config.json", (json.dumps(config, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
