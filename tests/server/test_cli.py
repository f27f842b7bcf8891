from __future__ import annotations

import asyncio
import csv
import io
import json
import re
import socket
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import typer
from typer.testing import CliRunner, Result

from craft_server.cli import app
from craft_server.cli.ledger import writing
from craft_server.clock import now_ms
from craft_server.database import Database
from craft_server.ledger import exports, leases
from craft_server.ledger.charges import Work, reserve, settle
from craft_server.ledger.keys import Caller, Rates, authenticate
from craft_server.ledger.selection import Selection
from craft_server.ledger.tables import CHARGES
from craft_server.serving.listening import listening
from craft_server.settings import Settings
from craft_shared.units import Units


@pytest.fixture
def craft_server(store_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs `craft-server` on an empty database of each kind."""
    monkeypatch.setenv("CRAFT_DATABASE_URL", store_url)
    monkeypatch.setenv("CRAFT_DATA_DIR", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(app, [str(part) for part in arguments])


def create(craft_server: Any, *arguments: str) -> dict[str, Any]:
    done = craft_server("keys", "create", "--owner", "me", "--json", *arguments)
    assert done.exit_code == 0, done.output
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def check_error(done: Result, words: str, code: int = 1) -> None:
    assert done.exit_code == code
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("Error: ")
    assert words in done.stderr
    assert "Traceback" not in done.output


def check_usage(done: Result, words: str) -> None:
    """Wrong usage, told in one line."""
    check_error(done, words, code=2)


def check_choice(done: Result, option: str, *choices: str) -> None:
    """A value that is none of an option's choices, which are told."""
    assert done.exit_code == 2
    told = " ".join(done.stderr.replace("│", " ").split())
    for words in (f"'{option}'", *choices):
        assert words in told


def test_a_made_key_is_the_last_line_and_works(
    craft_server: Any, store_url: str, tmp_path: Path
) -> None:
    done = craft_server("keys", "create", "--owner", "me", "--queries", 5)
    key = done.stdout.splitlines()[-1]
    database = Database.open(store_url, tmp_path)
    with database.reading() as connection:
        caller = authenticate(connection, key, now_ms())
    database.close()
    assert caller is not None
    assert caller.owner == "me"


def test_a_key_is_shown_once(craft_server: Any) -> None:
    made = create(craft_server, "--name", "laptop", "--queries", "5", "--texts", "0")
    assert made["budgets"] == {"queries": 5, "texts": 0}
    listed = craft_server("keys", "list", "--json")
    (entry,) = json.loads(listed.stdout)
    assert (entry["prefix"], entry["owner"], entry["name"]) == (made["prefix"], "me", "laptop")
    secret = made["key"].split("_", 2)[2]
    for command in (("keys", "list"), ("budgets", "show", made["prefix"])):
        assert secret not in craft_server(*command).output


def test_a_top_up_adds_to_the_limit(craft_server: Any) -> None:
    prefix = create(craft_server, "--queries", "5", "--images", "1")["prefix"]
    done = craft_server("budgets", "top-up", prefix, "--queries", 3, "--images", 2, "--json")
    assert {budget["unit"]: budget["limit"] for budget in json.loads(done.stdout)} == {
        "queries": 8,
        "images": 3,
    }
    assert "8" in craft_server("budgets", "show", prefix).stdout


def test_a_top_up_of_an_unbounded_unit_is_an_error(craft_server: Any) -> None:
    prefix = create(craft_server, "--queries", "5")["prefix"]
    check_error(
        craft_server("budgets", "top-up", prefix, "--queries", 1, "--texts", 3),
        "no budget on texts",
    )
    (budget,) = json.loads(craft_server("budgets", "show", prefix, "--json").stdout)
    assert budget["limit"] == 5


def test_a_top_up_of_nothing_is_an_error(craft_server: Any) -> None:
    prefix = create(craft_server)["prefix"]
    check_usage(craft_server("budgets", "top-up", prefix), "--queries")


def test_a_revoked_key_is_listed_as_such(craft_server: Any) -> None:
    prefix = create(craft_server)["prefix"]
    assert craft_server("keys", "revoke", prefix).exit_code == 0
    (entry,) = json.loads(craft_server("keys", "list", "--json").stdout)
    assert entry["revoked_at"]


@pytest.mark.parametrize(
    "command",
    [
        ("keys", "revoke"),
        ("keys", "rotate"),
        ("budgets", "show"),
        ("budgets", "top-up", "--queries", "1"),
        ("budgets", "set", "--unit", "queries", "--limit", "1"),
        ("usage", "export", "--key"),
    ],
)
def test_an_unknown_prefix_is_an_error(craft_server: Any, command: tuple[str, ...]) -> None:
    check_error(craft_server(*command, "abcdefgh"), "no key abcdefgh")


@pytest.mark.parametrize("amount", ["-1", "x", str(10**16)])
def test_a_limit_must_be_a_sane_number(craft_server: Any, amount: str) -> None:
    done = craft_server("keys", "create", "--owner", "me", "--queries", amount)
    assert done.exit_code == 2
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--database-url", "mysql://u:secret@h/d"], "mysql"),
        (["--database-url", "postgresql://u:secret@127.0.0.1:1/d"], "refused"),
        (["--data-dir", "/proc/nowhere"], "/proc/nowhere"),
    ],
)
@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("keys", "list")])
def test_a_database_that_cannot_be_used_is_one_line(
    command: tuple[str, ...], arguments: list[str], words: str
) -> None:
    done = CliRunner().invoke(app, [*command, *arguments])
    check_error(done, words)
    assert "secret" not in done.output


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = CliRunner().invoke(
            app, ["serve", "--port", str(port), "--data-dir", str(tmp_path / "data")]
        )
    check_error(done, f"port {port}")


