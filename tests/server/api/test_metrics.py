"""What operators see of a running server."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from craft_server.clock import now_ms
from craft_server.ledger.keys import create_key


def read(server: Any) -> dict[tuple[str, str], float]:
    """Each measurement by its name and its label."""
    with server.database.writing() as connection:
        key = create_key(connection, owner="operator", scopes=["admin"], at=now_ms())
    answer = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, "".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_a_tenants_key_does_not_open_them(client: httpx.Client) -> None:
    assert client.get("/metrics").status_code == 403


def test_caches_show_their_use_and_their_bounds(serve: Any, picture: Callable[..., bytes]) -> None:
    with serve(features_cache_bytes=5000) as server, server.client() as client:
        (card,) = client.get("/v1/models").json()["models"]
        before = read(server)
        question = {
            "model": card["name"],
            "classes": [secrets.token_hex(4), "dog"],
            "templates": ["a photo of a {}."],
            "images": [base64.b64encode(picture()).decode()],
        }
        for _ in range(3):
            client.post("/v1/predictions", json=question).raise_for_status()
        after = read(server)

    def grown(name: str, cache: str) -> float:
        return after[name, cache] - before[name, cache]

    assert grown("craft_cache_misses_total", "text_features") == 1
    assert grown("craft_cache_hits_total", "text_features") == 2
    assert grown("craft_cache_bytes", "text_features") == 2 * 32 * 4
    assert after["craft_cache_max_bytes", "image_features"] == 5000
    assert grown("craft_engine_busy_seconds_total", "texts") > 0
    assert grown("craft_engine_busy_seconds_total", "scores") > 0
    assert after["process_resident_memory_bytes", ""] > 0
    assert after["craft_engine_alive", ""] == 1
    assert after["craft_engine_waiting_turns", ""] == 0
