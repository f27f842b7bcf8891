"""Models: from the name an operator gives to a loaded CLIP model."""

from __future__ import annotations

import difflib
import hashlib
import logging
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import structlog
import torch
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from torch import nn

from craft_server.engine import checkpoints
from craft_server.engine.precision import Precision

POCKET = "pocket"

log = structlog.get_logger(__name__)


class ModelLoadError(Exception):
    """The model cannot be loaded; the message is one line that says why and what to do."""


@dataclass(frozen=True)
class ModelSpec:
    """What the operator asked for."""

    name: str = POCKET  # `pocket`, or the name of an open_clip model such as `RN50`
    # One of open_clip's tags for that model, or the path of a local checkpoint; without it an
    # open_clip model has random weights, which only tests can use.
    pretrained: str | None = None
    device: str = "auto"  # `auto`, `cpu`, `cuda` or `cuda:N`; `auto` takes a GPU where there is one
    # Of the towers' arithmetic; see `craft_server.engine.precision`.
    precision: Precision = "auto"


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on its device, in single precision."""

    name: str  # as the operator names it
    module: nn.Module  # an `open_clip.model.CLIP` or `CustomTextCLIP`, or alike
    preprocess_cfg: dict[str, Any]  # open_clip's description of how pictures are preprocessed
    revision: str  # 16 hexadecimal digits that change with the weights (not with the precision)
    image_size: int  # side in pixels
    logit_scale: float  # the factor on the cosine similarities (exponentiated)
    device: torch.device  # where the weights are
    random_weights: bool  # whether the predictions are meaningless


def load_model(spec: ModelSpec) -> LoadedModel:
    """Loads a model, hashes its weights and moves it to its device.

    Raises:
        ModelLoadError: there is no such model, or its weights or device are not available.
    """
    device = device_of(spec.device)
    random_weights = False
    quick_gelu = False
    if spec.name == POCKET:
        module = _pocket(spec)
    else:
        _check_supported(spec.name)
        random_weights = spec.pretrained is None
        quick_gelu = _needs_quick_gelu(spec)
        module = _random(spec.name) if random_weights else _pretrained(spec, quick_gelu)
    module.eval().requires_grad_(requires_grad=False)
    visual: Any = module.visual
    logit_scale: Any = module.logit_scale
    loaded = LoadedModel(
        name=spec.name,
        module=module,
        preprocess_cfg=dict(visual.preprocess_cfg),
        revision=revision(module, spec.name + ("+quickgelu" if quick_gelu else "")),
        image_size=_side(visual.image_size),
        logit_scale=float(logit_scale.exp()),
        device=device,
        random_weights=random_weights,
    )
    module.to(device=device)
    # Convolutions are faster with a pixel's channels side by side.
    module.to(memory_format=torch.channels_last)
    if device.type == "cpu":
        _lay_out_for_few_rows(module)
    return loaded


def _lay_out_for_few_rows(module: nn.Module) -> None:
    """Stores the weights of linear layers by input: products of few rows read them faster."""
    for layer in module.modules():
        for weight in (getattr(layer, "in_proj_weight", None), getattr(layer, "weight", None)):
            if weight is not None and isinstance(layer, nn.Linear | nn.MultiheadAttention):
                weight.data = weight.data.t().contiguous().t()


def revision(module: nn.Module, architecture: str) -> str:
    """An opaque name for weights: 16 hexadecimal digits of SHA-256 over them, in name order.

    `architecture` tells apart models whose weights alone do not (activations have no weights).
    """
    digest = hashlib.sha256(f"craftbox model revision 1\n{architecture}\n".encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def device_of(name: str) -> torch.device:
    """The device of that name; see `ModelSpec`.

    Raises:
        ModelLoadError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device: torch.device | None = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ModelLoadError(f"unknown device '{name}': use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelLoadError(
            f"device '{name}' is not available: {torch.cuda.device_count()} GPUs are visible; "
            "use auto or cpu"
        )
    return device


def _side(size: int | tuple[int, int]) -> int:
    return size if isinstance(size, int) else size[0]


def _pocket(spec: ModelSpec) -> nn.Module:
    if spec.pretrained is not None:
        raise ModelLoadError(
            "the pocket model brings its own weights: leave --pretrained out, "
            "or name an open_clip model"
        )
    # Imported here, because only this model needs its weights package.
    from craft_server.pocket import load_pocket

    try:
        module: nn.Module = load_pocket()
    except (ImportError, OSError) as error:
        raise ModelLoadError(f"the pocket model cannot be loaded: {error}") from error
    return module


