"""The Grafana dashboard and Prometheus' configuration: they ask for what the server shows."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from deployed import COMPOSE, ROOT

DASHBOARD: dict[str, Any] = json.loads(
    (ROOT / "deploy/grafana/dashboards/craftbox.json").read_text()
)
SCRAPE: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
SOURCES: dict[str, Any] = yaml.safe_load(
    (ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text()
)
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
METRIC = re.compile(r"\b(?:craft|process)_[a-z_]+")


def test_there_are_queries_and_each_asks_for_a_metric() -> None:
    assert len(QUERIES) >= 10
    assert all(METRIC.search(query) for query in QUERIES)


def test_panels_ask_the_source_that_is_provisioned() -> None:
    (source,) = SOURCES["datasources"]
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_what_is_mounted_is_what_the_image_reads(name: str) -> None:
    volumes = COMPOSE["services"][name]["volumes"]
    mounted = {volume.split(":")[0]: volume.split(":")[1] for volume in volumes}
    if name == "prometheus":
        (job,) = SCRAPE["scrape_configs"]
        assert job["authorization"]["credentials_file"].startswith(mounted["metrics-key"])
        assert job["static_configs"] == [{"targets": ["server:8000"]}]
    else:
        provider = yaml.safe_load(
            (ROOT / "deploy/grafana/provisioning/dashboards/craftbox.yml").read_text()
        )["providers"][0]
        assert provider["options"]["path"] == mounted["./deploy/grafana/dashboards"]