def test_answers_are_not_held_back_for_an_acknowledgement(tmp_path: Path) -> None:
    async def nodelay(listener: socket.socket) -> int:
        accepted = asyncio.get_running_loop().create_future()
        server = await asyncio.start_server(lambda _, out: accepted.set_result(out), sock=listener)
        _, writer = await asyncio.open_connection(*listener.getsockname())
        answering = await accepted
        option = answering.get_extra_info("socket").getsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY
        )
        for stream in (writer, answering):
            stream.close()
            await stream.wait_closed()
        server.close()
        return option

    with listening(Settings(data_dir=tmp_path, port=0)) as listener:
        assert asyncio.run(nodelay(listener)) != 0


@pytest.mark.parametrize("command", ["serve", "record"])
def test_a_bad_profile_is_one_line_before_anything_is_loaded(tmp_path: Path, command: str) -> None:
    (tmp_path / "own.toml").write_text("name = 1\n")
    out = ["--out", str(tmp_path / "tape")] if command == "record" else []
    for profile, words in (("perfect", "no profile 'perfect'"), (tmp_path / "own.toml", "name")):
        arguments = [command, "--data-dir", str(tmp_path / "data"), "--profile", str(profile), *out]
        check_error(CliRunner().invoke(app, arguments), words)
    assert not (tmp_path / "data").exists()


def test_a_bad_setting_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRAFT_PORT", "70000")
    check_usage(CliRunner().invoke(app, ["serve", "--data-dir", str(tmp_path)]), "port")


