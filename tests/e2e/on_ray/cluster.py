"""A local Ray cluster that serves the application before stub models, until standard input ends.

Arguments: the port, how many ingress and model replicas, and for how long a stub computes. The
database and all else come from the environment. A call ends its ingress with SIGKILL at the point
that its header `Stub-Kill` names; the product does not know of this.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import numpy as np
import ray
from ray import serve

from craft_server.app import create_app
from craft_server.engine import ModelFacts
from craft_server.ray_serve.deployments import RayEngine
from craft_server.settings import Settings
from e2e.metering.stub_server import KillMiddleware, die, install_kill_points, score_of

MODEL = "pocket"  # whose tokenizer is used; nothing else of it is
FACTS = ModelFacts(
    name=MODEL,
    revision="0" * 16,
    image_size=8,
    random_weights=True,
    context_length=77,
    preprocess_cfg={"size": 8},
)


@serve.deployment(max_ongoing_requests=64)
class StubModel:
    """Computes one call at a time, for as long as it is told, as if on a device far away."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._device = asyncio.Lock()

    async def facts(self) -> dict[str, Any]:
        return FACTS.model_dump()

    async def state(self) -> dict[str, Any]:
        cache = {"nbytes": 0, "max_bytes": 0, "hits": 0, "misses": 0}
        return {"waiting": 0.0, "busy_seconds": {}, "text_features": cache}

    async def encode_images(self, pixels: Any, *, tenant: str) -> Any:
        return np.zeros((len(pixels), 1), np.float32)

    async def encode_prompts(self, prompts: Any, classes: list[str], *, tenant: str) -> Any:
        scores = [score_of(template) for template in prompts.templates]
        return np.repeat(np.array(scores, np.float32)[:, None, None], len(classes), 1)

    async def log_probs(self, images: Any, texts: Any, *, tenant: str) -> Any:
        async with self._device:
            await asyncio.sleep(self._seconds)
        return np.repeat(texts[:, None, :, 0], len(images), 1)


class DyingEngine(RayEngine):
    """Ends its process after the work, if the call says so."""

    async def log_probs(self, *args: Any, **kwargs: Any) -> Any:
        found = await super().log_probs(*args, **kwargs)
        die("after the work")
        return found


@serve.deployment(max_ongoing_requests=256)
@serve.ingress()
class DyingIngress:
    """The application, which ends its process where a call says so."""

    async def __init__(self, replicas: Any) -> None:
        install_kill_points()
        facts = ModelFacts.model_validate(await replicas.facts.remote())
        self._application = KillMiddleware(create_app(Settings(), DyingEngine(facts, replicas)))

    def __serve_build_asgi_app__(self) -> Any:
        return self._application


def main() -> None:
    port, ingresses, models = map(int, sys.argv[1:4])
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=200_000_000,
        _node_ip_address="127.0.0.1",
        log_to_driver="CRAFT_TEST_RAY_LOG" in os.environ,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    some = {"ray_actor_options": {"num_cpus": 0.1}, "health_check_period_s": 1}
    model = StubModel.options(num_replicas=models, **some).bind(float(sys.argv[4]))
    serve.run(DyingIngress.options(num_replicas=ingresses, **some).bind(model))
    print("ready", flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
