"""The ledger's database, opened for one command; `craft-server prices`, `usage` and `ledger`.

Its refusals are lines on stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from craft_server.cli import options
from craft_server.cli.options import (
    UNIT_WORDS,
    checked,
    complete_models,
    moment_ms,
    settings_of,
)
from craft_server.cli.output import fail, misuse, note, print_json, print_table, warn
from craft_shared.amounts import MAX_PRICE_MICROS, MEASURES, SPARE_UNITS, UNITS
from craft_shared.commands import Typer, examples

if TYPE_CHECKING:
    import sqlalchemy as sa

    from craft_server.database import Database
    from craft_server.ledger.prices import Prices
    from craft_server.ledger.selection import Selection
    from craft_server.settings import Settings


@contextmanager
def database_of(settings: Settings) -> Iterator[Database]:
    """The database that the settings name."""
    from craft_server.database import Database, DatabaseError

    try:
        database = Database.open(settings.database_url, settings.data_dir)
    except DatabaseError as error:
        fail(str(error))
    if database.mended:
        names = ", ".join(f"'{path}'" for path in database.mended)
        warn(f"others could read {names}; they cannot any more")
    with closing(database):
        yield database


@contextmanager
def reading(data_dir: Path | None, database_url: str | None) -> Iterator[sa.Connection]:
    """A transaction of one command that only reads."""
    settings = settings_of(data_dir=data_dir, database_url=database_url)
    with database_of(settings) as database, _refusals(), database.reading() as connection:
        yield connection


@contextmanager
def writing(data_dir: Path | None, database_url: str | None) -> Iterator[sa.Connection]:
    """A transaction of one command: all of it is done, or nothing."""
    settings = settings_of(data_dir=data_dir, database_url=database_url)
    with database_of(settings) as database, _refusals(), database.writing() as connection:
        yield connection


@contextmanager
def _refusals() -> Iterator[None]:
    from craft_server.database import Unavailable
    from craft_server.ledger.budgets import (
        BudgetInUse,
        LimitBelowUse,
        LimitTooLarge,
        NoSuchBudget,
    )
    from craft_server.ledger.keys import RevokedKey, UnknownKey, UnknownTeam
    from craft_server.ledger.provisioning import CannotProvision
    from craft_server.ledger.users import TeamHasNoUsers

    try:
        yield
    except Unavailable as error:
        fail(f"the database has failed, and nothing was changed: {error}")
    except UnknownKey as error:
        fail(f"there is no key {error.args[0]}; 'craft-server keys list' shows all")
    except UnknownTeam as error:
        fail(f"there is no team {error.args[0]}; 'keys create --team' makes one with its first key")
    except RevokedKey as error:
        fail(f"key {error.args[0]} is revoked; make a new one with 'craft-server keys create'")
    except TeamHasNoUsers:
        misuse("a team has no end users; set the budget for each of its keys")
    except NoSuchBudget as error:
        fail(f"there is no budget on {error.unit} ({error.window}): it is not bounded")
    except (BudgetInUse, CannotProvision, LimitTooLarge) as error:
        fail(str(error))
    except LimitBelowUse as error:
        fail(
            f"--limit: {error.used} {error.unit} are spent or reserved already; name at least that"
        )


prices = Typer(
    help="Prices of units, in millionths of your currency (micros).",
    no_args_is_help=True,
    epilog=examples("craft-server prices set pocket --queries 100"),
)


def _price_option(unit: str) -> Any:
    return typer.Option(
        min=0,
        max=MAX_PRICE_MICROS,
        show_default=False,
        help=UNIT_WORDS[unit],
        rich_help_panel="Micros a unit",
    )


@prices.command(
    "set",
    epilog=examples(
        "craft-server prices set pocket --queries 100",
        "craft-server prices set RN50 --images 20 --texts 5 --json",
    ),
    first=UNITS,
)
def set_prices(
    model: Annotated[
        str,
        typer.Argument(
            help="The model's name, as craft models lists it.", autocompletion=complete_models
        ),
    ],
    queries: Annotated[int | None, _price_option("queries")] = None,
    predictions: Annotated[int | None, _price_option("predictions")] = None,
    images: Annotated[int | None, _price_option("images")] = None,
    texts: Annotated[int | None, _price_option("texts")] = None,
    requests: Annotated[int | None, _price_option("requests")] = None,
    json_output: options.AsJson = False,
    data_dir: options.DataDir = None,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Set the micros that one unit costs from now on; other units keep their price."""
    from craft_server.ledger import prices as of_ledger
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
        of_ledger.set_prices(connection, model, wanted.micros)
        of_models = of_ledger.list_prices(connection)
    _print_prices(of_models, json_output)