def test_keys_and_help_do_not_wait_for_torch(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from craft_server.cli import app\n"
        f"app(['keys', 'list', '--data-dir', {str(tmp_path)!r}], standalone_mode=False)\n"
        "assert not {'torch', 'open_clip', 'fastapi'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def open_store(store_url: str, tmp_path: Path) -> Database:
    return Database.open(store_url, tmp_path)


def who(store_url: str, tmp_path: Path, key: str, at: int | None = None) -> Caller | None:
    database = open_store(store_url, tmp_path)
    with database.reading() as connection:
        caller = authenticate(connection, key, now_ms() if at is None else at)
    database.close()
    return caller


def spend(store_url: str, tmp_path: Path, key: str, units: Units, at: int | None = None) -> None:
    caller = who(store_url, tmp_path, key)
    assert caller is not None
    database = open_store(store_url, tmp_path)
    work = Work("predictions", "tiny", "r1", units, 'run, "one"')
    moment = now_ms() if at is None else at
    with database.writing() as connection:
        leases.renew(connection, "test", moment + 60_000)
        reserved = reserve(connection, caller, work, holder="test", at=moment)
        settle(connection, reserved, moment)
    database.close()


def test_a_key_has_the_scopes_rates_and_end_it_was_made_with(
    craft_server: Any, store_url: str, tmp_path: Path
) -> None:
    made = create(
        craft_server,
        *("--team", "lab", "--scope", "predict", "--scope", "admin", "--expires-in", "30d"),
        *("--requests-per-minute", "60", "--predictions-per-minute", "900", "--concurrency", "4"),
    )
    caller = who(store_url, tmp_path, made["key"])
    assert caller is not None
    assert caller.scopes == {"predict", "admin"}
    assert caller.rates == Rates(60, 900, 4)
    days = 86_400_000
    assert who(store_url, tmp_path, made["key"], now_ms() + 29 * days) is not None
    assert who(store_url, tmp_path, made["key"], now_ms() + 30 * days) is None
    (entry,) = json.loads(craft_server("keys", "list", "--json").stdout)
    assert (entry["team"], entry["scopes"]) == ("lab", ["predict", "admin"])
    assert entry["requests_per_minute"] == 60
    assert entry["expires_at"] == made["expires_at"]


def test_no_key_is_an_admin_unless_it_is_asked_for(
    craft_server: Any, store_url: str, tmp_path: Path
) -> None:
    caller = who(store_url, tmp_path, create(craft_server)["key"])
    assert caller is not None
    assert caller.scopes == {"predict", "publish"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scope", "root"], "--scope"),
        (["--expires-in", "soon"], "--expires-in"),
        (["--expires-in", "30"], "--expires-in"),
        (["--expires-in", "999999999w"], "--expires-in"),
        (["--team", " "], "--team"),
        (["--name", "x" * 201], "--name"),
        (["--name", "bell\a"], "--name"),
        (["--name", "@SUM(1)"], "begins with '@'"),
        (["--team", "abc\u202etxt"], "U+202E"),
        (["--owner", '=HYPERLINK("http://evil","x")'], "begins with '='"),
        (["--owner", "half \udcff of a character"], "--owner"),
    ],
)
def test_a_bad_option_of_a_key_is_one_line(
    craft_server: Any, arguments: list[str], words: str
) -> None:
    check_usage(craft_server("keys", "create", "--owner", "me", *arguments), words)
    assert json.loads(craft_server("keys", "list", "--json").stdout) == []


def test_both_secrets_work_while_a_key_is_rotated(
    craft_server: Any, store_url: str, tmp_path: Path
) -> None:
    made = create(craft_server)
    done = craft_server("keys", "rotate", made["prefix"], "--overlap", "1h", "--json")
    rotated = json.loads(done.stdout)
    before, after = now_ms() + 59 * 60_000, now_ms() + 60 * 60_000
    assert who(store_url, tmp_path, made["key"], before) is not None
    assert who(store_url, tmp_path, rotated["key"], before) is not None
    assert who(store_url, tmp_path, made["key"], after) is None
    assert who(store_url, tmp_path, rotated["key"], after) is not None
    (entry,) = json.loads(craft_server("keys", "list", "--json").stdout)
    assert set(entry["prefixes"]) == {made["prefix"], rotated["prefix"]}
    assert (
        craft_server("keys", "rotate", made["prefix"]).stdout.splitlines()[-1].startswith("craft_")
    )


def test_a_revoked_key_is_not_rotated(craft_server: Any) -> None:
    prefix = create(craft_server)["prefix"]
    craft_server("keys", "revoke", prefix)
    check_error(craft_server("keys", "rotate", prefix), "revoked")


