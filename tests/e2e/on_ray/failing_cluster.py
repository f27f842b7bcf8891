"""A local Ray cluster whose one model fails as `e2e.failing_server` says, until its input ends.

The argument is the port. The database and all else come from the environment.
"""

from __future__ import annotations

import sys

import ray
from ray import serve

from craft_server.ray_serve.deployments import EngineReplica, Ingress
from craft_server.serving.listening import engine_of
from craft_server.settings import Settings


@serve.deployment(max_ongoing_requests=64)
class FailingModel(EngineReplica):
    """The real model, in whose process the failures are."""

    def __init__(self) -> None:
        import e2e.failing_server  # noqa: F401 - it installs them

        super().__init__(engine_of(Settings()))


def main() -> None:
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=200_000_000,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    some = {"ray_actor_options": {"num_cpus": 0.1}, "health_check_period_s": 1}
    model = FailingModel.options(**some).bind()
    serve.run(Ingress.options(**some).bind(model))  # type: ignore[attr-defined]
    print("ready", flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
