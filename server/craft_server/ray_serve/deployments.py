"""The two kinds of replicas: `Model` holds the model, `Ingress` speaks HTTP before it.

An ingress is the same application as everywhere else, with budgets and all other state in the
database that the settings (environment variables `CRAFT_...`) name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.deployment import Application
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from craft_server.app import create_app
from craft_server.decoding.decoders import Pixels
from craft_server.engine import (
    EngineState,
    HostedModel,
    ModelFacts,
    Overloaded,
    Prompts,
    WorkerDied,
)
from craft_server.engine.hosted import Answering, RemoteModel, TextFeatures, on_host
from craft_server.engine.prompts import Array
from craft_server.root_path import RootPathMiddleware
from craft_server.serving.listening import engine_of
from craft_server.settings import Settings
from craft_server.telemetry import configure_logging

# An engine has a fair queue of its own, which should see what waits.
MODEL_CALLS_AT_ONCE = 64
INGRESS_CALLS_AT_ONCE = 256


class RayEngine(RemoteModel):
    """The model in other replicas."""

    def __init__(self, facts: ModelFacts, replicas: DeploymentHandle[Any]) -> None:
        super().__init__(facts)
        self._replicas = replicas

    async def state(self) -> EngineState:
        """See `HostedModel`: that of one replica."""
        return EngineState.model_validate(await self._ask("state"))

    async def encode_pixels(self, pixels: Pixels, *, tenant: str) -> Array:
        """See `RemoteModel`."""
        features: Array = await self._ask("encode_images", pixels, tenant=tenant)
        return features

    async def encode_prompts(
        self, prompts: Prompts, classes: Sequence[str], *, tenant: str = ""
    ) -> Array:
        """See `HostedModel`."""
        features: Array = await self._ask("encode_prompts", prompts, list(classes), tenant=tenant)
        return features

    async def log_probs(
        self, image_features: Array, text_features: TextFeatures, *, tenant: str = ""
    ) -> Array:
        """See `HostedModel`."""
        texts = on_host(text_features)
        part: Array = await self._ask("log_probs", image_features, texts, tenant=tenant)
        return part

    async def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return await getattr(self._replicas, method).remote(*args, **kwargs)
        except (Overloaded, BackPressureError) as error:
            raise Overloaded("the model's replicas have as much to do as they may") from error
        except (WorkerDied, RayActorError, RayServeException) as error:
            raise WorkerDied(f"the model's replica has ended: {type(error).__name__}") from error


class EngineReplica(Answering):
    """Answers for an engine in this process, as Ray's replicas do.

    The process ends with the engine, so that Ray starts another at once.
    """

    def __init__(self, engine: HostedModel) -> None:
        super().__init__(engine)
        engine.when_dead(partial(os._exit, 1))

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
        self._engine = RayEngine(facts, replicas)
        settings = Settings()
        self._application = RootPathMiddleware(
            create_app(settings, self._engine), settings.root_path
        )

    def check_health(self) -> None:
        """Called by Ray, as `EngineReplica`'s.

        Raises:
            WorkerDied: what reads texts and images here is broken.
        """
        if not self._engine.alive:
            raise WorkerDied("the reader has ended")

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._application


# For `serve run` and `serve deploy`, whose import path names it.
application: Application = Ingress.bind(Model.bind())  # type: ignore[attr-defined] # they are deployments
