"""A model whose device fails, injected into a replica on a local Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from e2e.conftest import Server
from e2e.on_ray.programs import READY_SECONDS, running
from e2e.test_failing_device import Failing
from quickstart import free_port

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Failing]:
    folder, port = tmp_path_factory.mktemp("ray"), free_port()
    flag = folder / "failure"
    flag.write_text("")
    with running(
        "e2e.on_ray.failing_cluster",
        port,
        folder=folder,
        FAILURE=flag,
        CRAFT_DATA_DIR=folder / "data",
        CRAFT_MODEL="pocket",
    ) as (process, env):
        yield Failing(Server(f"http://127.0.0.1:{port}", folder, env, process), flag)


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
