"""Anyone's client: code that a public generator makes of /openapi.json, against a real server."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from e2e.conftest import BIN, Server

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "examples/openapi-python-client.yaml"
SCRIPT = Path(__file__).with_name("generated_client.py")
QUERIES = 1000


@pytest.fixture(scope="module")
def document(server: Server) -> dict[str, Any]:
    described: dict[str, Any] = httpx.get(f"{server.url}/openapi.json").json()
    return described


@pytest.fixture(scope="module")
def generated(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of the generated package, and the generator's run."""
    folder = tmp_path_factory.mktemp("generated") / "client"
    command = [
        *(BIN / "openapi-python-client", "generate", "--url", f"{server.url}/openapi.json"),
        *("--config", CONFIG, "--output-path", folder),
    ]
    return folder, subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def said(
    server: Server, generated: tuple[Path, Any], digits_adapter: str, digits: Path
) -> dict[str, Any]:
    """What the client that uses the generated code says."""
    key = server.key("--queries", str(QUERIES))
    picture = sorted((digits / "test" / "zero").glob("*.png"))[0]
    done = subprocess.run(
        [sys.executable, SCRIPT, server.url, key, digits_adapter, picture],
        env={**os.environ, "PYTHONPATH": str(generated[0])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


def test_the_generator_makes_every_call_without_a_warning(
    generated: tuple[Path, subprocess.CompletedProcess[str]], document: dict[str, Any]
) -> None:
    folder, done = generated
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower(), done.stdout + done.stderr
    calls = {path.stem for path in folder.glob("craftbox_client/api/*/*.py")} - {"__init__"}
    methods = document["paths"].values()
    assert calls == {each["operationId"] for path in methods for each in path.values()}


def test_the_generated_client_knows_nothing_of_craftbox(said: dict[str, Any]) -> None:
    assert said["craftbox"] == []


def test_it_uploads_pictures_once_and_scores_them(said: dict[str, Any]) -> None:
    assert said["model"] == "pocket"
    assert said["uploaded"] == [1, 1]
    assert np.exp(said["log_probs"]).sum() == pytest.approx(1)
    assert np.shape(said["log_probs"]) == (1, 1, 3)
    assert said["deleted"] == 204


def test_its_safetensors_body_is_answered_like_json(said: dict[str, Any]) -> None:
    np.testing.assert_allclose(said["binary_log_probs"], said["log_probs"], atol=1e-5)


def test_it_classifies_with_an_adapter_that_craft_published(
    said: dict[str, Any], digits_adapter: str
) -> None:
    assert said["class"] == "zero"
    assert said["adapter"] == [digits_adapter, 1]


def test_it_reads_what_it_spent(said: dict[str, Any]) -> None:
    assert said["spent"]["queries"] == 1
    assert said["spent"]["texts"] == 3
    assert said["total"]["requests"] == 4
    assert said["remaining"] == QUERIES - said["total"]["queries"]
    assert "generated" in said["runs"]


def test_a_bad_call_gives_a_typed_problem(said: dict[str, Any]) -> None:
    assert said["problems"] == [
        [404, "urn:craftbox:problem:model-not-found"],
        [404, "urn:craftbox:problem:adapter-not-found"],
        [401, "urn:craftbox:problem:unauthenticated"],
    ]


def test_request_examples_can_be_sent_as_they_are(
    server: Server, document: dict[str, Any], digits_adapter: str
) -> None:
    examples = {
        operation["operationId"]: operation["requestBody"]["content"]["application/json"]["example"]
        for methods in document["paths"].values()
        for operation in methods.values()
        if "application/json" in operation.get("requestBody", {}).get("content", {})
    }
    key = server.key("--scope", "predict", "--scope", "publish", "--scope", "admin")
    with httpx.Client(
        base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=60
    ) as client:

        def send(call: str, path: str, method: str = "POST") -> Any:
            answer = client.request(method, f"/v1/{path}", json=examples.pop(call))
            assert answer.is_success, (call, answer.text)
            return answer.json()

        image_set = send("create_image_set", "image-sets")["id"]
        send("upload_images", f"image-sets/{image_set}/images")
        send("create_prediction", "predictions")
        send("classify_image", "zero-shot-image-classification")
        send("create_adapter_prediction", f"adapters/{digits_adapter}/predictions")
        send("change_adapter", f"adapters/{digits_adapter.rpartition('/')[2]}", "PATCH")
        send("report_run", "runs/one", "PUT")
        send("report_points", "runs/one/points", "PUT")
        send("report_evaluation", "runs/one/evaluation", "PUT")
        made = send("create_key", "admin/keys")["card"]
        named = {"key": f"admin/keys/{made['prefix']}", "team": f"admin/teams/{made['team']}"}
        for holder, path in named.items():
            send(f"set_{holder}_budgets", f"{path}/budgets", "PUT")
            send(f"top_up_{holder}", f"{path}/budgets/top-up")
        send("set_key_policy", f"{named['key']}/policy", "PUT")
        send("rotate_key", f"{named['key']}/rotate")
        send("set_prices", "admin/prices/another-model", "PUT")
    assert examples == {}
