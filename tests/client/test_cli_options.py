"""What a shell completes for `craft`, from files of this machine alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from craft_client.cli import app, options
from craft_client.cli.options import adapter_names, budget_of, options_of, recipes, run_folders
from craft_client.recipes import OWN

from .run_folders import write_run
from .wire_server import WireServer


def completed(line: str) -> list[str]:
    env = {
        "_CRAFT_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    return CliRunner().invoke(app, [], prog_name="craft", env=env).stdout.split()


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))


def test_run_directories_are_completed_and_other_folders_are_not() -> None:
    for folder in ("runs/one", "runs/other", "deep/er/est/run"):
        write_run(Path(folder))
    Path("runs/empty").mkdir()
    assert run_folders("") == ["runs/one", "runs/other"]
    assert run_folders("runs/on") == ["runs/one"]
    assert run_folders("deep/er/") == ["deep/er/est/run"]
    for line in ("craft report runs/o", "craft tune --resume runs/o", "craft publish runs/o"):
        assert completed(line) == ["runs/one", "runs/other"]


def test_craftboxs_own_recipes_are_completed() -> None:
    assert recipes("") == [*OWN]
    for line in ("craft tune --recipe pa", "craft bench --recipe pa"):
        assert completed(line) == ["paper"]


def test_adapters_that_were_listed_are_completed_without_a_call(connected: WireServer) -> None:
    assert CliRunner().invoke(app, ["adapters"]).exit_code == 0
    options.remember("http://elsewhere", ["alice/flowers"])
    calls = len(connected.calls)
    assert completed("craft predict one.jpg --adapter al") == ["alice/flowers"]
    assert len(connected.calls) == calls


def test_a_new_list_takes_the_place_of_the_old_one_of_its_server_alone() -> None:
    options.remember("http://one", ["a", "b"])
    options.remember("http://two", ["c"])
    options.remember("http://one", ["d"])
    options.remember("http://two", ["e"], all_of_them=True)
    assert adapter_names("") == ["a", "b", "d", "e"]


@pytest.mark.parametrize("content", ["[]", "{", '{"http://one": 3}'])
def test_a_damaged_list_is_none(content: str) -> None:
    options.remember("http://one", ["a"])
    options._file().write_text(content)
    assert adapter_names("") == []
    options.remember("http://one", ["b"])
    assert adapter_names("") == ["b"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, (None, None)),
        ("8201", (8201, "queries")),
        ("queries=8201", (8201, "queries")),
        ("predictions=1e6", (1_000_000, "predictions")),
        ("images=1_000", (1000, "images")),
        ("cost=1.50", (1_500_000, "cost_micros")),
        ("cost=0.000001", (1, "cost_micros")),
    ],
)
def test_a_budget_is_of_queries_or_of_the_unit_that_it_names(
    text: str | None, said: tuple[Any, Any]
) -> None:
    assert budget_of(text) == said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is no number"),
        ("many", "'many' is no number"),
        ("nan", "no number"),
        ("inf", "whole, from 1"),
        ("1e999999", "whole, from 1"),
        ("1e99999999", "no number"),
        ("calls=5", "'calls' is no unit; there are queries, .*, cost"),
        ("0", "whole, from 1"),
        ("-5", "whole, from 1"),
        ("1.5", "whole, from 1"),
        ("predictions=1e16", "whole, from 1"),
        ("cost=0.0000001", "of six decimals"),
    ],
)
def test_what_is_no_budget_is_told(text: str, words: str) -> None:
    with pytest.raises(typer.BadParameter, match=words):
        budget_of(text)


def test_settings_of_a_recipes_own_are_names_and_values() -> None:
    assert options_of(["batch=32", "file=a=b.json"]) == {"batch": "32", "file": "a=b.json"}
    for wrong in ("batch", "=32"):
        with pytest.raises(typer.BadParameter, match="is not NAME=VALUE"):
            options_of([wrong])
