from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from craft_server.cli import app
from craft_server.cli.ledger import writing
from craft_server.clock import now_ms
from craft_server.ledger import leases
from craft_server.ledger.charges import Work, reserve, settle
from craft_server.ledger.keys import authenticate
from craft_shared.units import Units

WHOLE = """
[prices.pocket]
queries = 100

[[teams]]
name = "vision"
budgets = [{ unit = "cost_micros", limit = 5_000_000, window = "month" }]

[[keys]]
owner = "digits-app"
name = "phones"
team = "vision"
scopes = ["publish", "predict"]
requests_per_minute = 600
expires_at = 2030-01-01T01:00:00+01:00
budgets = [{ unit = "queries", limit = 8000 }]
policies = [{ output = { level = "top_k", k = 5 } }]
key_file = "phones.key"
"""


@pytest.fixture
def craft_server(store_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs `craft-server` on an empty database of each kind."""
    monkeypatch.setenv("CRAFT_DATABASE_URL", store_url)
    monkeypatch.setenv("CRAFT_DATA_DIR", str(tmp_path / "data"))
    return lambda *arguments: CliRunner().invoke(app, [str(part) for part in arguments])


@pytest.fixture
def apply(craft_server: Any, tmp_path: Path) -> Any:
    """Applies a file of these words: the steps that it takes."""
    file = tmp_path / "provider.toml"

    def run(words: str, *options: str) -> list[str]:
        file.write_text(words)
        done = craft_server("apply", file, "--json", *options)
        assert done.exit_code == 0, done.output
        steps: list[str] = json.loads(done.stdout)["steps"]
        return steps

    return run


def refused(craft_server: Any, tmp_path: Path, words: str, *options: str, code: int = 1) -> str:
    file = tmp_path / "provider.toml"
    file.write_text(words)
    done = craft_server("apply", file, *options)
    assert done.exit_code == code
    assert done.stderr.count("\n") == 1
    error: str = done.stderr
    return error


def listed(craft_server: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(craft_server("keys", "list", "--json").stdout)
    return found


def call(key_file: Path, *, ends: bool) -> None:
    """A call of 50 queries with a key, which is charged or runs on."""
    with writing(None, None) as connection:
        caller = authenticate(connection, key_file.read_text(), now_ms())
        assert caller is not None
        leases.renew(connection, "server", now_ms() + 60_000)
        work = Work("predictions", "pocket", "r", Units(queries=50))
        reserved = reserve(connection, caller, work, holder="server", at=now_ms())
        if ends:
            settle(connection, reserved, now_ms())


def test_an_empty_server_becomes_what_the_file_says_and_then_nothing_is_left_to_do(
    apply: Any, craft_server: Any, tmp_path: Path
) -> None:
    assert len(apply(WHOLE)) == 4
    (card,) = listed(craft_server)
    assert (card["owner"], card["name"], card["team"]) == ("digits-app", "phones", "vision")
    assert card["requests_per_minute"] == 600
    assert card["expires_at"] == "2030-01-01T00:00:00.000Z"
    assert [(b["unit"], b["limit"]) for b in card["budgets"]] == [("queries", 8000)]
    secret = (tmp_path / "phones.key").read_text()
    with writing(None, None) as connection:
        assert authenticate(connection, secret, now_ms()) is not None
    team = json.loads(craft_server("teams", "show", "vision", "--json").stdout)
    assert [(b["unit"], b["window"], b["limit"]) for b in team] == [
        ("cost_micros", "month", 5_000_000)
    ]
    prices = json.loads(craft_server("prices", "list", "--json").stdout)
    assert prices == {"pocket": {"queries": 100}}

    assert apply(WHOLE) == []
    assert len(listed(craft_server)) == 1


def test_only_the_difference_is_done_and_what_is_not_named_stays(
    apply: Any, craft_server: Any
) -> None:
    apply(WHOLE)
    changed = WHOLE.replace("= 600", "= 60").replace("limit = 8000", "limit = 9000")
    first, second = apply(changed)
    assert "requests_per_minute 600 -> 60" in first
    assert "8000 -> 9000" in second

    named_alone = '[[keys]]\nowner = "digits-app"\nname = "phones"\nkey_file = "phones.key"\n'
    assert apply(named_alone) == []
    (step,) = apply(f"{named_alone}budgets = []\n")
    assert "remove the budget on queries" in step
    (card,) = listed(craft_server)
    assert card["budgets"] == []
    assert card["requests_per_minute"] == 60


def test_a_dry_run_changes_nothing(apply: Any, craft_server: Any, tmp_path: Path) -> None:
    assert len(apply(WHOLE, "--dry-run")) == 4
    assert listed(craft_server) == []
    assert not (tmp_path / "phones.key").exists()


def test_all_or_nothing_also_of_key_files(apply: Any, craft_server: Any, tmp_path: Path) -> None:
    apply(WHOLE)
    call(tmp_path / "phones.key", ends=True)
    further = '[[keys]]\nowner = "a"\nname = "new"\nkey_file = "new.key"\n'
    error = refused(craft_server, tmp_path, further + WHOLE.replace("limit = 8000", "limit = 49"))
    assert "50 are spent or reserved already" in error
    assert len(listed(craft_server)) == 1
    assert not (tmp_path / "new.key").exists()


def test_a_dry_run_refuses_what_a_real_one_would(
    apply: Any, craft_server: Any, tmp_path: Path
) -> None:
    apply(WHOLE)
    call(tmp_path / "phones.key", ends=False)
    new = '[[keys]]\nowner = "a"\nname = "{name}"\nkey_file = "{file}"\n'
    for words, why in [
        (WHOLE.replace("limit = 8000", "limit = 49"), "50 are spent or reserved already"),
        (WHOLE.replace('[{ unit = "queries", limit = 8000 }]', "[]"), "now hold 50"),
        (new.format(name="b", file="k") + new.format(name="c", file="k"), "the file is there"),
        (new.format(name="b", file="no/k"), "no folder"),
    ]:
        (dry,) = {refused(craft_server, tmp_path, words, *how) for how in (["--dry-run"], [])}
        assert dry.startswith("Error: cannot ")
        assert why in dry
    assert sorted(file.name for file in tmp_path.glob("*k*")) == ["phones.key"]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("[[keys]\n", 2, "is no TOML"),
        ('[[keys]]\nowner = "a"\n', 2, "keys[0].key_file"),
        ('[[keys]]\nowner = "a"\nkey_file = "k"\nbudget = 1\n', 2, "keys[0].budget"),
        ('[[keys]]\nowner = "a"\nname = "b"\n', 2, "(of 'a', 'b')"),
        ('[[teams]]\nname = "t"\nbudgets = 1\n', 2, "(of 't')"),
        ("keys = [1]\n", 2, "keys[0]"),
        ("[prices.pocket]\nqueries = -1\n", 2, "prices.pocket.queries"),
        ('[[keys]]\nowner = "a"\nkey_file = "k"\n' * 2, 2, "is there twice"),
    ],
)
def test_a_file_that_cannot_be_read_names_the_field(
    craft_server: Any, tmp_path: Path, words: str, code: int, told: str
) -> None:
    assert told in refused(craft_server, tmp_path, words, code=code)


def test_a_file_that_holds_something_is_never_written_over(
    craft_server: Any, tmp_path: Path
) -> None:
    (tmp_path / "phones.key").write_text("another key")
    assert "the file is there" in refused(craft_server, tmp_path, WHOLE)
    assert (tmp_path / "phones.key").read_text() == "another key"
    assert listed(craft_server) == []


def test_keys_that_the_file_cannot_tell_apart_are_named(craft_server: Any, tmp_path: Path) -> None:
    made = [
        json.loads(
            craft_server(
                "keys", "create", "--owner", "digits-app", "--name", "phones", "--json"
            ).stdout
        )["prefix"]
        for _ in range(2)
    ]
    error = refused(craft_server, tmp_path, WHOLE)
    assert all(prefix in error for prefix in made)


def test_each_end_users_budget_is_set_changed_and_removed(apply: Any, craft_server: Any) -> None:
    of_key = '{ unit = "queries", limit = 8000 }'
    of_user = '{ unit = "queries", limit = 9, per_user = true }'
    whole = WHOLE.replace(of_key, f"{of_key}, {of_user}") + "require_user = true\n"
    assert apply(WHOLE)
    steps = apply(whole)
    assert [step.partition(" of ")[0] for step in steps] == [
        steps[0].partition(" of ")[0],
        "set the budget on queries (lifetime)",
    ]
    assert "require_user False -> True" in steps[0]
    assert "of each end user of key" in steps[1]
    assert apply(whole) == []
    (step,) = apply(whole.replace("limit = 9,", "limit = 7,"))
    assert step.endswith(": 9 -> 7")
    (step,) = apply(WHOLE + "require_user = true\n")
    assert step.startswith("remove the budget on queries (lifetime) of each end user of key")
    (card,) = listed(craft_server)
    assert [(b["unit"], b["limit"]) for b in card["budgets"]] == [("queries", 8000)]


def test_end_users_of_a_team_are_refused(craft_server: Any, tmp_path: Path) -> None:
    words = WHOLE.replace('window = "month"', "per_user = true")
    assert "end users are a key's" in refused(craft_server, tmp_path, words)
    assert listed(craft_server) == []
