"""The two kinds of replicas: `Model` holds the model, `Ingress` speaks HTTP before it.

An ingress is the same application as everywhere else, with budgets and all other state in the
database that the settings (environment variables `CRAFT_...`) name. It knows Ray Serve; it does not
know how many replicas there are nor where they run, which is the configuration's to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI
from numpy.typing import NDArray
from ray import serve
from ray.serve.deployment import Application
from ray.serve.handle import DeploymentHandle

from craft_server.app import create_app
from craft_server.cli.model import engine_of
from craft_server.engine import HostedModel, ModelFacts, Prompts, WorkerDied
from craft_server.logs import configure_logging
from craft_server.ray_serve.engine import RayEngine
from craft_server.settings import Settings

# An engine has a fair queue of its own, which should see what waits.
MODEL_CALLS_AT_ONCE = 64
INGRESS_CALLS_AT_ONCE = 256


class EngineReplica:
    """Answers for an engine in this process. Arrays arrive read-only, as Ray shares them."""

    def __init__(self, engine: HostedModel) -> None:
        self._engine = engine

    def check_health(self) -> None:
        """Called by Ray, which replaces a replica that fails it.

        Raises:
            WorkerDied: the engine is broken.
        """
        if not self._engine.alive:
            raise WorkerDied("the engine's worker has ended")

    async def facts(self) -> dict[str, Any]:
        """`ModelFacts`, as JSON."""
        return self._engine.facts.model_dump()

    async def state(self) -> dict[str, Any]:
        """`EngineState`, as JSON."""
        return (await self._engine.state()).model_dump()

    async def encode_images(
        self, pixels: NDArray[np.float32], *, tenant: str
    ) -> NDArray[np.float32]:
        """See `HostedModel`; pixels [N, 3, S, S]."""
        return await self._engine.encode_images(
            list(torch.from_numpy(pixels.copy())), tenant=tenant
        )

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


@serve.deployment(max_ongoing_requests=MODEL_CALLS_AT_ONCE)
class Model(EngineReplica):
    """Holds the model that the settings name."""

    def __init__(self) -> None:
        configure_logging()
        super().__init__(engine_of(Settings()))


@serve.deployment(max_ongoing_requests=INGRESS_CALLS_AT_ONCE)
@serve.ingress()
class Ingress:
    """The application: keys, budgets, decoding, answers."""

    async def __init__(  # type: ignore[misc] # which Ray awaits
        self, replicas: DeploymentHandle[Any]
    ) -> None:
        configure_logging()
        facts = ModelFacts.model_validate(await replicas.facts.remote())
        self._application = create_app(Settings(), RayEngine(facts, replicas))

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._application


# For `serve run` and `serve deploy`, whose import path names it.
application: Application = Ingress.bind(Model.bind())  # type: ignore[attr-defined] # they are deployments
