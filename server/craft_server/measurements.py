"""The registry of what this process counts as it happens, and its text for Prometheus.

Each module counts what it alone knows, with an object of its own that is registered here. Where
several processes serve one address, they share what they count through the files of the folder
`PROMETHEUS_MULTIPROC_DIR`, which must be set before any of them starts, and empty.

Source: prometheus_client, "Multiprocess Mode (e.g. Gunicorn)".
"""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.exposition import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

_FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

# When a counter began is no measurement of its own.
disable_created_metrics()  # type: ignore[no-untyped-call] # the library has no types here

REGISTRY = CollectorRegistry()


def counted() -> bytes:
    """What was counted, by all processes together where they share a folder."""
    if _FOLDER_VARIABLE not in os.environ:
        return generate_latest(REGISTRY)
    shared = CollectorRegistry()
    MultiProcessCollector(shared)  # type: ignore[no-untyped-call] # the library has no types here
    return generate_latest(shared)
