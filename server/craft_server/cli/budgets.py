"""`craft-server budgets` and `teams`: what bounds keys and teams, shown, set and removed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from craft_server.cli import options
from craft_server.cli.ledger import reading, writing
from craft_server.cli.options import amounts_of, checked
from craft_server.cli.output import misuse, note, print_json, print_table
from craft_shared.amounts import MAX_AMOUNT, Measure
from craft_shared.commands import Typer, examples

if TYPE_CHECKING:
    import sqlalchemy as sa

    from craft_server.ledger import administration
    from craft_shared.wire import Budget

app = Typer(
    help="Show, set, top up and remove keys' and teams' budgets.",
    no_args_is_help=True,
    epilog=examples("craft-server budgets show abcd1234"),
)

PerUser = Annotated[
    bool, typer.Option("--per-user", help="The budget of each end user that the key's calls name.")
]


@app.command(
    epilog=examples(
        "craft-server budgets show abcd1234", "craft-server budgets show --team vision --json"
    )
)
def show(
    prefix: options.AnyPrefix = None,
    team: options.Team = None,
    user: Annotated[
        str | None, typer.Option(help="The end user of the key whose budgets are shown.")
    ] = None,
    json_output: options.AsJson = False,
    data_dir: options.DataDir = None,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Show the budgets that bound a key (its own, its team's, its end users'), or a team's."""
    from craft_server.clock import now_ms
    from craft_server.ledger import administration

    with reading(data_dir, database_url) as connection:
        holder = _holder(connection, prefix, team)
        budgets = administration.show_budgets(connection, holder, now_ms(), user)
    _print(budgets, json_output)


