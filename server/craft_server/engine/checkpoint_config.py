"""What a local checkpoint says of itself: its activation and how its images are preprocessed.

Weights do not show either. They are found, in this order, in the metadata of a safetensors file
(`quick_gelu`), in open_clip's `open_clip_config.json` beside it, and in transformers' `config.json`
beside it, which has the activation of both towers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

OPEN_CLIP = "open_clip_config.json"
TRANSFORMERS = "config.json"
_QUICK = "quick_gelu"
_METADATA = {"true": True, "false": False}
# The activations that transformers calls so; a CLIP of its own has the first unless it says more.
_HIDDEN_ACTS = {_QUICK: True, "gelu": False}


@dataclass(frozen=True)
class CheckpointConfig:
    """What is known of a checkpoint."""

    quick_gelu: bool | None = None  # whether it was trained with QuickGELU; None is not known
    source: str = ""  # what says so: a file's name
    # Of open_clip's preprocessing what it says.
    preprocess_cfg: dict[str, Any] = field(default_factory=dict)


def read(checkpoint: Path) -> CheckpointConfig:
    """What is known of a checkpoint that may be one; never raises for what else lies beside it."""
    ours = _json(checkpoint.parent / OPEN_CLIP)
    preprocess_cfg = _dict(ours.get("preprocess_cfg"))
    in_file = _METADATA.get(_metadata(checkpoint).get(_QUICK, ""))
    if in_file is not None:
        return CheckpointConfig(in_file, checkpoint.name, preprocess_cfg)
    if "model_cfg" in ours:
        quick_gelu = bool(_dict(ours["model_cfg"]).get(_QUICK, False))
        return CheckpointConfig(quick_gelu, OPEN_CLIP, preprocess_cfg)
    return CheckpointConfig(
        _activation(_json(checkpoint.parent / TRANSFORMERS)), TRANSFORMERS, preprocess_cfg
    )


def _activation(config: dict[str, Any]) -> bool | None:
    if config.get("model_type") != "clip":
        return None
    acts = {
        str(_dict(config.get(tower)).get("hidden_act", _QUICK))
        for tower in ("text_config", "vision_config")
    }
    return _HIDDEN_ACTS.get(acts.pop()) if len(acts) == 1 else None


def _metadata(checkpoint: Path) -> dict[str, str]:
    if checkpoint.suffix != ".safetensors":
        return {}
    with safe_open(checkpoint, "pt") as file:
        return file.metadata() or {}


def _json(path: Path) -> dict[str, Any]:
    try:
        return _dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return {}


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
