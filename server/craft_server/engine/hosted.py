"""A hosted model as the rest of the server sees it, wherever it computes.

What needs no weights (reading texts and pictures as the model wants them) is done here, in the
process that asks; the rest is done by whoever has the weights: `Engine` in this process, or an
engine in another one.

Shapes: P prompts, N images, C classes; width is that of the features, which never leaves the
server.
"""

from __future__ import annotations

import asyncio
import math
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from open_clip.transform import PreprocessCfg
from open_clip.utils import to_2tuple
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from craft_server.byte_cache import CacheUse
from craft_server.decoding.decoders import Decoders, Pixels
from craft_server.decoding.pixels import ImageError
from craft_server.decoding.process import THUMBNAIL, VIEW
from craft_server.engine import hub
from craft_server.engine import prompts as checks
from craft_server.engine.models import (
    DEFAULT_CONTEXT_LENGTH,
    EXTRA,
    POCKET,
    ModelLoadError,
    first_line,
)
from craft_server.engine.prompts import Array, Prompts, text_identities
from craft_server.engine.tokens import Tokenizer, UnreadableTokenizerError
from craft_server.engine.vision import Normalisation
from craft_server.engine.worker import Overloaded, Steps, Worker
from craft_server.exhaustion import is_exhaustion
from craft_shared.adapter import prompted
from craft_shared.image_view import View
from craft_shared.problems import FieldError

# Pixels take much more room than files. A multiple of what any device encodes at a time, so that
# pictures are encoded in the same company as in one process.
IMAGES_PER_MESSAGE = 128
SCORES_PER_TASK = 2**22
# As many images are decoded at a time as there are cores, but for memory's sake no more than these.
MOST_READERS = 32

R = TypeVar("R")
# Of prompts' texts, float32 [P, C, width]; a tensor where they are on a GPU, and stay there.
TextFeatures = Array | Tensor


class ModelFacts(BaseModel):
    """What is known of a model without its weights, as JSON."""

    model_config = ConfigDict(frozen=True)

    name: str  # the model's name
    revision: str  # opaque; changes with the weights
    image_size: int  # side in pixels that pictures are resized to
    random_weights: bool  # whether the weights are random, and predictions therefore meaningless
    context_length: int  # the most tokens a text may have
    preprocess_cfg: dict[str, Any]  # open_clip's description of how pictures are preprocessed
    # What its towers compute in.
    images_in: str = "float32"
    texts_in: str = "float32"


class EngineState(BaseModel):
    """How an engine does."""

    waiting: float  # turns that wait for the model; one is about as much as it does at once
    # How long texts, images and scores have kept cores busy since the start.
    busy_seconds: dict[str, float]
    text_features: CacheUse  # the memory of prompts that were asked before
    # Of a GPU's, in bytes: what is `allocated`, `reserved`, and allocated at most so far (`peak`).
    device_memory: dict[str, int] = {}


