"""Every table of both programs at 60, 80 and 120 columns, in a pipe, and with --wide."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.cells import cell_len
from typer.testing import CliRunner

from craft_client.cli import app as craft
from craft_server.cli import app as craft_server
from e2e.conftest import Server
from terminals import at_terminal

APPS = {"craft": craft, "craft-server": craft_server}
LONG = re.compile(r"\S{30}")  # a path, an issuer: it is whole, however narrow the terminal is
RUN = "runs/first"
TABLES = (
    "craft zero-shot --data digits",
    f"craft evaluate {RUN} --data digits",
    "craft evaluate --adapter pretty-digits --data digits",
    "craft tune --data digits --shots 2 --run {new}",
    "craft bench --data . --dataset digits --shots 1 --seed 1 --baseline zero-shot",
    "craft data check digits",
    f"craft runs {RUN}",
    f"craft compare {RUN} {RUN}",
    "craft adapters",
    "craft adapters pretty-digits",
    "craft share pretty-digits --public --alias stable=1",
    "craft predict digits/test/two --adapter pretty-digits",
    "craft models",
    "craft usage",
    "craft budget",
    "craft image-sets show {image_set}",
    "craft config show",
    "craft verify-receipt receipt.jws",
    "craft-server keys list",
    "craft-server teams list",
    "craft-server teams show vision",
    "craft-server budgets show {prefix}",
    "craft-server budgets set {prefix} --unit texts --limit 1000000000",
    "craft-server budgets top-up {prefix} --queries 0",
    "craft-server prices set pocket --queries 1",
    "craft-server prices list",
    "craft-server usage sum --by key --by model --by call --by month",
    "craft-server usage statement --month {month}",
    "craft-server config show",
    "craft-server plan --classes 10 --owners 3",
)
WITHOUT = {
    "craft publish",
    "craft retire",
    "craft restore",
    "craft report",
    "craft image-sets delete",
    "craft leaderboard build",
    "craft leaderboard check",
    "craft-server serve",
    "craft-server record",
    "craft-server replay",
    "craft-server apply",
    "craft-server deploy ray",
    "craft-server keys create",
    "craft-server keys policy",
    "craft-server keys set",
    "craft-server keys rotate",
    "craft-server keys revoke",
    "craft-server usage export",
    "craft-server ledger backup",
    "craft-server ledger restore",
    # Their tables are those of others above.
    "craft receipt",
    "craft-server budgets remove",
    # Nothing is installed that it could list.
    "craft plugins",
}


@pytest.fixture(scope="module")
def facts(
    server: Server, digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """A folder and a server in which each command has something to show."""
    place = tmp_path_factory.mktemp("place")
    (place / "digits").symlink_to(digits)
    key = server.key("--team", "vision", "--queries", "100000", "--images", "5000", owner="Ada L")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name, value in {**server.env, "CRAFT_URL": server.url, "CRAFT_API_KEY": key}.items():
            patch.setenv(name, value)
        tuned = server.craft_json(key, "tune", "--data", "digits", "--shots", "2", "--run", RUN)
        server.craft_json(key, "publish", RUN, "--name", "pretty-digits", "--alias", "newest")
        server.craft_json(key, "receipt", RUN, "--out", "receipt.jws")
        month = f"{datetime.now(UTC):%Y-%m}"
        yield {"prefix": key.split("_")[1], "image_set": tuned["image_set"], "month": month}


@pytest.mark.parametrize("command", TABLES)
def test_a_table_fits_the_terminal_and_is_whole_elsewhere(
    command: str, facts: dict[str, str]
) -> None:
    new = (f"runs/new{number}" for number in itertools.count())

    def words() -> list[str]:
        named = {**facts, "new": next(new)} if "{new}" in command else facts
        return command.format_map(named).split()[1:]

    app = APPS[command.split()[0]]
    for _ in range(2):  # what is new at the first call is known at the next
        piped = CliRunner().invoke(app, words(), catch_exceptions=False)
        assert piped.exit_code == 0, piped.output
    whole = piped.stdout
    assert "  " in whole, "no table"
    assert "\x1b" not in whole
    known = set(re.split(r",?\s+", whole))
    for width in (60, 80, 120):
        shown = at_terminal(width, lambda: app(words()))
        lines = [line for line in shown.splitlines() if not line.startswith("Left out: ")]
        of_tables = [line for line in lines if "  " in line and not LONG.search(line)]
        too_wide = [line for line in of_tables if cell_len(line) > width]
        assert not too_wide, f"more than {width} columns"
        assert set(re.split(r",?\s+", " ".join(lines))) <= known, "a word is cut"
    assert at_terminal(60, lambda: app([*words(), "--wide"])) == whole


def test_every_command_is_looked_at() -> None:
    def leaves(name: str, command: Any) -> Iterator[str]:
        inner = getattr(command, "commands", None)
        if not inner:
            yield name
        for word, child in (inner or {}).items():
            yield from leaves(f"{name} {word}", child)

    every = {
        leaf for name, app in APPS.items() for leaf in leaves(name, typer.main.get_command(app))
    }
    with_table = {name for name in every if any(f"{one} ".startswith(f"{name} ") for one in TABLES)}
    assert with_table | WITHOUT == every
    assert not with_table & WITHOUT
