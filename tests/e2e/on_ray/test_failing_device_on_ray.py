"""A model whose device fails, injected into a replica on a local Ray."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.conftest import Server
from e2e.test_failing_device import Failing
from quickstart import free_port

pytest.importorskip("ray")

READY_SECONDS = 240


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Failing]:
    folder, port = tmp_path_factory.mktemp("ray"), free_port()
    flag = folder / "failure"
    flag.write_text("")
    env = {
        **os.environ,
        "FAILURE": str(flag),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": "/tmp",
        "RAY_worker_niceness": "0",  # by default 15: nothing beside other tests
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path[1:]]),
        "CRAFT_DATA_DIR": str(folder / "data"),
        "CRAFT_MODEL": "pocket",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "e2e.on_ray.failing_cluster", str(port)],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=Path(__file__).parents[2],
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line == b"ready\n":
                break
        else:
            raise AssertionError((folder / "log").read_text()[-5000:])
        yield Failing(Server(f"http://127.0.0.1:{port}", folder, env, process), flag)
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(60)
        finally:
            process.kill()


@pytest.mark.timeout(READY_SECONDS + 120)
@pytest.mark.parametrize(
    ("kind", "status"), [("once-out-of-memory", 200), ("out-of-memory", 503), ("not-finite", 500)]
)
def test_what_fails_is_refused_uncharged_and_the_next_call_is_answered(
    failing: Failing, kind: str, status: int
) -> None:
    key = failing.server.key("--queries", "5")
    failing.fail(kind, "texts")
    answer = failing.predict(key)
    assert answer.status_code == status, answer.text
    assert ("Retry-After" in answer.headers) == (status == 503)
    charged = int(status == 200)
    assert failing.budget(key) == (charged, 0)
    failing.mend()
    assert failing.predict(key).status_code == 200
    assert failing.budget(key) == (charged + 1, 0)


@pytest.mark.timeout(READY_SECONDS + 120)
def test_ray_starts_a_replica_anew_whose_device_is_lost(failing: Failing) -> None:
    key = failing.server.key("--queries", "5")
    failing.fail("lost", "texts")
    answer = failing.predict(key)
    assert answer.status_code == 503, answer.text
    assert "Retry-After" in answer.headers
    failing.mend()
    assert failing.status("livez") == 200
    assert failing.budget(key) == (0, 0)
    deadline = time.monotonic() + READY_SECONDS
    while failing.predict(key).status_code != 200:
        assert time.monotonic() < deadline, f"not within {READY_SECONDS} s"
        time.sleep(0.2)
    assert failing.status("readyz") == 200
    assert failing.budget(key) == (1, 0)
