"""`craft tune` killed with SIGKILL at random moments and resumed: nothing is paid for twice."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest

from craft_client.progress import units_line
from craft_shared.units import Units
from e2e.conftest import Server
from e2e.metering.caller import FULL
from e2e.programs import CRAFT, Program

KILLS = 20 if FULL else 2
OPTIONS = {
    "craftbox": ("--shots", "4", "--strict"),
    "paper": ("--shots", "2", "--recipe", "paper", "--budget", str(1 + 41 * 6)),
}


def adapter_of(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "adapter").iterdir())}


@pytest.mark.parametrize("recipe", ["craftbox", "paper"])
@pytest.mark.timeout(900)
def test_a_killed_run_is_resumed_to_the_same_adapter_at_the_same_price(
    server: Server, digits: Path, tmp_path: Path, recipe: str
) -> None:
    tune = ("tune", "--data", digits, *OPTIONS[recipe], "--seed", "5")
    key = server.key(owner=f"whole-{recipe}")
    began = time.monotonic()
    whole = server.craft(key, *tune, "--run", tmp_path / "whole")
    seconds = time.monotonic() - began
    expected = adapter_of(tmp_path / "whole")
    price = server.craft_json(key, "usage")["total"]
    assert f"charged {units_line(Units(**price))}\n" in whole.stderr, "the last progress"

    moments = random.Random(recipe)
    cut_short = number = 0
    while cut_short < KILLS:
        number += 1
        assert number <= 5 * KILLS, "too few runs were still going when they were killed"
        run = tmp_path / f"run-{number}"
        key = server.key(owner=f"{recipe}-{number}")
        env = {**os.environ, "CRAFT_URL": server.url, "CRAFT_API_KEY": key}
        command = [*map(str, tune), "--run", str(run)]
        out, err = tmp_path / "stdout", tmp_path / "stderr"
        process = Program(CRAFT, command, env=env, stdout=out, stderr=err)
        time.sleep(moments.uniform(0.2, 0.9) * seconds)
        process.kill()
        process.wait(30)
        if (run / "summary.json").exists():
            continue
        cut_short += 1
        if (run / "run.json").exists():
            done = server.craft(key, "tune", "--resume", run, "--json")
        else:  # killed before it began
            done = server.craft(key, *tune, "--run", tmp_path / f"again-{number}", "--json")
            run = tmp_path / f"again-{number}"
        assert done.returncode == 0, done.stderr
        assert adapter_of(run) == expected
        charged = server.craft_json(key, "usage")["total"]
        assert json.loads(done.stdout)["charged"] == charged
        # An image set is uploaded by more calls where one of them was cut off.
        for unit in ("queries", "predictions", "images", "texts"):
            assert charged[unit] == price[unit], unit


def test_a_finished_run_is_not_resumed(server: Server, digits: Path, tmp_path: Path) -> None:
    key = server.key(owner="finisher")
    server.craft_json(key, "tune", "--data", digits, "--shots", "2", "--run", tmp_path / "run")
    done = server.craft(key, "tune", "--resume", tmp_path / "run")
    assert done.returncode == 1
    assert "came to its end" in done.stderr
    done = server.craft(key, "tune", "--resume", tmp_path / "run", "--seed", "3")
    assert done.returncode == 2
    assert "--seed" in done.stderr
