"""What a server refuses is told in the words of the command line."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from craft_client.cli import app
from craft_client.cli.wording import lines
from craft_client.exceptions import AnswerLost, CraftError, problem_error
from craft_shared.problems import (
    INVALID_REQUEST,
    PROBLEM_TYPES,
    UNAUTHENTICATED,
    FieldError,
    Problem,
    ProblemType,
)

from .wire_server import WireServer

HTTP = re.compile(
    r"\b(GET|POST|PUT|PATCH|DELETE)\b|/v1/|Idempotency|Retry-After|Authorization|Bearer|'errors'"
    r"|'detail'|'until'|header|address of the call|/docs"
)
COMMANDS: Any = typer.main.get_command(app)


def command(*path: str) -> Any:
    found = COMMANDS
    for name in path:
        found = found.commands[name]
    return found


@pytest.mark.parametrize("kind", PROBLEM_TYPES.values(), ids=lambda kind: kind.slug)
def test_no_remedy_is_for_programs(kind: ProblemType) -> None:
    """Of the whole table of refusals: the next one, too, has to be told in both languages."""
    problem = Problem.of(kind, "why").model_copy(update={"request_id": "r1"})
    told = lines(problem_error(problem), command("models"))
    assert not HTTP.search(" ".join(told).removeprefix(kind.title))
    assert told[-1] == "(request r1)"
    assert len(told) == 3, "what, a remedy, which call"


@pytest.mark.parametrize(
    ("path", "field", "option"),
    [
        (("share",), "keys[1]", "--with-key (number 2)"),
        (("share",), "aliases.stable", "--alias (stable)"),
        (("share",), "abstain_below", "--abstain-below"),
        (("tune",), "context.dim", "--dim"),
        (("tune",), "templates[0]", "--template (number 1)"),
        (("tune",), "classes[3]", "--data (class number 4)"),
        (("tune",), "random_codes", "--random-codes"),
        (("tune",), "options", "--set"),
        (("predict",), "top_k", "--top"),
        (("receipt",), "run", "[RUN]"),
        (("publish",), "name", "--name"),
        (("models",), "keys[1]", "keys[1]"),
        (("predict",), "'a/b.jpg'", "'a/b.jpg'"),
    ],
)
def test_a_field_is_told_as_its_option(path: tuple[str, ...], field: str, option: str) -> None:
    wrong = FieldError(field=field, message="is wrong", remedy="Lower context.dim.")
    told = lines(CraftError("No.", errors=[wrong]), command(*path))
    assert told == ["No.", f"{option}: is wrong. Lower --dim."]


def test_a_call_is_no_address() -> None:
    error = AnswerLost(
        "The connection broke before POST /v1/image-sets/is_1/images was answered: x."
    )
    assert lines(error, None) == ["The connection broke before the call was answered: x."]


def test_no_pattern_and_no_address_is_told() -> None:
    pattern = "String should match pattern '^[a-z0-9]{8}$'"
    told = lines(CraftError("No.", errors=[FieldError(field="keys[0]", message=pattern)]), None)
    assert told == ["No.", "keys[0]: is not the eight characters after craft_ in a key."]
    told = lines(CraftError("There is none: GET /v1/models: Not Found"), None)
    assert told == ["There is none"]


def test_what_a_caller_is_to_send_is_told_as_what_may_be_set() -> None:
    """As `craft predict` is told it by a server whose key asks for end users, and so on."""
    user = FieldError(
        field="Craft-User",
        message="the key's provider asks for whom each call is made",
        remedy="Send an id of the end user.",
    )
    assert lines(CraftError("No.", errors=[user]), command("predict"))[1] == (
        "CRAFT_USER: the key's provider asks for whom each call is made. "
        "Set it to an id of the end user."
    )
    top = FieldError(
        field="top_k",
        message="400; there are 10 classes",
        remedy="Ask for at most 10, or leave top_k out for all of them.",
    )
    assert lines(CraftError("No.", errors=[top]), command("predict"))[1] == (
        "--top: 400; there are 10 classes. Ask for at most 10, or leave --top out for all of them."
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["share", "pets", "--alias", "9!=1"], "--alias: is no alias, which is a letter, and"),
        (["image-sets", "show", "a/b"], "'a/b' is no image set's id; tune and evaluate show it."),
        (["image-sets", "delete", "a/b"], "'a/b' is no image set's id; tune and evaluate show it."),
        (["models"], "CRAFT_USER: 'a b' cannot be sent"),
    ],
)
def test_what_a_command_cannot_use_is_told_in_its_words(
    connected: WireServer, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    monkeypatch.setenv("CRAFT_USER", "a b" if words == ["models"] else "")
    done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert done.exit_code in (1, 2)
    assert told in done.stderr
    assert connected.calls == []


def test_what_a_command_prints_is_in_its_words(
    connected: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRAFT_API_KEY", "craft_wrong_key")
    done = CliRunner().invoke(app, ["models"])
    assert done.exit_code == 1
    assert UNAUTHENTICATED.title in done.stderr
    assert "--key or CRAFT_API_KEY" in done.stderr
    assert not HTTP.search(done.stderr)


def test_remedies_that_the_server_wrote_for_this_case_stay() -> None:
    own = FieldError(field="name", message="it begins with '='", remedy="Rename it.")
    told = lines(problem_error(Problem.of(INVALID_REQUEST, "one", [own])), command("publish"))
    assert told[1:] == ["--name: it begins with '='. Rename it."]
