"""`--quiet` and `--verbose`, before the command and behind it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stamina
from typer.testing import CliRunner

from craft_client.cli import app
from craft_client.cli.session import reason
from craft_client.exceptions import AnswerLost, ConnectionFailed, CraftError, InternalError
from craft_shared import problems
from craft_shared.problems import Problem

from .wire_server import KEY, Fault, WireServer

Craft = Callable[..., Any]


@pytest.fixture
def craft(connected: WireServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Craft:
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("words", [("--quiet", "zero-shot"), ("zero-shot", "-q")])
def test_quiet_leaves_results_alone(
    craft: Craft, picture_folder: Path, words: tuple[str, ...]
) -> None:
    loud = craft("zero-shot", "--data", picture_folder)
    assert "Charged:" in loud.stderr
    quiet = craft(*words, "--data", picture_folder)
    assert quiet.exit_code == 0
    assert quiet.stderr == ""
    assert "zero-shot" in quiet.stdout


def test_quiet_still_tells_errors(craft: Craft) -> None:
    done = craft("--quiet", "publish", "nowhere", "--name", "a")
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ")


def test_verbose_tells_each_call_with_its_request_id(craft: Craft, connected: WireServer) -> None:
    done = craft("models", "--verbose", "--json")
    assert done.stdout.startswith("{")
    (line,) = done.stderr.splitlines()
    form = r"GET /v1/models: 200, [\d,]+ bytes \(\d+ ms, request (\S+)\)"
    told = re.fullmatch(form, line)
    assert told, line
    assert told[1] == connected.seen[-1].headers["X-Request-Id"]
    assert KEY not in done.stderr


def test_verbose_tells_short_waits_too(craft: Craft, connected: WireServer) -> None:
    connected.faults.append(Fault("GET /v1/models", status=503))
    with stamina.set_testing(False):
        done = craft("-v", "models")
    lines = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "GET /v1/models",
        lines[1].partition(":")[0],
        "GET /v1/models",
    ]
    assert re.fullmatch(r"Retrying in 0\.\d s: a gateway answered 503\.", lines[1])


def test_without_either_calls_are_not_told_and_no_handler_stays(craft: Craft) -> None:
    craft("-v", "models")
    done = craft("models")
    assert done.stderr == ""
    assert logging.getLogger("craft_client").handlers == []


def test_both_at_once_is_wrong_usage(craft: Craft) -> None:
    done = craft("-q", "-v", "models")
    assert done.exit_code == 2
    assert "exclude each other" in done.stderr


def test_words_behind_two_dashes_are_arguments(craft: Craft) -> None:
    done = craft("publish", "--name", "a", "--", "-q")
    assert done.exit_code == 1
    assert "'-q/run.json' does not exist" in done.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionFailed("x"), "there is no connection to the server"),
        (AnswerLost("x"), "the connection broke"),
        (InternalError(Problem.of(problems.INTERNAL_ERROR, "")), "the server failed at the call"),
        (CraftError("Something. \nelse"), "Something"),
    ],
)
def test_a_wait_has_a_short_reason(error: Exception, words: str) -> None:
    assert reason(error).strip(" .") == words