@prices.command(
    "list", epilog=examples("craft-server prices list", "craft-server prices list --json")
)
def list_prices(
    json_output: options.AsJson = False,
    data_dir: options.DataDir = None,
    database_url: options.DatabaseUrl = None,
) -> None:
    """List the prices of all models."""
    from craft_server.ledger import prices as of_ledger

    with reading(data_dir, database_url) as connection:
        of_models = of_ledger.list_prices(connection)
    _print_prices(of_models, json_output)


def _print_prices(of_models: Prices, json_output: bool) -> None:
    if json_output:
        print_json(of_models)
        return
    print_table(
        ["model", *UNITS],
        [[model, *(micros.get(unit, 0) for unit in UNITS)] for model, micros in of_models.items()],
        spare=SPARE_UNITS,
    )


usage = Typer(
    help="What was charged.",
    no_args_is_help=True,
    epilog=examples("craft-server usage sum --by team --by month"),
)

UsageKey = Annotated[str | None, typer.Option(help="Only of the key with this prefix.")]
UsageTeam = Annotated[str | None, typer.Option(help="Only of the keys of this team.")]
UsageModel = Annotated[
    str | None, typer.Option(help="Only of this model.", autocompletion=complete_models)
]
UsageAdapter = Annotated[
    str | None, typer.Option(help="Only of this adapter: OWNER/NAME, or OWNER/NAME@VERSION.")
]
Since = Annotated[str | None, typer.Option(help="Calls made at this time (RFC 3339) or later.")]
Until = Annotated[str | None, typer.Option(help="Calls made before this time (RFC 3339).")]


AsCsv = Annotated[
    bool, typer.Option("--csv", help="Print CSV on stdout.", rich_help_panel="Output")
]


def _selection(
    key: str | None,
    team: str | None,
    model: str | None,
    adapter: str | None,
    since: str | None,
    until: str | None,
) -> Selection:
    from craft_server.ledger.selection import Selection

    between = (moment_ms(since, "--since"), moment_ms(until, "--until"))
    return Selection(key, team, model, adapter, *between)


class By(StrEnum):
    """What sums may be of."""

    TEAM = "team"
    OWNER = "owner"
    KEY = "key"
    USER = "user"
    MODEL = "model"
    ADAPTER = "adapter"
    CALL = "call"
    MONTH = "month"
    DAY = "day"


