"""The model in replicas of a Ray Serve deployment, reached through its handle.

It knows how to ask and what Ray's failures mean. Which replica answers is Ray's choice, what a
replica does is its own affair. Arrays of some size travel through Ray's object store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from craft_server.engine import (
    EngineState,
    ModelFacts,
    Overloaded,
    Prompts,
    WorkerDied,
)
from craft_server.engine.remote import RemoteModel


class RayEngine(RemoteModel):
    """The model in other replicas.

    Args:
        facts: of the model.
        replicas: that hold it.
    """

    def __init__(self, facts: ModelFacts, replicas: DeploymentHandle[Any]) -> None:
        super().__init__(facts)
        self._replicas = replicas

    @property
    def alive(self) -> bool:
        """See `HostedModel`: Ray starts replicas again, and lets calls wait for one."""
        return True

    async def state(self) -> EngineState:
        """See `HostedModel`: that of one replica."""
        return EngineState.model_validate(await self._ask("state"))

    async def encode_pixels(
        self, pixels: NDArray[np.float32], *, tenant: str
    ) -> NDArray[np.float32]:
        """See `RemoteModel`."""
        features: NDArray[np.float32] = await self._ask("encode_images", pixels, tenant=tenant)
        return features

    async def encode_prompts(
        self, prompts: Prompts, classes: Sequence[str], *, tenant: str = ""
    ) -> NDArray[np.float32]:
        """See `HostedModel`."""
        features: NDArray[np.float32] = await self._ask(
            "encode_prompts", prompts, list(classes), tenant=tenant
        )
        return features

    async def log_probs(
        self,
        image_features: NDArray[np.float32],
        text_features: NDArray[np.float32],
        *,
        tenant: str = "",
    ) -> NDArray[np.float32]:
        """See `HostedModel`."""
        part: NDArray[np.float32] = await self._ask(
            "log_probs", image_features, text_features, tenant=tenant
        )
        return part

    async def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return await getattr(self._replicas, method).remote(*args, **kwargs)
        except (Overloaded, BackPressureError) as error:
            raise Overloaded("the model's replicas have as much to do as they may") from error
        except (WorkerDied, RayActorError, RayServeException) as error:
            raise WorkerDied(f"the model's replica has ended: {type(error).__name__}") from error
