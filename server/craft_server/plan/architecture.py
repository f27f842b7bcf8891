"""What a model's configuration says of its cost: widths, layers, multiply-adds and parameters.

The vision tower is run once without weights or numbers (PyTorch's meta device) and its
multiply-adds are counted by PyTorch's own counter, so that every tower that open_clip can build is
counted alike. It does not know how fast any machine is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import open_clip
import torch
from open_clip.model import CLIP, CustomTextCLIP
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from craft_server.engine.models import POCKET
from craft_server.pocket import read_config

VisionKind = Literal["resnet", "transformer", "timm"]


class UnknownArchitecture(Exception):  # noqa: N818 - reads as what it is where it is caught
    """There is no such model, or its texts are not read by a causal CLIP text transformer."""


@dataclass(frozen=True)
class Architecture:
    """What a model costs by its configuration.

    Attributes:
        name: the model's.
        text_width: of the text tower.
        text_layers: of the text tower.
        features: width of what both towers give.
        image_size: side of a picture in pixels.
        vision_kind: towers of one kind do about as many multiply-adds a second.
        vision_multiply_adds: of one picture.
        parameters: of both towers.
    """

    name: str
    text_width: int
    text_layers: int
    features: int
    image_size: int
    vision_kind: VisionKind
    vision_multiply_adds: float
    parameters: int

    @classmethod
    @cache
    def of(cls, name: str) -> Architecture:
        """The architecture of a model that the server can host.

        Raises:
            UnknownArchitecture: there is no such model, or it cannot be planned.
        """
        config = _config(name)
        text = config["text_cfg"]
        if "hf_model_name" in text or "multimodal_cfg" in config or text.get("no_causal_mask"):
            raise UnknownArchitecture(
                f"model '{name}' does not read texts by a causal CLIP transformer; plan for one "
                "that does, such as RN50 or ViT-B-32"
            )
        module = _without_weights(config)
        size = module.visual.image_size
        side: int = size if isinstance(size, int) else size[0]
        return cls(
            name=name,
            text_width=text["width"],
            text_layers=text["layers"],
            features=config["embed_dim"],
            image_size=side,
            vision_kind=_kind(config["vision_cfg"]),
            vision_multiply_adds=_multiply_adds(module, side),
            parameters=sum(parameter.numel() for parameter in module.parameters()),
        )


def _config(name: str) -> dict[str, Any]:
    if name == POCKET:
        pocket: dict[str, Any] = read_config()["model_cfg"]
        return pocket
    config: dict[str, Any] | None = open_clip.get_model_config(name)
    if config is None:
        raise UnknownArchitecture(
            f"there is no model '{name}'; use '{POCKET}' or one of open_clip's, such as RN50"
        )
    return config


def _without_weights(config: dict[str, Any]) -> Any:
    parts = {name: value for name, value in config.items() if name != "custom_text"}
    build: type[nn.Module] = CustomTextCLIP if config.get("custom_text") else CLIP
    with torch.device("meta"):
        return build(**parts).eval()


def _multiply_adds(module: Any, side: int) -> float:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module.encode_image(torch.empty(1, 3, side, side, device="meta"))
    return float(counter.get_total_flops()) / 2


def _kind(vision: dict[str, Any]) -> VisionKind:
    if "timm_model_name" in vision:
        return "timm"
    return "resnet" if isinstance(vision.get("layers"), list) else "transformer"
