"""Models: from the name an operator gives to a loaded CLIP model."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import open_clip
import structlog
import torch
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.transform import PreprocessCfg
from torch import nn

from craft_server.engine import checkpoint_config, checkpoints, hub
from craft_server.engine.precision import Precision

POCKET = "pocket"
DEFAULT_CONTEXT_LENGTH = 77  # of open_clip's models that name none
EXTRA = "huggingface"  # with which craftbox brings what reads texts in Hugging Face's ways

# Ends a model's name where a local checkpoint is to be read with QuickGELU, and where it is not.
_QUICK_GELU, _GELU = "-quickgelu", "-gelu"
# What a checkpoint's own configuration, or all tags of its architecture, may say of images.
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")

log = structlog.get_logger(__name__)


class ModelLoadError(Exception):
    """The model cannot be loaded; the message is one line that says why and what to do."""


@dataclass(frozen=True)
class ModelSpec:
    """What the operator asked for."""

    # `pocket`, or the name of an open_clip model such as `RN50`; where it has a `-quickgelu` beside
    # it, `-gelu` says of a local checkpoint that it is not one of those.
    name: str = POCKET
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
    context_length: int  # the most tokens a text may have
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
    if spec.name == POCKET:
        module = _pocket(spec)
        architecture, context_length = POCKET, DEFAULT_CONTEXT_LENGTH
    else:
        spec, plain = _without_gelu(spec)
        config = _config(spec.name)
        _check_text_parts(spec.name, config["text_cfg"])
        context_length = config["text_cfg"].get("context_length", DEFAULT_CONTEXT_LENGTH)
        random_weights = spec.pretrained is None
        if spec.pretrained is None:
            module, architecture = _random(spec.name), spec.name
        elif spec.pretrained in open_clip.list_pretrained_tags_by_model(spec.name):
            module, architecture = _tagged(spec.name, spec.pretrained)
        else:
            module, architecture = _local(spec.name, spec.pretrained, plain=plain)
    module.eval().requires_grad_(requires_grad=False)
    visual: Any = module.visual
    logit_scale: Any = module.logit_scale
    loaded = LoadedModel(
        name=spec.name,
        module=module,
        preprocess_cfg=dict(visual.preprocess_cfg),
        revision=revision(module, architecture),
        image_size=_side(visual.image_size),
        context_length=context_length,
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


def _without_gelu(spec: ModelSpec) -> tuple[ModelSpec, bool]:
    """The spec under open_clip's own name, and whether it was named as one without QuickGELU."""
    name = spec.name.removesuffix(_GELU)
    plain = name != spec.name and _has_both_activations(name)
    return (replace(spec, name=name), True) if plain else (spec, False)


def _has_both_activations(name: str) -> bool:
    return name + _QUICK_GELU in open_clip.list_models()


def _config(name: str) -> dict[str, Any]:
    config: dict[str, Any] | None = None
    if name in open_clip.list_models():
        config = open_clip.get_model_config(name)
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
    return config


def _check_text_parts(name: str, text: dict[str, Any]) -> None:
    """Fails before anything is loaded where what reads texts is not there."""
    tokenizer, tower = text.get("hf_tokenizer_name"), text.get("hf_model_name")
    if not tokenizer and not tower:
        return
    if find_spec("transformers") is None:
        raise ModelLoadError(
            f"model '{name}' reads texts with Hugging Face's transformers, which is not installed: "
            f"pip install 'craftbox[{EXTRA}]'"
        )
    try:
        if tokenizer:
            hub.folder(tokenizer, hub.TOKENIZER)
        if tower:
            hub.folder(tower, hub.CONFIG)
    except hub.MissingFilesError as error:
        raise ModelLoadError(f"model '{name}' cannot be loaded: {error}") from error


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


def _tagged(name: str, tag: str) -> tuple[nn.Module, str]:
    """The model with a tag's weights, and what its revision calls its architecture."""
    quick_gelu = _needs_quick_gelu(ModelSpec(name, tag))
    _check_obtainable(name, tag)
    try:
        with _quiet_root_logger(), _no_warnings():
            module = _created(name, pretrained=tag, force_quick_gelu=quick_gelu)
    except Exception as error:
        if not checkpoints.is_of_loading(error):
            raise _download_failed(name, tag, error) from error
        raise ModelLoadError(
            f"the weights '{tag}' of '{name}' were downloaded and cannot be used: "
            f"{checkpoints.words_for(error)}; remove them from the cache of Hugging Face first"
        ) from error
    return module, name + ("+quickgelu" if quick_gelu else "")


