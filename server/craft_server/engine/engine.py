"""The engine: pictures and prompts in, unit features and log-probabilities out.

It knows one model and how work is cut into tasks for the one thread that owns it, so that several
requests take turns. It does not know keys, money, HTTP, or what an answer may reveal.

Shapes: P prompts, N images, C classes; width is that of the features, which never leaves the
server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from craft_server.engine import images as pictures
from craft_server.engine import prompts as checks
from craft_server.engine.batches import Batch, batches
from craft_server.engine.context import ContextSpace
from craft_server.engine.models import LoadedModel, ModelLoadError, ModelSpec, load_model
from craft_server.engine.prompts import Prompts
from craft_server.engine.text import TextTower, UnsupportedTowerError
from craft_server.engine.tokens import Ids, Tokens
from craft_server.engine.worker import Worker
from craft_shared.problems import FieldError
from craft_shared.wire import Context

# On a CPU few pictures at a time are faster: what they become stays in its caches.
IMAGES_PER_TASK = {"cpu": 8, "cuda": 32}
# One task should take a second or two, so that others get their turn.
TOKENS_PER_TASK = {"cpu": 4096, "cuda": 65536}
SCORES_PER_TASK = 2**22


@dataclass(frozen=True)
class _Moved:
    """Codes that move the first words of a text; without them a text is read as it stands."""

    context: Context
    codes: NDArray[np.float32]


class Engine:
    """One model and its worker thread.

    Attributes:
        name: the model's name.
        revision: opaque; changes with the weights.
        image_size: side in pixels that pictures are resized to.
        random_weights: whether the weights are random, and predictions therefore meaningless.
    """

    def __init__(self, name: str, model: LoadedModel) -> None:
        self.name = name
        self.revision = model.revision
        self.image_size = model.image_size
        self.random_weights = model.random_weights
        self._model = model
        self._tower = TextTower(model.module)
        self._tokens = Tokens(model.tokenize, self._tower.context_length)
        self._contexts = ContextSpace(self._tower, self._tokens)
        self._images_per_task = IMAGES_PER_TASK[model.device.type]
        self._tokens_per_task = TOKENS_PER_TASK[model.device.type]
        self._worker = Worker(f"engine-{name}")
        self._features = self._worker.submit(self._warm_up).result()

    @classmethod
    def load(cls, spec: ModelSpec) -> Self:
        """Loads the model, starts its worker thread, and runs both towers once.

        Raises:
            ModelLoadError: the model cannot be loaded.
        """
        try:
            return cls(spec.name, load_model(spec))
        except UnsupportedTowerError as error:
            raise ModelLoadError(
                f"model '{spec.name}' cannot be used: {error}; choose another, such as RN50"
            ) from error
        except torch.OutOfMemoryError as error:
            raise ModelLoadError(
                f"model '{spec.name}' does not fit the memory of device '{spec.device}': "
                "free some, or choose a smaller model"
            ) from error

    @property
    def alive(self) -> bool:
        """Whether the worker thread runs."""
        return self._worker.alive

    def close(self) -> None:
        """Finishes what waits and ends the worker thread; may be called twice."""
        self._worker.close()

    def check_prompts(self, prompts: Prompts, classes: Sequence[str]) -> list[FieldError]:
        """What is wrong with prompts and class names, by field; empty when nothing is.

        Only tokenises; thread-safe, and worth a thread of its own when there are many texts.
        """
        return checks.check_prompts(prompts, classes, self._tokens, width=self._tower.width)

    def decode_image(self, data: bytes, *, max_pixels: int) -> Tensor:
        """Decodes and preprocesses an encoded picture; thread-safe.

        Returns:
            float32 [3, image_size, image_size] on the CPU.

        Raises:
            ImageError: the picture cannot be used.
        """
        return pictures.decode(data, self._model.preprocess, max_pixels=max_pixels)

    async def encode_images(self, images: Sequence[Tensor]) -> NDArray[np.float32]:
        """Unit image features, [N, width], of what `decode_image` returned.

        Raises:
            Overloaded: too many tasks wait for the model.
            WorkerDied: the engine is closed or broken.
        """
        step = self._images_per_task
        parts = [
            await self._worker.run(partial(self._image_features, images[i : i + step]))
            for i in range(0, len(images), step)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self._features), np.float32)

    async def encode_prompts(self, prompts: Prompts, classes: Sequence[str]) -> NDArray[np.float32]:
        """Unit text features, [P, C, width], of prompts that `check_prompts` has passed.

        Raises:
            Overloaded: too many tasks wait for the model.
            WorkerDied: the engine is closed or broken.
        """
        parts = [
            await self._text_features(partial(self._tokens.template, template), classes)
            for template in prompts.templates
        ]
        if prompts.context is not None and len(prompts.codes):
            parts.append(
                await self._text_features(
                    partial(self._tokens.context, prompts.context.init),
                    classes,
                    _Moved(prompts.context, prompts.codes),
                )
            )
        return np.concatenate(parts)

    async def score(
        self,
        image_features: NDArray[np.float32],
        text_features: NDArray[np.float32],
        dtype: Literal["float32", "float16"] = "float32",
    ) -> NDArray[Any]:
        """Log-probabilities over the classes, [P, N, C].

        log softmax(logit scale * x . t), computed in float32 (Radford et al., 2021, section 3.1.2).

        Args:
            image_features: x, [N, width].
            text_features: t, [P, C, width].
            dtype: of the answer.

        Raises:
            Overloaded: too many tasks wait for the model.
            WorkerDied: the engine is closed or broken.
        """
        prompts, classes = text_features.shape[:2]
        scores = np.empty((prompts, len(image_features), classes), dtype=dtype)
        async for some_prompts, some_images, part in self.score_parts(
            image_features, text_features
        ):
            scores[some_prompts, some_images] = part
        return scores

    async def score_parts(
        self, image_features: NDArray[np.float32], text_features: NDArray[np.float32]
    ) -> AsyncIterator[tuple[slice, slice, NDArray[np.float32]]]:
        """What `score` answers, in float32 and in parts of bounded size: for who keeps less of it.

        Yields:
            The prompts and the images of a part, and its log-probabilities.

        Raises:
            Overloaded: too many tasks wait for the model.
            WorkerDied: the engine is closed or broken.
        """
        prompts, classes = text_features.shape[:2]
        images = len(image_features)
        rows = max(1, min(images, SCORES_PER_TASK // max(1, classes)))
        step = max(1, SCORES_PER_TASK // (rows * max(1, classes)))
        for i in range(0, prompts, step):
            for j in range(0, images, rows):
                some_prompts, some_images = slice(i, i + step), slice(j, j + rows)
                task = partial(
                    self._log_probs, image_features[some_images], text_features[some_prompts]
                )
                yield some_prompts, some_images, await self._worker.run(task)

    async def _text_features(
        self, sequence: Callable[[str], Ids], classes: Sequence[str], moved: _Moved | None = None
    ) -> NDArray[np.float32]:
        """Features of the texts of one template, [1, C, width], or of K codes, [K, C, width]."""
        sequences = await asyncio.to_thread(lambda: [sequence(name) for name in classes])
        prompts = 1 if moved is None else len(moved.codes)
        features = np.empty((prompts, len(classes), self._features), np.float32)
        for batch in batches(sequences, prompts=prompts, max_tokens=self._tokens_per_task):
            task = partial(self._encode_batch, batch, moved, features)
            await self._worker.run(task)
        return features

    # What follows runs in the worker thread.

    @torch.inference_mode()
    def _encode_batch(
        self, batch: Batch, moved: _Moved | None, features: NDArray[np.float32]
    ) -> None:
        """Writes the features of a batch where they belong in `features`."""
        tower, rows = self._tower, slice(batch.prompts.start, batch.prompts.stop)
        embeddings = tower.embed(torch.tensor([batch.prefix]))
        if moved is not None:
            words = self._contexts.embeddings(moved.context, moved.codes[rows]).to(embeddings)
            embeddings = embeddings.repeat(len(words), 1, 1)
            embeddings[:, 1 : 1 + words.shape[1]] = words
        prefix = tower.read_prefix(embeddings)
        for group in batch.groups:
            encoded = tower.encode(prefix, tower.embed(torch.tensor(group.suffixes)))
            features[rows, list(group.classes)] = encoded.cpu().numpy()

    @torch.inference_mode()
    def _image_features(self, images: Sequence[Tensor]) -> NDArray[np.float32]:
        # Attributes of modules that share no type.
        module: Any = self._model.module
        pixels = torch.stack(list(images)).to(
            self._model.device, self._model.dtype, memory_format=torch.channels_last
        )
        features = module.encode_image(pixels).float()
        unit: NDArray[np.float32] = functional.normalize(features, dim=-1).cpu().numpy()
        return unit

    @torch.inference_mode()
    def _log_probs(
        self, images: NDArray[np.float32], texts: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        x = torch.from_numpy(images).to(self._model.device)
        t = torch.from_numpy(texts).to(self._model.device)
        logits = self._model.logit_scale * (x @ t.mT)
        log_probs: NDArray[np.float32] = logits.log_softmax(dim=-1).cpu().numpy()
        return log_probs

    def _warm_up(self) -> int:
        """Runs both towers once and tells the width of their features."""
        blank = torch.zeros(3, self.image_size, self.image_size)
        width: int = self._image_features([blank]).shape[1]
        sequences = [self._tokens.template("a photo of a {}.", "cat")]
        features = np.empty((1, 1, width), np.float32)
        for batch in batches(sequences, prompts=1, max_tokens=self._tokens_per_task):
            self._encode_batch(batch, None, features)
        return width