@app.command(
    "set",
    epilog=examples(
        "craft-server budgets set abcd1234 --unit queries --limit 8000",
        "craft-server budgets set --team vision --unit cost_micros --limit 5000000 --window month",
        "craft-server budgets set abcd1234 --per-user --unit queries --limit 1000 --window day",
    ),
)
def set_(
    unit: Annotated[Measure, typer.Option(help="The unit that the budget bounds.")],
    limit: Annotated[int, typer.Option(min=0, max=MAX_AMOUNT, help="The most in one window.")],
    prefix: options.AnyPrefix = None,
    team: options.Team = None,
    window: options.BudgetWindow = "lifetime",
    per_user: PerUser = False,
    json_output: options.AsJson = False,
    data_dir: options.DataDir = None,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Set a budget, or change its limit; it counts from when it is first set."""
    from craft_server.ledger import administration
    from craft_shared.wire import BudgetLimit

    wanted = checked(BudgetLimit, unit=unit, window=window, limit=limit, per_user=per_user)
    with _changing(prefix, team, json_output, data_dir, database_url) as (connection, holder, at):
        administration.set_budgets(connection, holder, [wanted], at)


@app.command(
    epilog=examples(
        "craft-server budgets top-up abcd1234 --queries 1000",
        "craft-server budgets top-up --team vision --images 500 --window month",
    ),
    first=("queries", "images", "cost_micros", "window", "team"),
)
def top_up(
    prefix: options.AnyPrefix = None,
    team: options.Team = None,
    window: options.BudgetWindow = "lifetime",
    queries: options.Queries = None,
    predictions: options.Predictions = None,
    images: options.Images = None,
    texts: options.Texts = None,
    requests: options.Requests = None,
    cost_micros: options.CostMicros = None,
    json_output: options.AsJson = False,
    data_dir: options.DataDir = None,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Add to the limits of budgets."""
    from craft_server.ledger import administration
    from craft_shared.wire import BudgetTopUp

    amounts = amounts_of(queries, predictions, images, texts, requests, cost_micros)
    if not amounts:
        misuse("name a unit and how much of it to add, such as --queries 1000")
    wanted = [
        checked(BudgetTopUp, unit=unit, window=window, amount=amount)
        for unit, amount in amounts.items()
    ]
    with _changing(prefix, team, json_output, data_dir, database_url) as (connection, holder, _):
        administration.top_up(connection, holder, wanted)


@app.command(
    epilog=examples(
        "craft-server budgets remove abcd1234 --unit queries",
        "craft-server budgets remove --team vision --unit cost_micros --window month",
    )
)
def remove(
    unit: Annotated[Measure, typer.Option(help="The unit whose budget is removed.")],
    prefix: options.AnyPrefix = None,
    team: options.Team = None,
    window: options.BudgetWindow = "lifetime",
    per_user: PerUser = False,
    json_output: options.AsJson = False,
    data_dir: options.DataDir = None,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Remove a budget of which no running call holds any."""
    from craft_server.ledger import administration

    with _changing(prefix, team, json_output, data_dir, database_url) as (connection, holder, at):
        administration.remove_budget(connection, holder, unit, window, at, per_user=per_user)


@contextmanager
def _changing(
    prefix: str | None,
    team: str | None,
    json_output: bool,
    data_dir: Path | None,
    database_url: str | None,
) -> Iterator[tuple[sa.Connection, administration.Holder, int]]:
    """Whose budgets are changed, and when; afterwards prints what they are."""
    from craft_server.clock import now_ms
    from craft_server.ledger import administration

    at = now_ms()
    with writing(data_dir, database_url) as connection:
        holder = _holder(connection, prefix, team)
        yield connection, holder, at
        budgets = administration.show_budgets(connection, holder, at)
    _print(budgets, json_output)


def _holder(
    connection: sa.Connection, prefix: str | None, team: str | None
) -> administration.Holder:
    from craft_server.ledger import administration

    if (prefix is None) == (team is None):
        misuse("name either a key's prefix or --team")
    if team is not None:
        return administration.team_holder(connection, team)
    return administration.key_holder(connection, prefix or "")


teams = Typer(
    help="List teams, and show what bounds them.",
    no_args_is_help=True,
    epilog=examples("craft-server teams list"),
)


@teams.command("list", epilog=examples("craft-server teams list", "craft-server teams list --json"))
def list_teams(
    json_output: options.AsJson = False,
    data_dir: options.DataDir = None,
    database_url: options.DatabaseUrl = None,
) -> None:
    """List all teams, with their keys that are not revoked."""
    from craft_server.ledger import keys

    with reading(data_dir, database_url) as connection:
        found: dict[str, list[str]] = {team: [] for team in keys.list_teams(connection)}
        for entry in keys.list_keys(connection):
            if entry.team is not None and entry.revoked_at is None:
                found[entry.team].append(entry.prefixes[0])
    if json_output:
        print_json([{"name": team, "keys": prefixes} for team, prefixes in found.items()])
        return
    print_table(["team", "keys"], [[team, prefixes] for team, prefixes in found.items()])


@teams.command("show", epilog=examples("craft-server teams show vision"))
def show_team(
    name: Annotated[str, typer.Argument(help="The team's name.")],
    json_output: options.AsJson = False,
    data_dir: options.DataDir = None,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Show the budgets of a team, as `budgets show --team` does."""
    show(team=name, json_output=json_output, data_dir=data_dir, database_url=database_url)


_OF = {"key": "key", "team": "team", "user": "each user"}


def _print(budgets: list[Budget], json_output: bool) -> None:
    if json_output:
        print_json([budget.model_dump() for budget in budgets])
        return
    print_table(
        ["of", "unit", "window", "limit", "spent", "reserved", "remaining", "resets at"],
        [
            [
                *(_OF[budget.of], budget.unit, budget.window, budget.limit, budget.spent),
                *(budget.reserved, budget.remaining, budget.resets_at or "never"),
            ]
            for budget in budgets
        ],
        spare=["reserved", "spent", "resets at"],
    )
    if not budgets:
        note("No budget: nothing is bounded.")
