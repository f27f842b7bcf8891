"""Lines of curl in the reference of the HTTP API, typed as they stand, and the answers there."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from e2e.conftest import Server

PAGE = Path(__file__).parents[2] / "docs/reference/http.md"


def exchange(call: str) -> tuple[str, Any]:
    """The line of curl of a call, and its answer."""
    (section,) = re.findall(
        f"^### {re.escape(call)}\n(.*?)(?=^##)", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    (line,) = re.findall("^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    (answer,) = re.findall("^```json\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return line, json.loads(answer)


@pytest.mark.parametrize(
    "call",
    [
        "GET /readyz",
        "GET /v1/models",
        "POST /v1/image-sets",
        "POST /v1/predictions",
        "POST /v1/zero-shot-image-classification",
        "GET /v1/budget",
        "GET /v1/adapters/{name}",
        "POST /v1/adapters/{name}/predictions",
        "PUT /v1/runs/{run}",
        "POST /v1/admin/keys",
    ],
)
def test_a_line_of_curl_gives_an_answer_like_that_on_the_page(
    server: Server, digits_adapter: str, call: str
) -> None:
    line, expected = exchange(call)
    scopes = [word for scope in ("predict", "publish", "admin") for word in ("--scope", scope)]
    key = server.key(*scopes, "--queries", "1000")
    line = line.replace("/v1/adapters/digits", f"/v1/adapters/{digits_adapter}")
    done = subprocess.run(
        ["bash", "-c", line.replace("curl", "curl --silent --fail-with-body", 1)],
        env={**os.environ, "CRAFT_URL": server.url, "CRAFT_API_KEY": key},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    if isinstance(answer, list):
        assert answer[0].keys() == expected[0].keys()
    else:
        assert expected.keys() <= answer.keys() | {"top_classes"}