@usage.command(
    "sum",
    epilog=examples(
        "craft-server usage sum --by team --by month",
        "craft-server usage sum --by key --by model --since 2026-11-01T00:00:00Z --csv",
    ),
)
def sum_usage(
    by: Annotated[list[By], typer.Option(help="What to sum by; repeatable.")],
    key: UsageKey = None,
    team: UsageTeam = None,
    model: UsageModel = None,
    adapter: UsageAdapter = None,
    since: Since = None,
    until: Until = None,
    as_csv: AsCsv = False,
    json_output: options.AsJson = False,
    data_dir: options.DataDir = None,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Sum what was charged, by team, owner, key, end user, model, adapter, call, month or day.

    An adapter's versions count together; days are UTC. Calls that still run are left out.
    """
    from craft_server.ledger import sums
    from craft_server.ledger.exports import csv_line

    of = list(dict.fromkeys(one.value for one in by))
    selection = _selection(key, team, model, adapter, since, until)
    with reading(data_dir, database_url) as connection:
        rows = sums.summed(sums.charged(connection, selection, of), of)
    if json_output:
        print_json(rows)
    elif as_csv:
        sys.stdout.write(csv_line([*of, *MEASURES]))
        for row in rows:
            sys.stdout.write(csv_line(row.values()))
    else:
        print_table(
            [*of, *UNITS, "cost"],
            [[*list(row.values())[:-1], _money(row["cost_micros"])] for row in rows],
            spare=[*SPARE_UNITS, "cost"],
        )


def _money(micros: int | None) -> Decimal | None:
    return None if micros is None else Decimal(micros).scaleb(-6)


@usage.command(
    "statement",
    epilog=examples(
        "craft-server usage statement --team biology --month 2026-11",
        "craft-server usage statement --month 2026-11 --csv",
    ),
)
def print_statement(
    month: Annotated[str, typer.Option(help="The calendar month (UTC), such as 2026-11.")],
    team: UsageTeam = None,
    key: UsageKey = None,
    as_csv: AsCsv = False,
    json_output: options.AsJson = False,
    data_dir: options.DataDir = None,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Print what was charged in a month: by key, model and unit, with prices and the total.

    Amounts are shown at the prices of today. What calls cost more or less, because prices have
    changed since, is a line of its own, so that the total is what was charged.
    """
    from craft_server.clock import Period
    from craft_server.ledger import monthly
    from craft_server.ledger.exports import csv_line

    try:
        of_month = Period.named(month)
    except ValueError:
        of_month = None
    if of_month is None or not of_month.is_month:
        misuse("--month: write a month, such as 2026-11")
    with reading(data_dir, database_url) as connection:
        found = monthly.statement(connection, of_month, team=team, prefix=key)
    if found.running:
        warn(f"{found.running} calls of the month still run; they are not in it yet")
    if json_output:
        print_json(asdict(found))
    elif as_csv:
        sys.stdout.write("".join(map(csv_line, monthly.rows(found))))
    else:
        columns, *rows = monthly.rows(found)
        print_table(
            [str(column).removesuffix("_micros") for column in columns],
            [[*row[:-2], *map(_money, row[-2:])] for row in rows],
            spare=["owner", "team", "name", "price", "model"],
        )


@usage.command(
    "export",
    epilog=examples(
        "craft-server usage export --since 2026-11-01T00:00:00Z --until 2026-12-01T00:00:00Z",
        "craft-server usage export --key abcd1234 --format jsonl",
    ),
)
def export_usage(
    form: Annotated[
        Literal["csv", "jsonl"],
        typer.Option("--format", help="How the lines are written.", rich_help_panel="Output"),
    ] = "csv",
    key: UsageKey = None,
    team: UsageTeam = None,
    model: UsageModel = None,
    adapter: UsageAdapter = None,
    since: Since = None,
    until: Until = None,
    data_dir: options.DataDir = None,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Write all charges to stdout, one a line, by their time; refunded calls charge nothing."""
    from craft_server.ledger import exports

    selection = _selection(key, team, model, adapter, since, until)
    with reading(data_dir, database_url) as connection:
        lines = exports.lines(connection, selection)
        sys.stdout.write(exports.header(form))
        for line in lines:
            sys.stdout.write(exports.text(line, form))


backups = Typer(
    help="Copies of the ledger's database.",
    no_args_is_help=True,
    epilog=examples("craft-server ledger backup ledger.sqlite"),
)


@backups.command(
    epilog=examples(
        "craft-server ledger backup ledger.sqlite",
        "craft-server ledger backup ledger.sqlite --data-dir /var/lib/craft --json",
    )
)
def backup(
    file: Annotated[Path, typer.Argument(help="The copy, which must not exist.")],
    json_output: options.AsJson = False,
    data_dir: options.DataDir = None,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Copy the SQLite database into one file, while servers use it, and the receipt key with it."""
    from craft_server import backup as copies
    from craft_server.receipts import key_file

    settings = settings_of(data_dir=data_dir, database_url=database_url)
    source = _sqlite_file(settings, "pg_dump --format=custom --file=FILE URL")
    try:
        has_key = copies.back_up(source, file, key_file(settings))
    except copies.BackupError as error:
        fail(str(error))
    size = file.stat().st_size
    if json_output:
        document = {"database": str(source), "file": str(file), "bytes": size}
        print_json({**document, "receipt_key": has_key})
    else:
        more = " with the receipt key" if has_key else "; there is no receipt key yet"
        note(f"Backed up '{source}' to '{file}', {size} bytes{more}")


@backups.command(
    epilog=examples("craft-server ledger restore ledger.sqlite --data-dir new-craft-data")
)
def restore(
    file: Annotated[Path, typer.Argument(help="A copy made by 'craft-server ledger backup'.")],
    json_output: options.AsJson = False,
    data_dir: options.DataDir = None,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Make the database from a copy, where there is none, and the receipt key that is with it.

    What was reserved in it is given back.
    """
    from craft_server import backup as copies
    from craft_server.receipts import key_file

    settings = settings_of(data_dir=data_dir, database_url=database_url)
    target = _sqlite_file(settings, "pg_restore --dbname=URL FILE into an empty database")
    try:
        released, has_key = copies.restore(file, target, key_file(settings))
    except copies.BackupError as error:
        fail(str(error))
    if json_output:
        document = {"database": str(target), "file": str(file), "released": released}
        print_json({**document, "receipt_key": has_key})
    else:
        more = "with the receipt key" if has_key else "which has no receipt key"
        note(f"Restored '{target}' from '{file}', {more}; {released} open reservations given back")


def _sqlite_file(settings: Settings, instead: str) -> Path:
    from craft_server.database import DatabaseError, sqlite_file

    try:
        file = sqlite_file(settings.database_url, settings.data_dir)
    except DatabaseError as error:
        fail(str(error))
    if file is None:
        fail(f"the database is PostgreSQL's, which has its own commands: {instead}")
    return file
