from __future__ import annotations

from collections.abc import Iterator

import pytest

from craft_server.engine import Engine, ModelSpec


@pytest.fixture(scope="session")
def rn50() -> Iterator[Engine]:
    """The real architecture with random weights."""
    engine = Engine.load(ModelSpec(name="RN50", device="cpu"))
    yield engine
    engine.close()
