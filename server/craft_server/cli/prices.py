"""`craft-server prices`: what units cost on each model."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from craft_server.cli.ledger import reading, writing
from craft_server.cli.options import AsJson, DatabaseUrl, DataDir, checked
from craft_server.cli.output import fail, print_json, print_table
from craft_server.ledger import prices
from craft_shared.units import UNITS
from craft_shared.wire import MAX_PRICE_MICROS, PriceList

app = typer.Typer(
    help="Prices of units, in millionths of your currency (micros).", no_args_is_help=True
)

Price = Annotated[
    int | None,
    typer.Option(min=0, max=MAX_PRICE_MICROS, show_default=False, help="Micros that one costs."),
]


@app.command("set")
def set_(
    model: Annotated[str, typer.Argument(help="The model's name, as GET /v1/models shows it.")],
    queries: Price = None,
    predictions: Price = None,
    images: Price = None,
    texts: Price = None,
    requests: Price = None,
    json_output: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Set the micros that one unit costs from now on; other units keep their price."""
    given = zip(UNITS, (queries, predictions, images, texts, requests), strict=True)
    micros = {unit: price for unit, price in given if price is not None}
    if not micros:
        fail("name a unit and its price in micros, such as --queries 100")
    wanted = checked(PriceList, micros=micros)
    with writing(data_dir, database_url) as connection:
        prices.set_prices(connection, model, wanted.micros)
        of_models = prices.list_prices(connection)
    _print(of_models, json_output)


@app.command("list")
def list_(
    json_output: AsJson = False, data_dir: DataDir = None, database_url: DatabaseUrl = None
) -> None:
    """List the prices of all models."""
    with reading(data_dir, database_url) as connection:
        of_models = prices.list_prices(connection)
    _print(of_models, json_output)


def _print(of_models: prices.Prices, json_output: bool) -> None:
    if json_output:
        print_json(of_models)
        return
    table = Table("model", *UNITS)
    for model, micros in of_models.items():
        table.add_row(escape(model), *(str(micros.get(unit, 0)) for unit in UNITS))
    print_table(table)
