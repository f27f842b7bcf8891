"""`craft-server budgets`: show, set and top up what bounds keys and teams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from craft_server.cli.ledger import reading, writing
from craft_server.cli.options import (
    Amount,
    AnyPrefix,
    AsJson,
    DatabaseUrl,
    DataDir,
    Team,
    Window,
    amounts_of,
    checked,
)
from craft_server.cli.output import fail, print_budgets
from craft_shared.amounts import MEASURES

if TYPE_CHECKING:
    import sqlalchemy as sa

    from craft_server.ledger import administration
    from craft_shared.amounts import MAX_AMOUNT

app = typer.Typer(help="Keys' and teams' budgets.", no_args_is_help=True)


@app.command()
def show(
    prefix: AnyPrefix = None,
    team: Team = None,
    json_output: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Show the budgets that bound a key, its own and its team's, or a team's."""
    from craft_server.clock import now_ms
    from craft_server.ledger import administration

    with reading(data_dir, database_url) as connection:
        holder = _holder(connection, prefix, team)
        budgets = administration.show_budgets(connection, holder, now_ms())
    print_budgets(budgets, json_output)


@app.command("set")
def set_(
    unit: Annotated[str, typer.Option(help=f"One of {', '.join(MEASURES)}.")],
    limit: Annotated[int, typer.Option(min=0, max=MAX_AMOUNT, help="In one window.")],
    prefix: AnyPrefix = None,
    team: Team = None,
    window: Window = "lifetime",
    json_output: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Set a budget, or change its limit; it counts from when it is first set."""
    from craft_server.clock import now_ms
    from craft_server.ledger import administration
    from craft_shared.wire import BudgetLimit

    wanted = checked(BudgetLimit, unit=unit, window=window, limit=limit)
    at = now_ms()
    with writing(data_dir, database_url) as connection:
        holder = _holder(connection, prefix, team)
        administration.set_budgets(connection, holder, [wanted], at)
        budgets = administration.show_budgets(connection, holder, at)
    print_budgets(budgets, json_output)


@app.command()
def top_up(
    prefix: AnyPrefix = None,
    team: Team = None,
    window: Window = "lifetime",
    queries: Amount = None,
    predictions: Amount = None,
    images: Amount = None,
    texts: Amount = None,
    requests: Amount = None,
    cost_micros: Amount = None,
    json_output: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Add to the limits of budgets."""
    from craft_server.clock import now_ms
    from craft_server.ledger import administration
    from craft_shared.wire import BudgetTopUp

    amounts = amounts_of(queries, predictions, images, texts, requests, cost_micros)
    if not amounts:
        fail("name a unit and how much of it to add, such as --queries 1000")
    wanted = [
        checked(BudgetTopUp, unit=unit, window=window, amount=amount)
        for unit, amount in amounts.items()
    ]
    with writing(data_dir, database_url) as connection:
        holder = _holder(connection, prefix, team)
        administration.top_up(connection, holder, wanted)
        budgets = administration.show_budgets(connection, holder, now_ms())
    print_budgets(budgets, json_output)


def _holder(
    connection: sa.Connection, prefix: str | None, team: str | None
) -> administration.Holder:
    from craft_server.ledger import administration

    if (prefix is None) == (team is None):
        fail("name either a key's prefix or --team")
    if team is not None:
        return administration.team_holder(connection, team)
    return administration.key_holder(connection, prefix or "")
