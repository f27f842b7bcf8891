from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from craft_server.cli import app


def plan(*arguments: object) -> Result:
    words = ["plan", *map(str, arguments)]
    return CliRunner().invoke(app, words, env={"COLUMNS": "200"})


def document(*arguments: object) -> Any:
    done = plan(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_papers_run_for_fifty_owners() -> None:
    asked = ("--model", "RN50", "--classes", 1000, "--images", 16000, "--owners", 50)
    found = document(*asked, "--budget", 8201, "--recipe", "paper")
    assert found["run"]["units"]["queries"] == 8201
    assert found["all"]["units"]["queries"] == 50 * 8201
    assert found["run"]["bytes_down"] > 8201 * 1000 * 16000 * 2


def test_one_query_asks_a_vocabulary_and_strict_access_all_random_codes_at_most() -> None:
    asked = ("--classes", 20, "--images", 100)
    units = [
        document(*asked, *more)["run"]["units"]
        for more in ((), ("--vocabulary", 50), ("--strict",), ("--strict", "--random-codes", 9))
    ]
    assert [(one["queries"], one["texts"]) for one in units] == [
        (1, 1020),
        (1, 70),
        (128, 128 * 20),
        (10, 10 * 20),
    ]


def test_people_are_shown_both_columns_and_where_time_goes() -> None:
    done = plan("--classes", 100, "--owners", 3, "--price", "queries=100")
    for words in ("one run", "3 runs, 3 at once", "texts", "server's memory", "Constants of"):
        assert words in done.stdout


def test_names_are_counted_in_tokens(tmp_path: Path) -> None:
    short, long = tmp_path / "short.txt", tmp_path / "long.txt"
    short.write_text("cat\ndog\n")
    long.write_text("a very long name of some cat\nanother quite long name of a dog\n")
    seconds = [
        document("--strict", "--class-names", file)["seconds_of_run"]["texts"]
        for file in (short, long)
    ]
    assert seconds[1] > 1.5 * seconds[0]
    long.write_bytes("\ufeffcat\r\ndog\r\n".encode())
    assert document("--strict", "--class-names", long)["seconds_of_run"]["texts"] == seconds[0]


def test_prices_are_the_ledgers_where_one_is_named(tmp_path: Path) -> None:
    CliRunner().invoke(
        app, ["prices", "set", "pocket", "--queries", "100", "--data-dir", str(tmp_path)]
    )
    found = document("--classes", 10, "--data-dir", tmp_path)
    assert found["run"]["charged_micros"] == 100 * 1


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        ([], "--classes", 2),
        (["--classes", 10, "--model", "nonsense"], "there is no model 'nonsense'", 1),
        (["--classes", 10, "--images", 10**6, "--budget", 7], "--budget: 7 is less than the 8", 2),
        (["--classes", 10, "--price", "hours=1"], "--price: 'hours=1' is not UNIT=MICROS", 2),
        (["--class-names", "none.txt"], "--class-names: 'none.txt' cannot be read", 1),
        (["--classes", 10, "--constants", "none.json"], "'none.json' cannot be read", 1),
    ],
)
def test_what_cannot_be_planned_is_one_line(arguments: list[object], words: str, code: int) -> None:
    done = plan(*arguments)
    assert done.exit_code == code
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_measuring_here_replaces_the_models_constants(tmp_path: Path) -> None:
    saved = tmp_path / "constants.json"
    found = document("--classes", 10, "--measure", "--save", saved)
    kept = json.loads(saved.read_text())
    assert list(kept["models"]) == ["pocket"]
    assert kept["machine"]["name"] == found["machine"]
    again = document("--classes", 10, "--constants", saved)
    assert again["run"]["seconds"] == pytest.approx(found["run"]["seconds"])
