"""The craftbox client: tunes a vision-language model that it may only call.

The names that programs need are imported when they are first used (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from craft_client.api import Client
    from craft_client.async_api import AsyncClient
    from craft_client.estimator import CraFTClassifier

__all__ = ["AsyncClient", "Client", "CraFTClassifier"]

_HOMES = {
    "AsyncClient": "craft_client.async_api",
    "Client": "craft_client.api",
    "CraFTClassifier": "craft_client.estimator",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
