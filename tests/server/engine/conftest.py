from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

from craft_server.engine import Engine, ModelSpec
from craft_server.engine.models import load_model


@pytest.fixture(scope="session")
def module_of() -> Callable[[str], Any]:
    """Loads a model's own code, in single precision, to compare with."""
    return cache(lambda name: load_model(ModelSpec(name, device="cpu")).module)


@pytest.fixture(scope="session")
def rn50() -> Iterator[Engine]:
    """The real architecture with random weights."""
    engine = Engine.load(ModelSpec(name="RN50", device="cpu", precision="float32"))
    yield engine
    engine.close()