def test_a_budget_is_set_shown_and_topped_up_by_window(craft_server: Any) -> None:
    prefix = create(craft_server, "--queries", "5")["prefix"]
    budget = ("--unit", "queries", "--window", "day")
    assert craft_server("budgets", "set", prefix, *budget, "--limit", 3).exit_code == 0
    done = craft_server("budgets", "top-up", prefix, "--queries", 4, "--window", "day", "--json")
    assert {b["window"]: b["limit"] for b in json.loads(done.stdout)} == {"day": 7, "lifetime": 5}
    done = craft_server("budgets", "set", prefix, *budget, "--limit", 2, "--json")
    assert {b["window"]: b["limit"] for b in json.loads(done.stdout)} == {"day": 2, "lifetime": 5}
    check_error(
        craft_server("budgets", "top-up", prefix, "--queries", 4, "--window", "hour"),
        "no budget on queries (hour)",
    )


def test_a_teams_budget_bounds_its_keys(craft_server: Any) -> None:
    prefix = create(craft_server, "--team", "lab")["prefix"]
    set_ = ("budgets", "set", "--team", "lab", "--unit", "texts", "--limit", "9")
    assert craft_server(*set_).exit_code == 0
    done = craft_server("budgets", "top-up", "--team", "lab", "--texts", "1", "--json")
    (of_team,) = json.loads(done.stdout)
    (of_key,) = json.loads(craft_server("budgets", "show", prefix, "--json").stdout)
    assert of_team == of_key
    assert (of_key["of"], of_key["limit"]) == ("team", 10)


def test_each_end_user_of_a_key_is_bounded_shown_and_freed_again(craft_server: Any) -> None:
    prefix = create(craft_server, "--queries", "50", "--require-user")["prefix"]
    which = (prefix, "--per-user", "--unit", "queries", "--window", "day")
    done = craft_server("budgets", "set", *which, "--limit", 9, "--json")
    assert [(b["of"], b["limit"]) for b in json.loads(done.stdout)] == [("key", 50), ("user", 9)]
    assert "each user" in craft_server("budgets", "show", prefix).stdout
    shown = json.loads(craft_server("budgets", "show", prefix, "--user", "ann", "--json").stdout)
    assert [b["remaining"] for b in shown] == [50, 9]
    done = craft_server("budgets", "remove", *which, "--json")
    assert [b["of"] for b in json.loads(done.stdout)] == ["key"]
    check_error(craft_server("budgets", "remove", *which), "no budget on queries (day)")
    (card,) = json.loads(craft_server("keys", "list", "--json").stdout)
    assert card["require_user"] is True
    done = craft_server("keys", "set", prefix, "--no-require-user", "--json")
    assert json.loads(done.stdout)["require_user"] is False


def test_a_team_has_no_end_users(craft_server: Any) -> None:
    create(craft_server, "--team", "lab")
    which = ("budgets", "set", "--team", "lab", "--per-user", "--unit", "texts", "--limit", "9")
    check_usage(craft_server(*which), "a team has no end users")


def test_a_key_is_changed_in_what_options_name(craft_server: Any, store_url: str) -> None:
    prefix = create(
        craft_server, "--team", "vision", "--requests-per-minute", "60", "--expires-in", "1d"
    )["prefix"]
    done = craft_server(
        *("keys", "set", prefix, "--name", "phones", "--concurrency", 4, "--level", "label"),
        *("--requests-per-minute", 0, "--json"),
    )
    assert done.exit_code == 0, done.output
    card = json.loads(done.stdout)
    assert (card["name"], card["team"], card["concurrency"]) == ("phones", "vision", 4)
    assert card["requests_per_minute"] is None
    assert card["expires_at"] is not None
    policy = json.loads(craft_server("keys", "policy", prefix, "--json").stdout)["policies"]
    assert policy[0]["output"]["level"] == "label"
    craft_server("keys", "set", prefix, "--team", "", "--expires-in", "never")
    (card,) = json.loads(craft_server("keys", "list", "--json").stdout)
    assert (card["team"], card["expires_at"], card["name"]) == (None, None, "phones")

    check_usage(craft_server("keys", "set", prefix), "name what is to change")
    craft_server("keys", "revoke", prefix)
    check_error(craft_server("keys", "set", prefix, "--name", "x"), "is revoked")


