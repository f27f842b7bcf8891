"""Examples that need nothing of craftbox, against a real server with a real adapter."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.conftest import Server

EXAMPLES = Path(__file__).parents[2] / "examples"
STDLIB_CLIENT = EXAMPLES / "stdlib_client.py"
PREDICT = EXAMPLES / "predict.sh"


@pytest.fixture(scope="module")
def zero(digits: Path) -> Path:
    return sorted((digits / "test" / "zero").glob("*.png"))[0]


@pytest.fixture
def key(server: Server) -> str:
    return server.key("--queries", "100")


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder with coreutils' commands and curl alone, which writes down its arguments."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("there is no curl")
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("base64", "tr", "od"):
        (folder / name).symlink_to(shutil.which(name) or name)
    noting = folder / "curl"
    noting.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >"{tmp_path}/seen"\nexec {curl} "$@"\n')
    noting.chmod(0o755)
    return folder


def _run(
    server: Server, key: str, *command: str | Path, **env: str
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "CRAFT_URL": server.url, "CRAFT_API_KEY": key, **env}
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_stdlib_client_names_the_class_and_the_cost(
    server: Server, key: str, digits_adapter: str, zero: Path
) -> None:
    done = _run(server, key, sys.executable, STDLIB_CLIENT, digits_adapter, zero)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert re.fullmatch(r"zero \d+\.\d%", first)
    assert second == "cost: 1 queries, 1 predictions, 1 images, 1 requests"


@pytest.mark.parametrize(
    ("queries", "adapter", "said"),
    [
        ("100", "nowhere", "There is no such adapter"),
        ("0", None, "this call needs 1 queries and 0 are left"),
    ],
)
def test_stdlib_client_says_what_the_problem_is(
    server: Server, queries: str, adapter: str | None, said: str, digits_adapter: str, zero: Path
) -> None:
    key = server.key("--queries", queries)
    done = _run(server, key, sys.executable, STDLIB_CLIENT, adapter or digits_adapter, zero)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_stdlib_client_is_short_and_imports_the_standard_library_alone() -> None:
    tree = ast.parse(STDLIB_CLIENT.read_text())
    imported = [
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    ]
    assert set(imported) <= sys.stdlib_module_names
    code = [
        line.strip() for line in STDLIB_CLIENT.read_text().split("import Any\n")[1].splitlines()
    ]
    assert len([line for line in code if line and not line.startswith(("#", '"""'))]) <= 30


def test_predict_script_answers_with_curl_and_coreutils_alone(
    server: Server, key: str, digits_adapter: str, zero: Path, tools: Path
) -> None:
    done = _run(server, key, PREDICT, digits_adapter, zero, PATH=str(tools))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["classes"][answer["top_classes"][0][0]] == "zero"
    assert answer["cost"]["charged"]["queries"] == 1


def test_predict_script_keeps_the_key_out_of_the_process_list(
    server: Server, key: str, digits_adapter: str, zero: Path, tools: Path
) -> None:
    _run(server, key, PREDICT, digits_adapter, zero, PATH=str(tools))
    seen = (tools.parent / "seen").read_text()
    assert f"{server.url}/v1/adapters/{digits_adapter}/predictions" in seen
    assert key not in seen
    assert "craft_" not in seen


def test_predict_script_prints_the_problem_and_fails(
    server: Server, key: str, zero: Path, tools: Path
) -> None:
    done = _run(server, key, PREDICT, "nowhere", zero, PATH=str(tools))
    assert done.returncode == 22
    assert json.loads(done.stdout)["type"] == "urn:craftbox:problem:adapter-not-found"
