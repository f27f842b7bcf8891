"""The engine: one CLIP model, its prompts, pictures, features and scores."""

from craft_server.garbage import uncollected

with uncollected():
    from craft_server.decoding.pixels import ImageError
    from craft_server.engine.engine import Engine
    from craft_server.engine.hosted import EngineState, HostedModel, ModelFacts
    from craft_server.engine.models import ModelLoadError, ModelSpec
    from craft_server.engine.prompts import Prompts, prompt_identity
    from craft_server.engine.worker import NotFinite, Overloaded, WorkerDied

__all__ = [
    "Engine",
    "EngineState",
    "HostedModel",
    "ImageError",
    "ModelFacts",
    "ModelLoadError",
    "ModelSpec",
    "NotFinite",
    "Overloaded",
    "Prompts",
    "WorkerDied",
    "prompt_identity",
]