class HostedModel(ABC):
    """One model that is hosted."""

    def __init__(self, facts: ModelFacts) -> None:
        self.facts = facts
        self.name = facts.name
        self.revision = facts.revision
        self.image_size = facts.image_size
        self.random_weights = facts.random_weights
        self._tokenizer = _tokenizer(facts)
        self.view, _ = preprocessing_of(facts.preprocess_cfg)
        cores = min(os.cpu_count() or 1, MOST_READERS)
        self._reader = Worker(
            f"reader-{facts.name}", threads=cores, capacity=math.inf, aside=max(2, cores)
        )
        self._decoders = Decoders(self.view, idle=cores)

    async def check_prompts(
        self, prompts: Prompts, classes: Sequence[str], *, tenant: str = ""
    ) -> list[FieldError]:
        """What is wrong with prompts and class names, by field; empty when nothing is.

        Only tokenises, in turns with others' calls; ends when it is cancelled.
        """
        return await self._read(
            checks.check_prompts(prompts, classes, self._tokenizer.of(tenant)), tenant
        )

    async def text_identities(
        self, prompts: Prompts, classes: Sequence[str], *, tenant: str = ""
    ) -> list[tuple[bytes, ...]]:
        """See `craft_server.engine.prompts`. Only tokenises, as `check_prompts` does."""
        return await self._read(
            text_identities(prompts, classes, self._tokenizer.of(tenant)), tenant
        )

    async def decode_images(
        self,
        files: Sequence[bytes],
        *,
        max_pixels: int,
        visual: NDArray[np.float32] | None = None,
        tenant: str = "",
    ) -> list[Tensor | ImageError]:
        """Decodes encoded images and resizes them, in turns with others' calls.

        A `visual` prompt, float32 [image_size, image_size, 3], is added to their pixels.

        In processes of their own, each image within bounds of time and memory; ends when it is
        cancelled.

        Returns:
            Of each uint8 [image_size, image_size, 3] on the CPU, or what is wrong with it.

        Raises:
            Overloaded: no process can be started.
        """
        return await self._reader.take_steps(
            [self._decode(file, max_pixels, visual) for file in files], tenant=tenant
        )

    async def thumbnail(
        self, file: bytes, *, max_pixels: int, tenant: str = ""
    ) -> Pixels | ImageError:
        """Like `decode_images` of one, for people: small, whole, uint8 [height, width, 3]."""
        return await self._read(self._pixels(file, max_pixels, THUMBNAIL), tenant)

    def _decode(
        self, file: bytes, max_pixels: int, visual: NDArray[np.float32] | None
    ) -> Steps[Tensor | ImageError]:
        pixels = yield from self._pixels(file, max_pixels, VIEW)
        if isinstance(pixels, ImageError):
            return pixels
        return torch.from_numpy(prompted(pixels, visual))

    def _pixels(self, file: bytes, max_pixels: int, wanted: bytes) -> Steps[Pixels | ImageError]:
        try:
            return (yield from self._decoders.decode(file, max_pixels=max_pixels, wanted=wanted))
        except OSError as error:
            if is_exhaustion(error):
                raise
            raise Overloaded(f"no image can be decoded now: {error.strerror}") from error

    async def _read(self, steps: Steps[R], tenant: str) -> R:
        (result,) = await self._reader.take_steps([steps], tenant=tenant)
        return result

    async def score(
        self,
        image_features: Array,
        text_features: TextFeatures,
        dtype: Literal["float32", "float16"] = "float32",
        *,
        tenant: str = "",
    ) -> NDArray[Any]:
        """Log-probabilities over the classes, [P, N, C].

        log softmax(logit scale * x . t), computed in float32 (Radford et al., 2021, section 3.1.2).

        Args:
            image_features: x, [N, width].
            text_features: t, [P, C, width].
            dtype: of the answer.
            tenant: who asks.

        Raises:
            Overloaded: too much work waits for the model, or it has too little memory.
            WorkerDied: the engine is closed or broken.
            NotFinite: the answer is none.
        """
        prompts, classes = text_features.shape[:2]
        scores = np.empty((prompts, len(image_features), classes), dtype=dtype)
        async for some_prompts, some_images, part in self.score_parts(
            image_features, text_features, tenant=tenant
        ):
            scores[some_prompts, some_images] = part
        return scores

    async def score_parts(
        self, image_features: Array, text_features: TextFeatures, *, tenant: str = ""
    ) -> AsyncIterator[tuple[slice, slice, Array]]:
        """What `score` answers, in float32 and in parts of bounded size: for who keeps less of it.

        Yields:
            The prompts and the images of a part, and its log-probabilities.

        Raises:
            Overloaded: too much work waits for the model, or it has too little memory.
            WorkerDied: the engine is closed or broken.
            NotFinite: the answer is none.
        """
        prompts, classes = text_features.shape[:2]
        images = len(image_features)
        rows = max(1, min(images, SCORES_PER_TASK // max(1, classes)))
        step = max(1, SCORES_PER_TASK // (rows * max(1, classes)))
        for i in range(0, prompts, step):
            for j in range(0, images, rows):
                some_prompts, some_images = slice(i, i + step), slice(j, j + rows)
                part = await self.log_probs(
                    image_features[some_images], text_features[some_prompts], tenant=tenant
                )
                yield some_prompts, some_images, part

    @property
    def alive(self) -> bool:
        """Whether work given now would be done, as far as is known."""
        return self._reader.alive

    def when_dead(self, function: Callable[[], object]) -> None:
        """Calls a function, on any thread, once what computes in this process has ended by itself.

        Nothing but another process helps then.
        """
        self._reader.when_dead(function)

    @abstractmethod
    async def state(self) -> EngineState:
        """How the engine does.

        Raises:
            WorkerDied: there is none that answers.
        """

    @abstractmethod
    async def encode_images(self, images: Sequence[Tensor], *, tenant: str = "") -> Array:
        """Unit image features, [N, width], of what `decode_images` returned.

        Raises:
            Overloaded: too much work waits for the model, or it has too little memory.
            WorkerDied: the engine is closed or broken.
            NotFinite: the answer is none.
        """

    @abstractmethod
    async def encode_prompts(
        self, prompts: Prompts, classes: Sequence[str], *, tenant: str = ""
    ) -> TextFeatures:
        """Unit text features, [P, C, width], of prompts that `check_prompts` has passed.

        Raises:
            Overloaded: too much work waits for the model, or it has too little memory.
            WorkerDied: the engine is closed or broken.
            NotFinite: the answer is none.
        """

    @abstractmethod
    async def log_probs(
        self, image_features: Array, text_features: TextFeatures, *, tenant: str = ""
    ) -> Array:
        """One part of `score_parts`, [P, N, C]: of at most about `SCORES_PER_TASK` numbers.

        Raises:
            Overloaded: too much work waits for the model, or it has too little memory.
            WorkerDied: the engine is closed or broken.
            NotFinite: the answer is none.
        """

    def close(self) -> None:
        """Finishes what waits and lets go of the model; may be called twice."""
        self._decoders.close()
        self._reader.close()


def on_host(features: TextFeatures) -> Array:
    """For whoever does not have them scored; waits for the GPU that they are on."""
    return features if isinstance(features, np.ndarray) else features.cpu().numpy()


def _tokenizer(facts: ModelFacts) -> Tokenizer:
    try:
        return Tokenizer(tokenizer_of(facts.name), facts.context_length)
    except UnreadableTokenizerError as error:
        raise ModelLoadError(f"the tokenizer of '{facts.name}' cannot be used: {error}") from error


def tokenizer_of(name: str) -> SimpleTokenizer | HFTokenizer:
    """The tokenizer of the model of that name.

    Raises:
        ModelLoadError: its files are not here, or cannot be read.
    """
    config = None if name == POCKET else open_clip.get_model_config(name)
    text = config["text_cfg"] if config else {}
    repository = text.get("hf_tokenizer_name")
    if not repository:
        return open_clip.get_tokenizer("" if name == POCKET else name)
    try:
        folder = hub.folder(repository, hub.TOKENIZER)
    except hub.MissingFilesError as error:
        raise ModelLoadError(f"model '{name}' cannot be loaded: {error}") from error
    try:
        return HFTokenizer(
            str(folder),
            context_length=text.get("context_length", DEFAULT_CONTEXT_LENGTH),
            tokenizer_mode=text.get("tokenizer_mode"),
            trust_remote_code=False,
            **text.get("tokenizer_kwargs", {}),
        )
    except Exception as error:
        raise ModelLoadError(
            f"the tokenizer of '{name}', of '{repository}', cannot be read "
            f"({first_line(error)}): it needs "
            f"pip install 'craftbox[{EXTRA}]' and whole files in {folder}"
        ) from error


def preprocessing_of(preprocess_cfg: dict[str, Any]) -> tuple[View, Callable[[Pixels], Tensor]]:
    """The preprocessing that open_clip describes so, in two parts.

    Returns:
        What of an image the model sees, and what makes float32 [3, height, width] of its pixels
        [height, width, 3].
    """
    described = PreprocessCfg(**preprocess_cfg)
    height, width = to_2tuple(described.size)
    view = View(
        height,
        width,
        described.resize_mode or "shortest",
        bilinear=described.interpolation == "bilinear",
        fill=described.fill_color,
    )
    normalise = Normalisation(preprocess_cfg, torch.device("cpu"))
    return view, lambda pixels: normalise([torch.from_numpy(pixels)])[0]


class RemoteModel(HostedModel):
    """A hosted model in another process."""

    async def encode_images(self, images: Sequence[Tensor], *, tenant: str = "") -> Array:
        """See `HostedModel`."""
        cuts = range(0, len(images), IMAGES_PER_MESSAGE)
        parts = [torch.stack(list(images[i : i + IMAGES_PER_MESSAGE])).numpy() for i in cuts]
        if not parts:
            parts = [np.zeros((0, self.image_size, self.image_size, 3), np.uint8)]
        features = await asyncio.gather(*(self.encode_pixels(p, tenant=tenant) for p in parts))
        return np.concatenate(features)

    @abstractmethod
    async def encode_pixels(self, pixels: Pixels, *, tenant: str) -> Array:
        """Features [N, width] of images uint8 [N, S, S, 3], a message's worth.

        Raises:
            Overloaded: too much work waits for the model, or it has too little memory.
            WorkerDied: the engine is closed or broken.
            NotFinite: the answer is none.
        """


class Answering:
    """Answers for an engine in this process, which other processes ask. Shapes: `HostedModel`."""

    def __init__(self, engine: HostedModel) -> None:
        self._engine = engine

    async def encode_images(self, pixels: Pixels, *, tenant: str) -> Array:
        """See `RemoteModel.encode_pixels`."""
        images = list(torch.from_numpy(pixels.copy()))
        return await self._engine.encode_images(images, tenant=tenant)

    async def encode_prompts(
        self, prompts: Prompts, classes: Sequence[str], *, tenant: str
    ) -> Array:
        """See `HostedModel`."""
        writable = replace(prompts, codes=prompts.codes.copy())
        features = await self._engine.encode_prompts(writable, classes, tenant=tenant)
        return await asyncio.to_thread(on_host, features)

    async def log_probs(self, images: Array, texts: Array, *, tenant: str) -> Array:
        """See `HostedModel`."""
        return await self._engine.log_probs(images.copy(), texts.copy(), tenant=tenant)
