"""The two kinds of replicas: `Model` holds the model, `Ingress` speaks HTTP before it.

An ingress is the same application as everywhere else, with budgets and all other state in the
database that the settings (environment variables `CRAFT_...`) name. It knows Ray Serve; it does not
know how many replicas there are nor where they run, which is the configuration's to say.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.deployment import Application
from ray.serve.handle import DeploymentHandle

from craft_server.app import create_app
from craft_server.engine import ModelFacts, WorkerDied
from craft_server.engine.remote import Answering
from craft_server.logs import configure_logging
from craft_server.ray_serve.engine import RayEngine
from craft_server.serving.model import engine_of
from craft_server.settings import Settings

# An engine has a fair queue of its own, which should see what waits.
MODEL_CALLS_AT_ONCE = 64
INGRESS_CALLS_AT_ONCE = 256


class EngineReplica(Answering):
    """Answers for an engine in this process, as Ray's replicas do."""

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
        self._application = create_app(Settings(), RayEngine(facts, replicas))

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._application


# For `serve run` and `serve deploy`, whose import path names it.
application: Application = Ingress.bind(Model.bind())  # type: ignore[attr-defined] # they are deployments
