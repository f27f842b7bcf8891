"""A model's two towers in the fastest way that agrees with its own code in single precision."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import structlog
import torch
from open_clip.utils import to_2tuple
from torch import Tensor

from craft_server.engine.models import LoadedModel, ModelLoadError
from craft_server.engine.padded_text import PaddedTextTower
from craft_server.engine.precision import (
    MOST_ROUNDING,
    PROBE_NOUNS,
    PROBE_TEMPLATE,
    Precision,
    Reference,
    dtypes_to_try,
    probe_images,
)
from craft_server.engine.text import Moved, TextTower, UnsupportedTowerError
from craft_server.engine.tokens import Tokenizer
from craft_server.engine.vision import (
    CompiledVision,
    EagerVision,
    VisionTower,
    converted_graph,
    keep_graph,
    kept_graph,
)

AnyTextTower = TextTower | PaddedTextTower

log = structlog.get_logger(__name__)


class Towers(NamedTuple):
    """Both towers of a model, ready, and what each computes in, such as `float32`.

    The exact ones are in single precision, for what overflows in float16; where that cannot be they
    are None.
    """

    vision: VisionTower
    texts: AnyTextTower
    images_in: str
    texts_in: str
    exact_vision: VisionTower | None
    exact_texts: AnyTextTower | None


@torch.inference_mode()
def towers_of(model: LoadedModel, precision: Precision, cores: int, tokenizer: Tokenizer) -> Towers:
    """The towers of a model, whose own module must not be used any more.

    Args:
        model: whose they are.
        precision: `auto` takes half precision where the device is faster in it and it agrees,
            `fastest` wherever it is faster.
        cores: how many tasks at a time may use the vision tower.
        tokenizer: the model's.

    Raises:
        UnsupportedTowerError: the text tower has no table of token embeddings.
        ModelLoadError: this processor does not compute in that precision.
    """
    texts = _text_tower(model, tokenizer.padding)
    probe = _Probe(model, texts, tokenizer)
    vision = _single_precision(model, probe, cores)
    reference = cache(lambda: probe.reference(vision))  # nothing is read that is not compared
    if isinstance(vision, CompiledVision):
        del model.module.visual  # it takes as much memory again
    order = dtypes_to_try(precision, model.device)
    checked = precision == "auto"
    of_images, images_in = _first(
        "images",
        vision,
        order,
        lambda found: not checked or reference().agrees(images=probe.images(found)),
    )
    of_texts, texts_in = _first(
        "texts",
        texts,
        order,
        lambda found: not checked or reference().agrees(texts=probe.texts(found)),
    )
    return Towers(
        of_images,
        of_texts,
        images_in,
        texts_in,
        exact_vision=vision if images_in == "float16" else None,
        exact_texts=texts if texts_in == "float16" else None,
    )


class _Probe:
    """Features of the probes, read by one tower or another."""

    def __init__(self, model: LoadedModel, texts: AnyTextTower, tokenizer: Tokenizer) -> None:
        visual: Any = model.module.visual
        self._images = probe_images(*to_2tuple(visual.image_size))
        sequences = list(map(tokenizer.of().template(PROBE_TEMPLATE), PROBE_NOUNS))
        (pack,) = texts.packs(
            sequences, prompts=1, max_tokens=len(sequences) * model.context_length
        )
        self._texts = Moved(pack, None)
        self._exact_texts = texts
        self._logit_scale = model.logit_scale

    def images(self, tower: VisionTower) -> Tensor:
        """[N, width]."""
        return torch.from_numpy(tower.encode(self._images))

    def texts(self, tower: AnyTextTower) -> Tensor:
        """[C, width]."""
        return tower.encode(self._texts)[0].cpu()

    def reference(self, vision: VisionTower) -> Reference:
        """What single precision makes of the probes."""
        return Reference(self.images(vision), self.texts(self._exact_texts), self._logit_scale)


def _single_precision(model: LoadedModel, probe: _Probe, cores: int) -> VisionTower:
    """Compiled on a CPU, where that can be done."""
    eager = EagerVision(model)
    if model.device.type != "cpu" or importlib.util.find_spec("openvino") is None:
        return eager
    graph = kept_graph(model)
    if graph is not None:
        return CompiledVision(graph, cores)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            compiled = CompiledVision(converted_graph(model, folder), cores)
            if not probe.reference(eager).agrees(images=probe.images(compiled), most=MOST_ROUNDING):
                raise ValueError("its features differ from PyTorch's")
        except Exception as error:  # whatever a converter raises on a layer that it does not know
            log.warning(
                "SLOW IMAGES: OpenVINO cannot compile the vision tower, PyTorch runs it instead",
                model=model.name,
                reason=str(error).partition("\n")[0],
            )
            return eager
        keep_graph(model, folder)
    return compiled


A = TypeVar("A", VisionTower, AnyTextTower)


def _first(
    what: str, tower: A, order: Sequence[torch.dtype], fits: Callable[[A], bool]
) -> tuple[A, str]:
    """The tower in the first precision in which it fits, and that precision."""
    for dtype in order:
        name = str(dtype).removeprefix("torch.")
        try:
            found = tower.in_precision(dtype)
        except RuntimeError as error:  # of a compiler
            reason = str(error).partition("\n")[0]
            log.info("precision refused: it does not compile", of=what, precision=name, why=reason)
            continue
        if dtype == torch.float32 or fits(found):
            log.info("precision chosen", of=what, precision=name)
            return found, name
        log.info("precision refused: it is too far from float32", of=what, precision=name)
    raise ModelLoadError(f"this processor cannot compute {what} in {name}: use --precision auto")


def _text_tower(model: LoadedModel, padding: int) -> AnyTextTower:
    try:
        return TextTower(model.module)
    except UnsupportedTowerError as error:
        tower = PaddedTextTower(model.module, model.context_length, padding)
        log.warning(
            "SLOW TEXTS: every text is read whole, under each prompt anew; choose a model with a "
            "causal text tower, such as RN50 or ViT-B-32, if queries should be fast",
            model=model.name,
            reason=str(error),
            tokens_a_text="as many as it has" if tower.sees_no_padding else model.context_length,
        )
        return tower
