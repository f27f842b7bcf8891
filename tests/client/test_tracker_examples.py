"""The examples that send runs to experiment trackers, and what they take from run directories.

Where a tracker is not installed, a stand-in with its name writes down what it is called with.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .run_folders import write_run

EXAMPLES = Path(__file__).parents[2] / "examples"
STAND_IN = """
import atexit, json, os

CALLS = []
atexit.register(lambda: json.dump(CALLS, open(os.environ["CALLS"], "w")))


class Noting:
    def __init__(self, name):
        self.name = name

    def __getattr__(self, name):
        return Noting(f"{self.name}.{name}")

    def __call__(self, *words, **named):
        CALLS.append([self.name, [each for each in words if not isinstance(each, Noting)], named])
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Noting(name)
"""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    write_run(folder / "finished")
    write_run(folder / "unfinished", finished=False)
    return folder


def calls_of(tracker: str, runs: Path, tmp_path: Path) -> list[Any]:
    """What the example for this tracker calls a stand-in of it with."""
    stand_in = tmp_path / "stand-in"
    stand_in.mkdir()
    (stand_in / f"{tracker}.py").write_text(STAND_IN)
    env = {**os.environ, "PYTHONPATH": str(stand_in), "CALLS": str(tmp_path / "calls.json")}
    script = EXAMPLES / f"to_{tracker}.py"
    subprocess.run([sys.executable, script, runs], env=env, check=True, cwd=tmp_path)
    calls: list[Any] = json.loads((tmp_path / "calls.json").read_text())
    return calls


def test_mlflow_gets_settings_accuracies_curve_and_adapter(runs: Path, tmp_path: Path) -> None:
    calls = calls_of("mlflow", runs, tmp_path)
    started = [named["run_name"] for name, _, named in calls if name == "start_run"]
    assert started == ["finished"]  # an unfinished run has no result to send
    (settings,) = [words[0] for name, words, _ in calls if name == "log_params"]
    assert {"model", "recipe", "shots", "seed"} <= settings.keys()
    outcome, *curve = [(words[0], named) for name, words, named in calls if name == "log_metrics"]
    assert {"queries", "predictions", "accuracy_before_percent"} <= outcome[0].keys()
    assert curve
    assert all(named["step"] == point["curve/queries"] for point, named in curve)
    assert not any(point.keys() & outcome[0].keys() for point, _ in curve), "totals stay totals"
    (adapter,) = [words for name, words, _ in calls if name == "log_artifacts"]
    assert adapter == [str(runs / "finished" / "adapter"), "adapter"]


def test_wandb_gets_settings_accuracies_curve_and_adapter(runs: Path, tmp_path: Path) -> None:
    calls = calls_of("wandb", runs, tmp_path)
    (begun,) = [named for name, _, named in calls if name == "init"]
    assert begun["name"] == "finished"
    assert {"model", "recipe", "shots", "seed"} <= begun["config"].keys()
    curve = [words[0] for name, words, _ in calls if name == "init.log"]
    assert curve
    assert all("loss_nats" in point and "queries" in point for point in curve)
    (summary,) = [words[0] for name, words, _ in calls if name == "init.summary.update"]
    assert {"queries", "predictions", "accuracy_before_percent"} <= summary.keys()
    assert any(name == "Artifact.add_dir" for name, *_ in calls)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_keeps_an_offline_run(runs: Path, tmp_path: Path) -> None:
    script = EXAMPLES / "to_wandb.py"
    subprocess.run([sys.executable, script, runs], check=True, cwd=tmp_path, capture_output=True)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_keeps_a_run(runs: Path, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    env = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{database}"}
    script = EXAMPLES / "to_mlflow.py"
    subprocess.run([sys.executable, script, runs], env=env, check=True, cwd=tmp_path)
    assert database.stat().st_size > 0
