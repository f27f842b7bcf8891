"""What hosted models have in common that compute in another process: how pictures travel there.

It knows pixels and how many are sent at a time; it does not know the way.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from craft_server.engine.hosted import HostedModel

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
