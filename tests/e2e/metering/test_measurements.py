"""Several HTTP processes on one database: `/metrics` of each tells what all have counted."""

from __future__ import annotations

import re
from pathlib import Path

import httpx

from craft_client.api import Client
from craft_shared.wire import PredictionRequest
from e2e.metering.slow_servers import SlowServers
from quickstart import free_port

REQUEST = PredictionRequest(model="stub", classes=["cat", "dog"], templates=["a {}"])


def test_processes_that_share_a_folder_count_together(
    slow_servers: SlowServers, tmp_path: Path
) -> None:
    shared = tmp_path / "measurements"
    shared.mkdir()
    key, admin = slow_servers.key(), slow_servers.key(scopes=["admin"])
    ports = [free_port(), free_port()]
    for port in ports:
        slow_servers.start(port=port, PROMETHEUS_MULTIPROC_DIR=str(shared))
    for port, calls in zip(ports, (2, 3), strict=True):
        with Client(f"http://127.0.0.1:{port}", key) as client:
            for _ in range(calls):
                client.predict(REQUEST, images=[b"\0"])
    headers = {"Authorization": f"Bearer {admin}"}
    for port in ports:
        url = f"http://127.0.0.1:{port}/metrics"
        text = httpx.get(url, headers=headers, trust_env=False).text
        found = dict(re.findall(r"^(craft_\S+) (\S+)$", text, re.MULTILINE))
        predicted = 'craft_http_requests_total{operation="create_prediction",status="200"}'
        assert float(found[predicted]) == 5
        assert float(found["craft_charges_settled_total"]) == 5
        assert float(found['craft_ledger_settled_units_total{unit="queries"}']) == 5
        assert float(found["craft_http_requests_in_flight"]) == 1