def _local(name: str, pretrained: str, *, plain: bool) -> tuple[nn.Module, str]:
    """The model with a local checkpoint's weights, and what its revision calls its architecture."""
    path = Path(pretrained)
    if not path.is_file():
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ModelLoadError(
            f"'{pretrained}' is neither a local checkpoint nor one of the tags of '{name}': "
            + (", ".join(tags) or "it has none")
        )
    if found := checkpoints.fault(path):
        raise ModelLoadError(f"'{pretrained}' is not a checkpoint of '{name}': {found}")
    try:
        said = checkpoint_config.read(path)
        quick_gelu = _quick_gelu(name, pretrained, said, plain=plain)
        preprocessing = _preprocessing(name, said)
        with _quiet_root_logger(), _no_warnings():
            module = _created(
                name,
                pretrained=pretrained,
                force_preprocess_cfg=preprocessing,
                quick_gelu=bool(quick_gelu),
            )
    except ModelLoadError:
        raise
    except Exception as error:
        raise ModelLoadError(
            f"'{pretrained}' is not a checkpoint of '{name}' that loads safely: "
            f"{checkpoints.words_for(error)}"
        ) from error
    if quick_gelu is None:
        raise ModelLoadError(
            f"'{pretrained}' does not say with which activation it was trained, and '{name}' has "
            "two: was it QuickGELU, as of OpenAI's, MetaCLIP's and DFN's weights? If so name the "
            f"model '{name}{_QUICK_GELU}', if not '{name}{_GELU}', or put the checkpoint's "
            f"{checkpoint_config.OPEN_CLIP} beside it"
        )
    architecture = name
    if quick_gelu != _usually_quick_gelu(name):
        architecture += "+quickgelu" if quick_gelu else "+gelu"
    usual = asdict(PreprocessCfg())
    if preprocessing != {key: usual[key] for key in preprocessing}:
        architecture += json.dumps(preprocessing, sort_keys=True)
    return module, architecture


def _quick_gelu(
    name: str, pretrained: str, said: checkpoint_config.CheckpointConfig, *, plain: bool
) -> bool | None:
    """Whether a local checkpoint is to be read with QuickGELU; None if nothing says so."""
    named = True if name.endswith(_QUICK_GELU) else False if plain else None
    if named is not None and said.quick_gelu not in (None, named):
        base = name.removesuffix(_QUICK_GELU)
        raise ModelLoadError(
            f"'{pretrained}' was trained {'with' if said.quick_gelu else 'without'} QuickGELU, as "
            f"{said.source} says: name the model '{base}'"
        )
    if named is not None:
        return named
    if said.quick_gelu is not None:
        return said.quick_gelu
    return None if _has_both_activations(name) else _usually_quick_gelu(name)


def _usually_quick_gelu(name: str) -> bool:
    return bool(_config(name).get("quick_gelu", False))


def _preprocessing(name: str, said: checkpoint_config.CheckpointConfig) -> dict[str, Any]:
    """How a local checkpoint's images are preprocessed: as it says, or as all tags' are."""
    if said.preprocess_cfg:
        return _known(said.preprocess_cfg)
    tags = open_clip.list_pretrained_tags_by_model(name)
    every = [_known(open_clip.get_pretrained_cfg(name, tag)) for tag in tags]
    if every and all(one == every[0] for one in every):
        return every[0]
    log.warning(
        "PREPROCESSING: the checkpoint does not say how its images were preprocessed, and "
        "open_clip knows no one way for its architecture: OpenAI's is used; put the checkpoint's "
        f"{checkpoint_config.OPEN_CLIP} beside it if it is another",
        model=name,
    )
    return {}


def _known(preprocess_cfg: dict[str, Any]) -> dict[str, Any]:
    """What of a preprocessing does not follow from the architecture; as tuples, not lists."""
    values = {key: preprocess_cfg[key] for key in _PREPROCESSING if key in preprocess_cfg}
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}


def _created(name: str, **options: Any) -> nn.Module:
    text = open_clip.get_model_config(name)["text_cfg"]
    if "hf_model_name" in text:
        tower = str(hub.folder(text["hf_model_name"], hub.CONFIG))
        options["text_cfg"] = {**text, "hf_model_name": tower, "hf_model_pretrained": False}
    module: nn.Module = open_clip.create_model(
        name, precision="fp32", device="cpu", weights_only=True, **options
    )
    return module


def _check_obtainable(name: str, tag: str) -> None:
    repository_and_file = open_clip.get_pretrained_cfg(name, tag).get("hf_hub", "")
    if not repository_and_file or _is_cached(repository_and_file):
        return
    try:
        hub.reach()
    except OSError as error:
        raise _download_failed(name, tag, error) from error


def _is_cached(repository_and_file: str) -> bool:
    repository, _, file = repository_and_file.rpartition("/")
    # The names that open_clip tries, in its order.
    safe = Path(file).with_suffix(".safetensors").name if file else HF_SAFE_WEIGHTS_NAME
    files = (safe, file or HF_WEIGHTS_NAME)
    return any(hub.cached_file(repository, name) for name in files)


def _download_failed(name: str, tag: str, error: Exception) -> ModelLoadError:
    return ModelLoadError(
        f"the weights '{tag}' of '{name}' cannot be downloaded ({first_line(error)}): "
        "connect to the internet, or give --pretrained the path of a local checkpoint"
    )


def first_line(error: BaseException) -> str:
    """An error's kind and the first line of what it says."""
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


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Without PyTorch's warnings of files that it refuses: what is to be done is said here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
