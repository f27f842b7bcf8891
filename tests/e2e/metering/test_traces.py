"""One trace over client, HTTP and database, as a collector on a socket receives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from craft_server.ledger.keys import Rates
from e2e.metering.slow_servers import OWNER, PATIENCE_SECONDS, SlowServers
from waiting import until

CLASSES = ["marmoset", "axolotl"]
TEMPLATE = "a faded picture of {}"
PREDICT = f"""
import sys
from craft_client.api import Client
from craft_shared.tracing import tracing
from craft_shared.wire import PredictionRequest
request = PredictionRequest(model="stub", classes={CLASSES!r}, templates=[{TEMPLATE!r}])
with tracing("craft"), Client(sys.argv[1]) as client:
    client.predict(request, images=[b"0"])
"""


class Collector:
    """Receives traces over OTLP/HTTP.

    Attributes:
        bodies: that it was sent.
    """

    def __init__(self) -> None:
        bodies: list[bytes] = []
        self.bodies = bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    @property
    def environment(self) -> dict[str, str]:
        url = f"http://127.0.0.1:{self.server.server_address[1]}"
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "100"}

    def spans(self) -> list[tuple[str, Any]]:
        """Each with the service that it is of."""
        found = []
        for body in self.bodies:
            for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                resource = {one.key: one.value for one in of_resource.resource.attributes}
                service = resource["service.name"].string_value
                for scope in of_resource.scope_spans:
                    found += [(service, one) for one in scope.spans]
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()
    made.thread.join()
    made.server.server_close()


def test_one_trace_goes_from_the_client_through_http_to_the_database(
    slow_servers: SlowServers, collector: Collector
) -> None:
    # Its running calls are counted by a statement of SQLAlchemy's, which makes a span.
    key = slow_servers.key(rates=Rates(concurrency=4))
    server = slow_servers.start(**collector.environment, CRAFT_DRAIN_SECONDS="0")
    env = {**os.environ, **collector.environment, "CRAFT_API_KEY": key}
    subprocess.run([sys.executable, "-c", PREDICT, slow_servers.url], env=env, check=True)
    server.send_signal(signal.SIGTERM)
    assert server.wait(PATIENCE_SECONDS) == 0  # and has sent its last spans

    spans = collector.spans()
    (trace,) = {one.trace_id for _, one in spans if one.name == "create_prediction"}
    of_call = [(service, one) for service, one in spans if one.trace_id == trace]
    (attempt,) = [one for service, one in of_call if service == "craft"]
    assert attempt.name == "POST"
    (call,) = [one for _, one in of_call if one.name == "create_prediction"]
    assert call.parent_span_id == attempt.span_id
    parts = [one for service, one in of_call if service == "craft-server" and one is not call]
    assert {one.parent_span_id for one in parts} == {call.span_id}
    assert {"BEGIN", "SELECT"} <= {one.name.split()[0] for one in parts}
    # What is sent for a call says nothing that its client has written, and not who it is.
    sent = b"".join(collector.bodies)
    for private in (key, key.split("_")[1], *CLASSES, TEMPLATE, OWNER):
        assert private.encode() not in sent


def test_a_command_of_the_client_is_traced_when_the_environment_says_so(
    slow_servers: SlowServers, collector: Collector
) -> None:
    slow_servers.start()
    env = {**os.environ, **collector.environment, "CRAFT_API_KEY": slow_servers.key()}
    command = [Path(sys.executable).parent / "craft", "usage", "--url", slow_servers.url]
    subprocess.run(command, env=env, check=True, capture_output=True)
    until(lambda: "GET" in {one.name for _, one in collector.spans()})


def test_nothing_is_imported_while_traces_are_off() -> None:
    code = "import craft_client.cli, craft_client.api, json, sys; print(json.dumps([*sys.modules]))"
    env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)
    assert not [name for name in json.loads(done.stdout) if name.startswith("opentelemetry")]


def test_traces_without_the_extra_are_refused_in_one_line(collector: Collector) -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None; sys.argv = ['craft', 'usage']\n"
        "from craft_client.cli import app; app()"
    )
    env = {**os.environ, **collector.environment, "CRAFT_API_KEY": "key"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'craftbox[otel]'" in " ".join(done.stderr.split())
