"""The example plug-ins, installed into a folder and used through the commands and a server."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from craft_shared.adapter import Adapter
from e2e.conftest import Server
from plugin_packages import install_examples, write_package


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All examples, and some that are broken."""
    folder = tmp_path_factory.mktemp("packages")
    install_examples(folder, tmp_path_factory.mktemp("building"))
    write_package(
        folder,
        "broken",
        {
            "craftbox.recipes": {
                "cannot-load": "broken_recipe:run",
                "own-code": "own_code:run",
                "raises": "own_code:fail",
            },
        },
        broken_recipe="import no_such_library",
        own_code=OWN_CODE,
    )
    return folder


# A head of the plug-in's own making, which passes for a linear one until it is data.
OWN_CODE = """
import numpy as np
from craft_client.tuning_run import Outcome

class Head:
    kind = "my-own"
    def __call__(self, log_probs): return log_probs[0]
    def tensors(self): return {}

def run(run):
    codes = np.zeros((0, run.settings.dim), np.float32)
    return Outcome("mine", codes, (), Head(), 50.0, None, 1.0, [])

def fail(run): raise ZeroDivisionError("by hand")
"""


@pytest.fixture(scope="module")
def plugged(target: Path, server: Server) -> Server:
    """A server, and commands that see all plug-ins."""
    return dataclasses.replace(server, more={"PYTHONPATH": str(target), "COLUMNS": "300"})


@pytest.fixture(scope="module")
def key(plugged: Server) -> Iterator[str]:
    return plugged.key()


def test_a_recipe_tunes_and_what_it_ends_in_is_published_and_served(
    plugged: Server, key: str, digits: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    budget = ("--set", "first=3", "--set", "population=4", "--budget", "14", "--dim", "8")
    tuned = plugged.craft_json(
        key, "tune", "--data", digits, "--shots", "2", "--recipe", "hill-climbing",
        *budget, "--run", run,
    )  # fmt: skip
    assert tuned["charged"]["queries"] == 1 + 3 + 2 * 4 + 2
    config = Adapter.load(run / "adapter").config
    assert (config.head, config.provenance.recipe) == ("none", "hill-climbing")
    assert (
        "package craftbox-hill-climbing 0.1.0"
        in json.loads((run / "run.json").read_text())["plugin"]
    )
    plugged.craft_json(key, "publish", run, "--name", "climbed")
    picture = next(digits.rglob("*.png"))
    assert plugged.craft_json(key, "predict", "--adapter", "climbed", picture)["images"]


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("cannot-load", "cannot be loaded: ModuleNotFoundError"),
        ("own-code", "head of kind 'my-own'; servers know none, ridge, mlp"),
        ("raises", "failed: ZeroDivisionError: by hand"),
    ],
)
def test_a_broken_plug_in_is_told_in_a_line_with_its_package(
    plugged: Server, key: str, digits: Path, tmp_path: Path, recipe: str, words: str
) -> None:
    options = ("--shots", "2", "--recipe", recipe, "--run", tmp_path / "run")
    done = plugged.craft(key, "tune", "--data", digits, *options)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert f"'{recipe}'" in line
    assert "of package broken 0.1.0" in line
    assert words in line


def test_an_unknown_recipe_is_told_before_anything_is_asked(
    plugged: Server, digits: Path, tmp_path: Path
) -> None:
    own = plugged.key()
    done = plugged.craft(
        own, "tune", "--data", digits, "--recipe", "no-such", "--run", tmp_path / "r"
    )
    assert done.returncode == 1
    assert "no recipe is called 'no-such'" in done.stderr
    assert "descriptions, hill-climbing, own-code, paper" in done.stderr
    assert plugged.craft_json(own, "usage")["total"]["requests"] == 0


def test_the_command_lists_what_is_installed(plugged: Server, key: str) -> None:
    found = {row["name"]: row for row in plugged.craft_json(key, "plugins")["plugins"]}
    assert {"hill-climbing", "cannot-load"} <= found.keys()
    assert found["hill-climbing"]["package"] == "craftbox-hill-climbing 0.1.0"
    assert found["hill-climbing"]["problem"] == ""
    assert "ModuleNotFoundError" in found["cannot-load"]["problem"]
    assert "hill-climbing" in plugged.craft(key, "plugins").stdout
