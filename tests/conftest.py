from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from httpx._transports import default
from PIL import Image

TINY = "craft-tiny"


@pytest.fixture(scope="session", autouse=True)
def _no_configuration_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No command reads or writes the files of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("configuration")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_set_of_certificates() -> Iterator[None]:
    """To read the trusted certificates takes 20 ms, most of what a client of httpx does."""
    create = default.create_ssl_context
    trusted = cache(create)

    def shared(verify: Any = True, cert: Any = None, trust_env: bool = True) -> Any:
        named = {"SSL_CERT_FILE", "SSL_CERT_DIR"} & os.environ.keys()
        if verify is True and cert is None and not named:
            return trusted()
        return create(verify=verify, cert=cert, trust_env=trust_env)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(default, "create_ssl_context", shared)
        yield


@pytest.fixture(scope="session")
def tiny_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An engine with a tiny CLIP of random weights, through the path of every open_clip model."""
    open_clip = pytest.importorskip("open_clip")
    from craft_server.engine import Engine, ModelSpec

    open_clip.add_model_config(_tiny_config(tmp_path_factory.mktemp("model_configs")))
    engine = Engine.load(ModelSpec(name=TINY, device="cpu", precision="float32"))
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """Makes a small encoded picture that depends on `seed`; `options` go to Pillow's `save`."""

    def make(
        seed: int = 0, *, size: tuple[int, int] = (40, 30), file_format: str = "PNG", **options: Any
    ) -> bytes:
        width, height = size
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format=file_format, **options)
        return file.getvalue()

    return make


def _tiny_config(folder: Path) -> Path:
    path = folder / f"{TINY}.json"
    path.write_text(
        json.dumps(
            {
                "embed_dim": 32,
                "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
                "text_cfg": {
                    "context_length": 77,
                    "vocab_size": 49408,
                    "width": 64,
                    "heads": 2,
                    "layers": 2,
                },
            }
        )
    )
    return path
