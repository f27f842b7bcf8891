"""A hosted model as the rest of the server sees it, wherever it computes.

What needs no weights (reading texts and pictures as the model wants them) is done here, in the
process that asks; the rest is done by whoever has the weights: `Engine` in this process, or an
engine in another one. This module knows tokens and preprocessing; it does not know how anything is
computed, keys, money or HTTP.

Shapes: P prompts, N images, C classes; width is that of the features, which never leaves the
server.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Literal

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from craft_server.byte_cache import CacheUse
from craft_server.engine import identities
from craft_server.engine import images as pictures
from craft_server.engine import prompts as checks
from craft_server.engine.models import POCKET
from craft_server.engine.prompts import Prompts
from craft_server.engine.tokens import Tokenizer
from craft_shared.problems import FieldError

SCORES_PER_TASK = 2**22


class ModelFacts(BaseModel):
    """What is known of a model without its weights, as JSON.

    Attributes:
        name: the model's name.
        revision: opaque; changes with the weights.
        image_size: side in pixels that pictures are resized to.
        random_weights: whether the weights are random, and predictions therefore meaningless.
        context_length: the most tokens a text may have.
        preprocess_cfg: open_clip's description of how pictures are preprocessed.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    revision: str
    image_size: int
    random_weights: bool
    context_length: int
    preprocess_cfg: dict[str, Any]


class EngineState(BaseModel):
    """How an engine does.

    Attributes:
        waiting: turns that wait for the model; one is about as much as it does at once.
        busy_seconds: how long texts, images and scores have kept cores busy since the start.
        text_features: the memory of prompts that were asked before.
    """

    waiting: float
    busy_seconds: dict[str, float]
    text_features: CacheUse


class HostedModel(ABC):
    """One model that is hosted.

    Attributes:
        facts: what is known of it.
        name: its name.
        revision: of its weights.
        image_size: side in pixels that pictures are resized to.
        random_weights: whether predictions are meaningless.
    """

    def __init__(self, facts: ModelFacts) -> None:
        self.facts = facts
        self.name = facts.name
        self.revision = facts.revision
        self.image_size = facts.image_size
        self.random_weights = facts.random_weights
        self._tokenizer = Tokenizer(tokenizer_of(facts.name), facts.context_length)
        self._preprocess = transform_of(facts.preprocess_cfg)

    @staticmethod
    def use_one_core() -> None:
        """Lets the calling thread compute on one core, so that it takes none from the model."""
        torch.set_num_threads(1)

    def check_prompts(
        self, prompts: Prompts, classes: Sequence[str], *, tenant: str = ""
    ) -> list[FieldError]:
        """What is wrong with prompts and class names, by field; empty when nothing is.

        Only tokenises; thread-safe, and worth a thread of its own when there are many texts.
        """
        return checks.check_prompts(prompts, classes, self._tokenizer.of(tenant))

    def text_identities(
        self, prompts: Prompts, classes: Sequence[str], *, tenant: str = ""
    ) -> list[tuple[bytes, ...]]:
        """See `craft_server.engine.identities`. Only tokenises, as `check_prompts` does."""
        return identities.text_identities(prompts, classes, self._tokenizer.of(tenant))

    def decode_image(self, data: bytes, *, max_pixels: int) -> Tensor:
        """Decodes and preprocesses an encoded picture; thread-safe.

        Returns:
            float32 [3, image_size, image_size] on the CPU.

        Raises:
            ImageError: the picture cannot be used.
        """
        return pictures.decode(data, self._preprocess, max_pixels=max_pixels)

    async def score(
        self,
        image_features: NDArray[np.float32],
        text_features: NDArray[np.float32],
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
            Overloaded: too much work waits for the model.
            WorkerDied: the engine is closed or broken.
        """
        prompts, classes = text_features.shape[:2]
        scores = np.empty((prompts, len(image_features), classes), dtype=dtype)
        async for some_prompts, some_images, part in self.score_parts(
            image_features, text_features, tenant=tenant
        ):
            scores[some_prompts, some_images] = part
        return scores

    async def score_parts(
        self,
        image_features: NDArray[np.float32],
        text_features: NDArray[np.float32],
        *,
        tenant: str = "",
    ) -> AsyncIterator[tuple[slice, slice, NDArray[np.float32]]]:
        """What `score` answers, in float32 and in parts of bounded size: for who keeps less of it.

        Yields:
            The prompts and the images of a part, and its log-probabilities.

        Raises:
            Overloaded: too much work waits for the model.
            WorkerDied: the engine is closed or broken.
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
    @abstractmethod
    def alive(self) -> bool:
        """Whether work given now would be done, as far as is known."""

    @abstractmethod
    async def state(self) -> EngineState:
        """How the engine does.

        Raises:
            WorkerDied: there is none that answers.
        """

    @abstractmethod
    async def encode_images(
        self, images: Sequence[Tensor], *, tenant: str = ""
    ) -> NDArray[np.float32]:
        """Unit image features, [N, width], of what `decode_image` returned.

        Raises:
            Overloaded: too much work waits for the model.
            WorkerDied: the engine is closed or broken.
        """

    @abstractmethod
    async def encode_prompts(
        self, prompts: Prompts, classes: Sequence[str], *, tenant: str = ""
    ) -> NDArray[np.float32]:
        """Unit text features, [P, C, width], of prompts that `check_prompts` has passed.

        Raises:
            Overloaded: too much work waits for the model.
            WorkerDied: the engine is closed or broken.
        """

    @abstractmethod
    async def log_probs(
        self,
        image_features: NDArray[np.float32],
        text_features: NDArray[np.float32],
        *,
        tenant: str = "",
    ) -> NDArray[np.float32]:
        """One part of `score_parts`, [P, N, C]: of at most about `SCORES_PER_TASK` numbers.

        Raises:
            Overloaded: too much work waits for the model.
            WorkerDied: the engine is closed or broken.
        """

    @abstractmethod
    def close(self) -> None:
        """Finishes what waits and lets go of the model; may be called twice."""


def tokenizer_of(name: str) -> open_clip.SimpleTokenizer:
    """The tokenizer of the model of that name."""
    return open_clip.get_tokenizer("" if name == POCKET else name)


def transform_of(preprocess_cfg: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
    """The preprocessing that open_clip describes so: an RGB picture in, float32 [3, S, S] out."""
    transform: Callable[[Image.Image], Tensor] = image_transform_v2(
        PreprocessCfg(**preprocess_cfg), is_train=False
    )
    return transform