def test_a_window_is_given_with_the_key_and_its_budget_is_listed(craft_server: Any) -> None:
    prefix = create(craft_server, "--queries", "800", "--window", "day")["prefix"]
    (budget,) = json.loads(craft_server("budgets", "show", prefix, "--json").stdout)
    assert (budget["limit"], budget["window"]) == (800, "day")
    shown = craft_server("keys", "list").stdout
    assert prefix in shown
    assert "0 of 800 queries a day" in shown


def test_teams_are_listed_with_their_living_keys(craft_server: Any) -> None:
    kept = create(craft_server, "--team", "vision")["prefix"]
    gone = create(craft_server, "--team", "vision")["prefix"]
    craft_server("keys", "revoke", gone)
    craft_server("budgets", "set", "--team", "vision", "--unit", "images", "--limit", 10)
    found = json.loads(craft_server("teams", "list", "--json").stdout)
    assert found == [{"name": "vision", "keys": [kept]}]
    (budget,) = json.loads(craft_server("teams", "show", "vision", "--json").stdout)
    assert budget["limit"] == 10


def test_a_budget_is_removed_unless_a_call_that_runs_holds_some_of_it(
    craft_server: Any,
) -> None:
    made = create(craft_server, "--queries", "800")
    remove = ("budgets", "remove", made["prefix"], "--unit", "queries")
    with writing(None, None) as connection:
        caller = authenticate(connection, made["key"], now_ms())
        assert caller is not None
        leases.renew(connection, "server", now_ms() + 60_000)
        work = Work("predictions", "pocket", "r", Units(queries=5))
        reserved = reserve(connection, caller, work, holder="server", at=now_ms())
    check_error(craft_server(*remove), "calls that run now hold 5")
    with writing(None, None) as connection:
        settle(connection, reserved, now_ms())
    assert json.loads(craft_server(*remove, "--json").stdout) == []
    check_error(craft_server(*remove), "there is no budget on queries")


def test_a_limit_below_what_is_spent_is_an_error(
    craft_server: Any, store_url: str, tmp_path: Path
) -> None:
    made = create(craft_server, "--queries", "5")
    spend(store_url, tmp_path, made["key"], Units(queries=4))
    command = ("budgets", "set", made["prefix"], "--unit", "queries", "--limit")
    check_error(craft_server(*command, 3), "4 queries are spent")
    assert craft_server(*command, 4).exit_code == 0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("set", "--unit", "queries", "--limit", "1"), "--team"),
        (("set", "--unit", "queries", "--limit", "1", "PREFIX", "--team", "lab"), "--team"),
        (("show",), "--team"),
    ],
)
def test_a_bad_budget_is_one_line(craft_server: Any, command: tuple[str, ...], words: str) -> None:
    prefix = create(craft_server, "--team", "lab")["prefix"]
    arguments = [prefix if part == "PREFIX" else part for part in command]
    check_usage(craft_server("budgets", *arguments), words)


def test_an_unknown_team_is_an_error(craft_server: Any) -> None:
    budget = ("--unit", "queries", "--limit", "1")
    check_error(craft_server("budgets", "set", *budget, "--team", "nobody"), "no team nobody")


