"""What models in another process have in common, whatever the way there: both of its ends.

It knows that pictures travel as pixels, some at a time, and that arrays arrive read-only, which
torch does not take. It does not know the way.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from craft_server.engine.hosted import HostedModel
from craft_server.engine.prompts import Prompts

# Pixels take much more room than files. A multiple of what any device encodes at a time, so that
# pictures are encoded in the same company as in one process.
IMAGES_PER_MESSAGE = 32


class RemoteModel(HostedModel):
    """A hosted model in another process."""

    async def encode_images(
        self, images: Sequence[Tensor], *, tenant: str = ""
    ) -> NDArray[np.float32]:
        """See `HostedModel`."""
        cuts = range(0, len(images), IMAGES_PER_MESSAGE)
        parts = [torch.stack(list(images[i : i + IMAGES_PER_MESSAGE])).numpy() for i in cuts]
        if not parts:
            parts = [np.zeros((0, 3, self.image_size, self.image_size), np.float32)]
        features = await asyncio.gather(*(self.encode_pixels(p, tenant=tenant) for p in parts))
        return np.concatenate(features)

    @abstractmethod
    async def encode_pixels(
        self, pixels: NDArray[np.float32], *, tenant: str
    ) -> NDArray[np.float32]:
        """Features [N, width] of preprocessed pictures [N, 3, S, S], a message's worth.

        Raises:
            Overloaded: too much work waits for the model.
            WorkerDied: the engine is closed or broken.
        """


class Answering:
    """Answers for an engine in this process, which other processes ask. Shapes: `HostedModel`."""

    def __init__(self, engine: HostedModel) -> None:
        self._engine = engine

    async def encode_images(
        self, pixels: NDArray[np.float32], *, tenant: str
    ) -> NDArray[np.float32]:
        """See `RemoteModel.encode_pixels`."""
        images = list(torch.from_numpy(pixels.copy()))
        return await self._engine.encode_images(images, tenant=tenant)

    async def encode_prompts(
        self, prompts: Prompts, classes: Sequence[str], *, tenant: str
    ) -> NDArray[np.float32]:
        """See `HostedModel`."""
        writable = replace(prompts, codes=prompts.codes.copy())
        return await self._engine.encode_prompts(writable, classes, tenant=tenant)

    async def log_probs(
        self, images: NDArray[np.float32], texts: NDArray[np.float32], *, tenant: str
    ) -> NDArray[np.float32]:
        """See `HostedModel`."""
        return await self._engine.log_probs(images.copy(), texts.copy(), tenant=tenant)
