"""Ray Serve's configuration, as `craft-server deploy ray` writes it for `serve` to read.

What is hosted and where its ledger is travels as the settings' environment variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

IMPORT_PATH = "craft_server.ray_serve.deployments:application"


@dataclass(frozen=True)
class Replicas:
    """How many replicas there are of a kind, and what each takes of its machine."""

    least: int  # that always run
    most: int  # that run while calls wait
    cpus: float  # cores of each
    gpus: float = 0.0  # of each; a fraction shares one


def serve_config(
    *, ingress: Replicas, model: Replicas, host: str, port: int, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Ray Serve's configuration of the whole application (its `ServeDeploySchema`).

    `environment` is that of all replicas: settings `CRAFT_...`.
    """
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "applications": [
            {
                "name": "craftbox",
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "runtime_env": {"env_vars": dict(environment)},
                "deployments": [
                    _deployment("Ingress", ingress, calls_at_once=32),
                    _deployment("Model", model, calls_at_once=8),
                ],
            }
        ],
    }


def _deployment(name: str, replicas: Replicas, *, calls_at_once: int) -> dict[str, Any]:
    """A deployment that grows while more calls wait for a replica than it should have at once."""
    return {
        "name": name,
        "autoscaling_config": {
            "min_replicas": replicas.least,
            "max_replicas": replicas.most,
            "target_ongoing_requests": calls_at_once,
        },
        "ray_actor_options": {"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
    }