@pytest.mark.parametrize(
    ("command", "choices"),
    [
        (("budgets", "set", "x", "--limit", "1", "--unit", "apples"), ("queries", "cost_micros")),
        (("budgets", "top-up", "x", "--queries", "1", "--window", "year"), ("lifetime", "hour")),
        (("keys", "policy", "x", "--level", "logits"), ("label", "top_k")),
        (("usage", "export", "--format", "xlsx"), ("csv", "jsonl")),
        (("serve", "--precision", "double"), ("fastest", "bfloat16")),
        (("serve", "--log-level", "loud"), ("debug", "warning")),
    ],
)
def test_a_value_that_is_no_choice_is_told_with_the_choices(
    command: tuple[str, ...], choices: tuple[str, ...]
) -> None:
    check_choice(CliRunner().invoke(app, command), command[-2], *choices)


def test_prices_are_set_and_listed(craft_server: Any) -> None:
    assert craft_server("prices", "set", "pocket", "--queries", 100, "--texts", 2).exit_code == 0
    assert craft_server("prices", "set", "pocket", "--queries", 70).exit_code == 0
    listed = json.loads(craft_server("prices", "list", "--json").stdout)
    assert listed == {"pocket": {"queries": 70, "texts": 2}}
    assert "70" in craft_server("prices", "list").stdout
    check_usage(craft_server("prices", "set", "pocket"), "--queries")


