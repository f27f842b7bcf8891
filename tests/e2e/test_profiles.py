"""`craft tune` against simulated providers: whatever befalls it, the same adapter at one price."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from craft_server.simulate.profile import FaultKind, Place, load_profile, shipped_profiles
from craft_shared.units import UNITS, Units
from e2e.conftest import Server, StartServer

POPULATION = 8
GENERATIONS = 12
TUNE = ("--shots", "2", "--seed", "5", "--recipe", "paper", "--population", POPULATION)


@pytest.fixture(scope="module")
def simulating(start_server: StartServer) -> Callable[[str | Path], Server]:
    """A server with the pocket model behind a profile; beside `ideal` one at a time, for memory."""
    running: dict[str, Server] = {}

    def start(profile: str | Path) -> Server:
        name = str(profile)
        if name not in running:
            for other in [one for one in running if one != "ideal"]:
                process = running.pop(other).process
                process.terminate()
                process.wait(30)
            running[name] = start_server("--model", "pocket", "--profile", name)
        return running[name]

    return start


def tune(
    server: Server, key: str, digits: Path, run: Path, generations: int = GENERATIONS
) -> dict[str, Any]:
    budget = 1 + (POPULATION + 1) * generations
    return server.craft_json(
        key, "tune", "--data", digits, *map(str, TUNE), "--budget", str(budget), "--run", run
    )


def faults(server: Server) -> dict[tuple[str, str], int]:
    """How many of each have happened, by kind and place."""
    key = server.key("--scope", "admin", owner="operator")
    text = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {key}"}).text
    return {
        (sample.labels["fault"], sample.labels["at"]): int(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "craft_simulated_faults_total"
    }


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def journal_sum(run: Path, tuned: dict[str, Any]) -> dict[str, int]:
    """What the journal's lines were charged, and the upload."""
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    total = sum((Units(**line["charged"]) for line in lines), Units())
    upload = {unit: tuned["charged"][unit] - total[unit] for unit in UNITS}
    assert upload == {"queries": 0, "predictions": 0, "images": 20, "texts": 0, "requests": 1}
    return {unit: total[unit] + upload[unit] for unit in UNITS}


def test_a_bad_day_gives_the_ideal_days_adapter_at_its_price(
    simulating: Callable[[str | Path], Server], digits: Path, tmp_path: Path
) -> None:
    ends = {}
    for name in ("ideal", "flaky"):
        server = simulating(name)
        key = server.key(owner="same")
        tuned = tune(server, key, digits, tmp_path / name)
        usage = server.craft_json(key, "usage")
        ends[name] = (files_of(tmp_path / name / "adapter"), usage["total"], tuned["charged"])
    assert ends["flaky"] == ends["ideal"]
    assert faults(simulating("ideal")) == {}
    happened = faults(simulating("flaky"))
    assert {kind for kind, _ in happened} == set(get_args(FaultKind))
    assert {place for _, place in happened} == set(get_args(Place))
    assert sum(happened.values()) >= 20


@pytest.fixture(scope="module")
def unhindered(
    simulating: Callable[[str | Path], Server],
    digits: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, bytes]:
    """The adapter of a short run with nothing in its way."""
    server, run = simulating("ideal"), tmp_path_factory.mktemp("unhindered") / "run"
    tune(server, server.key(owner="unhindered"), digits, run, 2)
    return files_of(run / "adapter")


@pytest.mark.parametrize("name", shipped_profiles())
def test_tuning_survives_each_shipped_profile_and_records_it(
    simulating: Callable[[str | Path], Server],
    digits: Path,
    tmp_path: Path,
    unhindered: dict[str, bytes],
    name: str,
) -> None:
    server = simulating(name)
    tuned = tune(server, server.key(owner="each"), digits, tmp_path / "run", 2)
    profile = load_profile(name)
    same = files_of(tmp_path / "run/adapter") == unhindered
    config = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())
    assert config["output"] == profile.output.model_dump(mode="json")
    assert same == profile.output.whole  # what answers leave out, tuning cannot learn
    expected = {"name": name, "version": profile.version, "digest": profile.digest}
    assert json.loads((tmp_path / "run/run.json").read_text())["profile"] == expected
    assert tuned["profile"] == expected
    report = server.craft("unused", "report", tmp_path / "run")
    assert report.returncode == 0, report.stderr
    assert profile.digest in (tmp_path / "run/report.html").read_text()


def test_no_answer_is_paid_twice_and_none_is_lost_when_resets_follow_the_work(
    simulating: Callable[[str | Path], Server], digits: Path, tmp_path: Path
) -> None:
    profile = tmp_path / "resets.toml"
    profile.write_text(
        'name = "resets"\nversion = 1\ndescription = "Resets after the work."\nseed = 1\n'
        '[[faults]]\nkind = "reset"\nat = "after-work"\nrate = 0.1\n'
    )
    server = simulating(profile)
    key = server.key(owner="reset")
    generations = 40
    tuned = tune(server, key, digits, tmp_path / "run", generations)
    assert faults(server)["reset", "after-work"] >= 3
    ledger = server.craft_json(key, "usage")
    assert ledger["total"] == journal_sum(tmp_path / "run", tuned)
    assert ledger["total"]["requests"] == 1 + 1 + 2 * generations