def _check_supported(name: str) -> None:
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        known = [POCKET, *open_clip.list_models()]
        by_lower = {known_name.lower(): known_name for known_name in known}
        close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
        near = ", ".join(by_lower[match] for match in close)
        raise ModelLoadError(
            f"unknown model '{name}'"
            + (f"; near matches: {near}" if near else "")
            + f"; models are '{POCKET}' and those of open_clip.list_models()"
        )
    text = config["text_cfg"]
    if "hf_model_name" in text or "hf_tokenizer_name" in text:
        raise ModelLoadError(
            f"model '{name}' reads texts with a tokenizer of its own, which craftbox does not "
            "know; choose another, such as RN50 or ViT-B-32"
        )


def _needs_quick_gelu(spec: ModelSpec) -> bool:
    """Whether the tag's weights were trained with QuickGELU, which open_clip only warns about."""
    if spec.pretrained is None:
        return False
    tag = open_clip.get_pretrained_cfg(spec.name, spec.pretrained) or {}
    return bool(tag.get("quick_gelu", False))


def _random(name: str) -> nn.Module:
    log.warning(
        "RANDOM WEIGHTS: predictions are meaningless, for tests only; "
        "give --pretrained for real ones",
        model=name,
    )
    with torch.random.fork_rng(devices=[]), _quiet_root_logger():
        torch.manual_seed(0)
        return _created(name)


def _pretrained(spec: ModelSpec, quick_gelu: bool) -> nn.Module:
    pretrained = str(spec.pretrained)
    tags = open_clip.list_pretrained_tags_by_model(spec.name)
    if pretrained in tags:
        _check_obtainable(spec.name, pretrained)
    elif not Path(pretrained).is_file():
        raise ModelLoadError(
            f"'{pretrained}' is neither a local checkpoint nor one of the tags of '{spec.name}': "
            + (", ".join(tags) or "it has none")
        )
    elif found := checkpoints.fault(Path(pretrained)):
        raise ModelLoadError(f"'{pretrained}' is not a checkpoint of '{spec.name}': {found}")
    try:
        with _quiet_root_logger(), warnings.catch_warnings():
            # PyTorch's, of files that it refuses: what is to be done about them is said below.
            warnings.simplefilter("ignore")
            return _created(spec.name, pretrained=pretrained, force_quick_gelu=quick_gelu)
    except Exception as error:
        if pretrained in tags and not checkpoints.is_of_loading(error):
            raise _download_failed(spec.name, pretrained, error) from error
        if pretrained in tags:
            raise ModelLoadError(
                f"the weights '{pretrained}' of '{spec.name}' were downloaded and cannot be used: "
                f"{checkpoints.words_for(error)}; remove them from the cache of Hugging Face first"
            ) from error
        raise ModelLoadError(
            f"'{pretrained}' is not a checkpoint of '{spec.name}' that loads safely: "
            f"{checkpoints.words_for(error)}"
        ) from error


def _created(name: str, **options: Any) -> nn.Module:
    module: nn.Module = open_clip.create_model(
        name, precision="fp32", device="cpu", weights_only=True, **options
    )
    return module


def _check_obtainable(name: str, tag: str) -> None:
    """Fails at once where the download would fail only after a minute of retries."""
    hub = open_clip.get_pretrained_cfg(name, tag).get("hf_hub", "")
    if not hub or _is_cached(hub):
        return
    try:
        with urllib.request.urlopen(huggingface_hub.constants.ENDPOINT, timeout=10):  # noqa: S310 - the hub's own address
            return
    except urllib.error.HTTPError:
        return  # it answers, so it can be asked
    except OSError as error:
        raise _download_failed(name, tag, error) from error


def _is_cached(hub: str) -> bool:
    repository, _, file = hub.rpartition("/")
    # The names that open_clip tries, in its order.
    safe = Path(file).with_suffix(".safetensors").name if file else HF_SAFE_WEIGHTS_NAME
    files = (safe, file or HF_WEIGHTS_NAME)
    return any(
        isinstance(huggingface_hub.try_to_load_from_cache(repository, name), str) for name in files
    )


def _download_failed(name: str, tag: str, error: Exception) -> ModelLoadError:
    return ModelLoadError(
        f"the weights '{tag}' of '{name}' cannot be downloaded ({_first_line(error)}): "
        "connect to the internet, or give --pretrained the path of a local checkpoint"
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """open_clip logs on the root logger, which would install a handler on it for good."""
    root = logging.getLogger()
    handler, level = logging.NullHandler(), root.level
    root.addHandler(handler)
    root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