def test_usage_is_exported_line_by_line(craft_server: Any, store_url: str, tmp_path: Path) -> None:
    craft_server("prices", "set", "tiny", "--queries", 10)
    made, other = create(craft_server, "--team", "lab"), create(craft_server)
    for number, key in enumerate((made, other, made)):
        spend(store_url, tmp_path, key["key"], Units(queries=number), 1_700_000_000_000 + number)
    done = craft_server("usage", "export", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    lines = [
        json.loads(line)
        for line in craft_server("usage", "export", "--format", "jsonl").stdout.splitlines()
    ]
    assert [line["queries"] for line in lines] == [0, 1, 2]
    assert [(line["id"], line["line"]) for line in lines] == [(1, 1), (2, 1), (3, 2)]
    assert [line["cost_micros"] for line in lines] == [0, 10, 20]
    assert [line["key"] for line in lines] == [k["prefix"] for k in (made, other, made)]
    assert lines[0]["run"] == 'run, "one"'
    assert (lines[0]["owner"], lines[0]["team"], lines[1]["team"]) == ("me", "lab", None)
    assert lines[0]["at"] == lines[0]["closed_at"] == "2023-11-14T22:13:20.000Z"
    # The two formats say the same.
    assert [
        {name: "" if value is None else str(value) for name, value in line.items()}
        for line in lines
    ] == rows


def test_usage_is_summed_by_what_is_named(craft_server: Any) -> None:
    made = {
        name: create(craft_server, "--name", name, *options)
        for name, options in {
            "one": ("--team", "vision"),
            "two": ("--team", "vision"),
            "apart": (),
        }.items()
    }
    craft_server("prices", "set", "pocket", "--queries", 100)
    november, december = 1_793_491_200_000, 1_796_083_200_000  # 2026-11-01 and -12-01
    charged = [("one", december, 4), ("two", november, 5), ("apart", november, 7)]
    with writing(None, None) as connection:
        leases.renew(connection, "server", december + 60_000)
        for name, at, queries, *adapter in [("one", november, 3, "lab/pets@2"), *charged]:
            caller = authenticate(connection, made[name]["key"], now_ms())
            assert caller is not None
            work = Work("predictions", "pocket", "r", Units(queries=queries), None, *adapter)
            settle(connection, reserve(connection, caller, work, holder="server", at=at), at)

    def sums(*options: str) -> list[tuple[Any, ...]]:
        done = craft_server("usage", "sum", *options, "--json")
        assert done.exit_code == 0, done.output
        return [
            (*list(line.values())[: options.count("--by")], line["queries"], line["cost_micros"])
            for line in json.loads(done.stdout)
        ]

    assert sums("--by", "team") == [("", 7, 700), ("vision", 12, 1200)]
    assert sums("--by", "team", "--by", "month", "--team", "vision") == [
        ("vision", "2026-11", 8, 800),
        ("vision", "2026-12", 4, 400),
    ]
    assert sums("--by", "key", "--key", made["two"]["prefix"]) == [(made["two"]["prefix"], 5, 500)]
    assert sums("--by", "model", "--since", "2026-12-01T00:00:00Z") == [("pocket", 4, 400)]
    assert sums("--by", "adapter", "--model", "pocket") == [("", 16, 1600), ("lab/pets", 3, 300)]
    assert sums("--by", "owner", "--adapter", "lab/pets") == [("me", 3, 300)]
    csv_text = craft_server("usage", "sum", "--by", "team", "--csv").stdout
    assert [row["queries"] for row in csv.DictReader(io.StringIO(csv_text))] == ["7", "12"]
    assert "0.0012" in craft_server("usage", "sum", "--by", "team").stdout
    exported = craft_server("usage", "export", "--team", "vision").stdout
    assert [row["queries"] for row in csv.DictReader(io.StringIO(exported))] == ["3", "5", "4"]
    check_error(craft_server("usage", "sum", "--by", "team", "--team", "none"), "no team none")
    exported = craft_server("usage", "export", "--adapter", "lab/pets@2").stdout
    assert [row["adapter"] for row in csv.DictReader(io.StringIO(exported))] == ["lab/pets@2"]
    statement = ("usage", "statement", "--team", "vision", "--month", "2026-11")
    found = json.loads(craft_server(*statement, "--json").stdout)
    assert [(line["name"], line["amount"], line["cost_micros"]) for line in found["lines"]] == [
        ("one", 3, 300),
        ("two", 5, 500),
    ]
    assert (found["total"]["queries"], found["total"]["cost_micros"]) == (8, 800)
    rows = list(csv.DictReader(io.StringIO(craft_server(*statement, "--csv").stdout)))
    assert [(row["unit"], row["price_micros"], row["cost_micros"]) for row in rows] == [
        ("queries", "100", "300"),
        ("queries", "100", "500"),
        ("total", "", "800"),
    ]
    printed = craft_server(*statement).stdout
    assert re.search(r"one .* pocket +queries +3 +0.000100 +0.000300\n", printed)
    assert re.search(r"total +0.000800\n", printed)
    check_usage(craft_server("usage", "statement", "--month", "2026"), "--month")
    check_error(craft_server(*statement[:3], "none", *statement[4:]), "no team none")


def test_usage_is_exported_of_one_key_and_period(
    craft_server: Any, store_url: str, tmp_path: Path
) -> None:
    made, other = create(craft_server), create(craft_server)
    for number in range(4):
        at = 1_700_000_000_000 + 1000 * number
        spend(store_url, tmp_path, made["key"], Units(queries=number), at)
        spend(store_url, tmp_path, other["key"], Units(queries=9), at)
    done = craft_server(
        *("usage", "export", "--format", "jsonl", "--key", made["prefix"]),
        *("--since", "2023-11-14T22:13:21Z", "--until", "2023-11-14T23:13:23+01:00"),
    )
    assert [json.loads(line)["queries"] for line in done.stdout.splitlines()] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--since", "yesterday"], "--since"),
        (["--until", "2026-01-01T00:00:00"], "--until"),
        # Seconds since 1970 are no RFC 3339 time, here as in the API.
        (["--since", "1767225600"], "--since"),
    ],
)
def test_a_bad_export_is_one_line(craft_server: Any, arguments: list[str], words: str) -> None:
    done = craft_server("usage", "export", *arguments)
    check_usage(done, words)
    assert done.stdout == ""


def test_an_export_holds_few_rows_in_memory(
    craft_server: Any, store_url: str, tmp_path: Path
) -> None:
    """The peak of 6,000 lines is that of 1,000 lines: rows are not gathered."""
    made = create(craft_server)
    spend(store_url, tmp_path, made["key"], Units(queries=1))
    database = open_store(store_url, tmp_path)

    def peak(rows: int) -> int:
        with database.writing() as connection:
            (line,) = connection.execute(sa.select(CHARGES).limit(1)).mappings()
            have = connection.execute(sa.select(sa.func.count()).select_from(CHARGES)).scalar_one()
            copied = {name: value for name, value in line.items() if name != "id"}
            numbers = range(have + 1, rows + 1)
            connection.execute(sa.insert(CHARGES), [{**copied, "line": n} for n in numbers])
        with database.reading() as connection:
            tracemalloc.start()
            count = sum(1 for _ in exports.lines(connection, Selection()))
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert count == rows
        return most

    few = peak(1_000)
    many = peak(6_000)
    database.close()
    assert many < 2 * few


