"""What a client's error names is found in the server's log."""

from __future__ import annotations

import json
import re

import pytest

from craft_client.api import Client
from craft_client.calls import Call
from craft_client.exceptions import AnswerLost, CraftError
from craft_shared.wire import PredictionRequest
from e2e.metering.slow_servers import SlowServers
from waiting import until


def lines_of(servers: SlowServers, request_id: str) -> list[str]:
    """The events of a call, in the log's order."""
    found = [line for line in servers.log.read_text().splitlines() if line.startswith("{")]
    lines = [json.loads(line) for line in found]
    return [line["event"] for line in lines if line.get("request_id") == request_id]


def named(error: CraftError) -> str:
    found = re.search(r"\(request (\w+)", str(error))
    assert found, f"the message names no request: {error}"
    return found[1]


def test_a_refused_call_and_one_cut_off_are_found_in_the_log(slow_servers: SlowServers) -> None:
    slow_servers.start(SLOW_SERVER_WORK_SECONDS="3")
    request = PredictionRequest(model="stub", classes=["cat", "dog"], templates=["a {}"])
    with Client(slow_servers.url, slow_servers.key(queries=0)) as client:
        with pytest.raises(CraftError) as refused:
            client.predict(request, images=[b"\0"])
        until(lambda: lines_of(slow_servers, named(refused.value)) == ["call"])
    with Client(slow_servers.url, slow_servers.key(), timeout=0.5) as client:
        body = request.model_copy(update={"images": ["AA=="]}).model_dump_json(exclude_none=True)
        with pytest.raises(AnswerLost) as lost:
            client._send(Call("POST", "/v1/predictions", json=body.encode(), again=False))
        until(lambda: lines_of(slow_servers, named(lost.value)) == ["call"])
