"""`craft-server prices`: what units cost on each model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from craft_server.cli.completion import models
from craft_server.cli.ledger import reading, writing
from craft_server.cli.options import UNIT_WORDS, AsJson, DatabaseUrl, DataDir, checked, examples
from craft_server.cli.output import misuse, print_json, print_table
from craft_shared.amounts import MAX_PRICE_MICROS, UNITS

if TYPE_CHECKING:
    from craft_server.ledger import prices

app = typer.Typer(
    help="Prices of units, in millionths of your currency (micros).",
    no_args_is_help=True,
    epilog=examples("craft-server prices set pocket --queries 100"),
)


def _price(unit: str) -> Any:
    return typer.Option(
        min=0,
        max=MAX_PRICE_MICROS,
        show_default=False,
        help=UNIT_WORDS[unit],
        rich_help_panel="Micros a unit",
    )


@app.command(
    "set",
    epilog=examples(
        "craft-server prices set pocket --queries 100",
        "craft-server prices set RN50 --images 20 --texts 5 --json",
    ),
)
def set_(
    model: Annotated[
        str,
        typer.Argument(help="The model's name, as craft models lists it.", autocompletion=models),
    ],
    queries: Annotated[int | None, _price("queries")] = None,
    predictions: Annotated[int | None, _price("predictions")] = None,
    images: Annotated[int | None, _price("images")] = None,
    texts: Annotated[int | None, _price("texts")] = None,
    requests: Annotated[int | None, _price("requests")] = None,
    json_output: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Set the micros that one unit costs from now on; other units keep their price."""
    from craft_server.ledger import prices
    from craft_shared.names import fault
    from craft_shared.wire import PriceList

    if found := fault(model):
        misuse(f"MODEL: the name {found}")
    given = zip(UNITS, (queries, predictions, images, texts, requests), strict=True)
    micros = {unit: price for unit, price in given if price is not None}
    if not micros:
        misuse("name a unit and its price in micros, such as --queries 100")
    wanted = checked(PriceList, micros=micros)
    with writing(data_dir, database_url) as connection:
        prices.set_prices(connection, model, wanted.micros)
        of_models = prices.list_prices(connection)
    _print(of_models, json_output)


@app.command("list", epilog=examples("craft-server prices list", "craft-server prices list --json"))
def list_(
    json_output: AsJson = False, data_dir: DataDir = None, database_url: DatabaseUrl = None
) -> None:
    """List the prices of all models."""
    from craft_server.ledger import prices

    with reading(data_dir, database_url) as connection:
        of_models = prices.list_prices(connection)
    _print(of_models, json_output)


def _print(of_models: prices.Prices, json_output: bool) -> None:
    if json_output:
        print_json(of_models)
        return
    print_table(
        ["model", *UNITS],
        [[model, *(micros.get(unit, 0) for unit in UNITS)] for model, micros in of_models.items()],
    )