def test_a_policy_is_set_with_the_key_or_later_and_said_without_options(craft_server: Any) -> None:
    made = create(craft_server, "--level", "top_k", "--k", "3", "--prompts-per-image-set", "40")
    prefix = made["prefix"]
    said = craft_server("keys", "policy", prefix)
    assert (
        said.stdout == "every model: top_k: the 3 most probable classes; 40 prompts an image set\n"
    )
    options = ("--model", "RN50", "--level", "probs", "--decimals", "2", "--noise", "0.5")
    done = craft_server("keys", "policy", prefix, *options)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        said.stdout.strip(),
        "RN50: probs: probabilities, 2 decimals, with noise of 0.5 nats",
    ]
    shown = json.loads(craft_server("keys", "policy", prefix, "--json").stdout)["policies"]
    assert [(one["model"], one["output"]["level"]) for one in shown] == [
        (None, "top_k"),
        ("RN50", "probs"),
    ]
    craft_server("keys", "policy", prefix, "--level", "log_probs")
    assert craft_server("keys", "policy", prefix).stdout.startswith(
        "every model: log_probs: log-probabilities of all classes\n"
    )
    other = create(craft_server)["prefix"]
    assert "all classes" in craft_server("keys", "policy", other).stdout


def test_a_policy_that_cannot_be_is_one_line(craft_server: Any) -> None:
    prefix = create(craft_server)["prefix"]
    check_usage(craft_server("keys", "policy", prefix, "--level", "top_k"), "needs k")
    check_usage(craft_server("keys", "create", "--owner", "me", "--k", 3), "it has no k")
    check_error(craft_server("keys", "policy", "aaaaaaaa", "--level", "label"), "aaaaaaaa")


def test_a_key_file_holds_the_key_alone_and_others_cannot_read_it(
    craft_server: Any, store_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    done = craft_server("keys", "create", "--owner", "me", "--key-file", file)
    assert done.exit_code == 0, done.output
    key = file.read_text()
    assert key not in done.output
    assert file.stat().st_mode & 0o007 == 0
    database = Database.open(store_url, tmp_path)
    with database.reading() as connection:
        assert authenticate(connection, key, now_ms()).owner == "me"
    database.close()


def test_a_key_file_that_is_there_makes_no_second_key(craft_server: Any, tmp_path: Path) -> None:
    file = tmp_path / "key"
    craft_server("keys", "create", "--owner", "me", "--key-file", file)
    before = file.read_text()
    again = craft_server("keys", "create", "--owner", "me", "--key-file", file)
    assert again.exit_code == 0
    assert file.read_text() == before
    assert len(json.loads(craft_server("keys", "list", "--json").stdout)) == 1


def test_a_key_that_cannot_be_written_is_not_made(craft_server: Any, tmp_path: Path) -> None:
    file = tmp_path / "none" / "key"
    done = craft_server("keys", "create", "--owner", "me", "--key-file", file)
    check_error(done, "--key-file")
    assert json.loads(craft_server("keys", "list", "--json").stdout) == []


def test_a_database_that_fails_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change() -> None:
        with writing(tmp_path, None) as connection:
            connection.exec_driver_sql("PRAGMA query_only = 1")
            connection.execute(sa.text("UPDATE holders SET lease_until = 0"))

    with pytest.raises(typer.Exit) as ended:
        change()
    assert ended.value.exit_code == 1
    assert "the database has failed, and nothing was changed" in capsys.readouterr().err
