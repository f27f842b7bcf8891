"""The engine: one CLIP model, its prompts, pictures, features and scores.

It knows the model and batching. It does not know keys, money, HTTP or who asks.
"""

from craft_server.engine.engine import Engine
from craft_server.engine.identities import prompt_identity
from craft_server.engine.images import ImageError
from craft_server.engine.models import ModelLoadError, ModelSpec
from craft_server.engine.prompts import Prompts
from craft_server.engine.worker import Overloaded, WorkerDied

__all__ = [
    "Engine",
    "ImageError",
    "ModelLoadError",
    "ModelSpec",
    "Overloaded",
    "Prompts",
    "WorkerDied",
    "prompt_identity",
]
