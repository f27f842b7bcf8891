"""`craft-server`: serve, and manage keys and budgets on the server's own database.

Commands on keys and budgets import neither the model nor torch. Every expected failure is one line
on stderr and exit code 1.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from craft_server.database import Database, DatabaseError
from craft_server.ledger import budgets as ledger_budgets
from craft_server.ledger import keys as ledger_keys
from craft_server.settings import Settings
from craft_shared.units import UNITS, Unit
from craft_shared.wire import Budget

if TYPE_CHECKING:
    from craft_server.engine import Engine

GRACE_SECONDS = 30
MAX_LIMIT = 10**15

app = typer.Typer(
    help="The craftbox server: a metered prediction API before a vision-language model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
keys_app = typer.Typer(help="API keys.", no_args_is_help=True)
budgets_app = typer.Typer(help="Keys' budgets.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
app.add_typer(budgets_app, name="budgets")

DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the SQLite database (CRAFT_DATA_DIR; default ./craft-data)."),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(help="postgresql://... instead of SQLite (CRAFT_DATABASE_URL)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Prefix = Annotated[str, typer.Argument(help="The eight characters after craft_ in the key.")]
Amount = Annotated[int | None, typer.Option(min=0, max=MAX_LIMIT, show_default=False)]


@app.command()
def serve(
    model: Annotated[
        str | None, typer.Option(help="pocket, or one of open_clip's (default pocket).")
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="open_clip's name of the weights, or a checkpoint's path.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, float32, float16 or bfloat16.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on (default 127.0.0.1).")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="TCP port (default 8000; 0: a free one).")
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Host a model. Each option is also an environment variable, such as CRAFT_MODEL."""
    settings = _settings(
        model=model,
        pretrained=pretrained,
        device=device,
        precision=precision,
        host=host,
        port=port,
        data_dir=data_dir,
        database_url=database_url,
    )
    _run(settings)


@keys_app.command("create")
def keys_create(
    owner: Annotated[str, typer.Option(help="Whose image sets and adapters the key sees.")],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
    queries: Amount = None,
    predictions: Amount = None,
    images: Amount = None,
    texts: Amount = None,
    requests: Amount = None,
    json_output: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Make a key and print it, this once. Units without a budget are not bounded."""
    limits = _amounts(queries, predictions, images, texts, requests)
    if not owner.strip():
        _fail("--owner: write a name")
    with _database(data_dir, database_url) as database, database.writing() as connection:
        key = ledger_keys.create_key(connection, owner=owner, name=name, limits=limits)
    prefix = key.split("_")[1]
    if json_output:
        _print_json({"key": key, "prefix": prefix, "owner": owner, "name": name, "budgets": limits})
        return
    bounds = ", ".join(f"{amount} {unit}" for unit, amount in limits.items()) or "no budget"
    typer.echo(f"Key {prefix} of {owner} ({bounds}). It is shown only now:")
    typer.echo(key)


@keys_app.command("list")
def keys_list(
    json_output: AsJson = False, data_dir: DataDir = None, database_url: DatabaseUrl = None
) -> None:
    """List all keys, without their secrets."""
    with _database(data_dir, database_url) as database, database.reading() as connection:
        entries = ledger_keys.list_keys(connection)
    fields = ("prefix", "owner", "name", "created_at", "revoked_at")
    rows = [{field: getattr(entry, field) for field in fields} for entry in entries]
    if json_output:
        _print_json(rows)
        return
    table = Table(*fields)
    for row in rows:
        table.add_row(*(escape(row[field] or "") for field in fields))
    Console().print(table)


@keys_app.command("revoke")
def keys_revoke(prefix: Prefix, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Make a key useless from now on."""
    database = _database(data_dir, database_url)
    with database as opened, _known_key(prefix), opened.writing() as connection:
        entry = ledger_keys.revoke_key(connection, prefix)
    typer.echo(f"Key {entry.prefix} of {entry.owner} is revoked since {entry.revoked_at}.")


@budgets_app.command("show")
def budgets_show(
    prefix: Prefix,
    json_output: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Show a key's budgets."""
    database = _database(data_dir, database_url)
    with database as opened, _known_key(prefix), opened.reading() as connection:
        key = ledger_keys.find_key(connection, prefix)
        budgets = ledger_budgets.list_budgets(connection, key.key_id)
    _print_budgets(budgets, json_output)


@budgets_app.command("top-up")
def budgets_top_up(
    prefix: Prefix,
    queries: Amount = None,
    predictions: Amount = None,
    images: Amount = None,
    texts: Amount = None,
    requests: Amount = None,
    json_output: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Add to the limits of a key's budgets."""
    amounts = _amounts(queries, predictions, images, texts, requests)
    if not amounts:
        _fail("name a unit and how much of it to add, such as --queries 1000")
    with _database(data_dir, database_url) as database, _known_key(prefix):
        try:
            with database.writing() as connection:
                key = ledger_keys.find_key(connection, prefix)
                budgets = ledger_budgets.top_up(connection, key.key_id, amounts)
        except ledger_budgets.UnboundedUnit as error:
            _fail(f"key {prefix} has no budget on {error.unit}: it is not bounded, nothing to add")
    _print_budgets(budgets, json_output)


def _run(settings: Settings) -> None:
    with _serving_socket(settings) as listener, _open(settings) as database:
        # Until uvicorn takes over, and once more after it has stopped.
        signal.signal(signal.SIGTERM, _stop)
        # The model's libraries take seconds to import, which only this command should wait for.
        import uvicorn

        from craft_server.app import create_app
        from craft_server.engine import Engine, ModelLoadError, ModelSpec
        from craft_server.logs import configure_logging

        configure_logging()
        spec = ModelSpec(
            name=settings.model,
            pretrained=settings.pretrained,
            device=settings.device,
            precision=settings.precision,
        )
        try:
            engine = Engine.load(spec)
        except ModelLoadError as error:
            _fail(str(error))
        with closing(engine), suppress(KeyboardInterrupt):
            application = create_app(settings, engine, database)
            _announce(database, settings, listener, engine)
            config = uvicorn.Config(
                application,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
            uvicorn.Server(config).run(sockets=[listener])


def _announce(
    database: Database, settings: Settings, listener: socket.socket, engine: Engine
) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    if engine.random_weights:
        typer.echo(
            f"WARNING: RANDOM WEIGHTS. Model {engine.name} has learned nothing and its predictions "
            "mean nothing: this is for tests. Name real weights with --pretrained.",
            err=True,
        )
    typer.echo(f"Model {engine.name}, revision {engine.revision}")
    typer.echo(f"Listening on http://{shown}:{port} (description at /docs)")
    with database.reading() as connection:
        has_keys = bool(ledger_keys.list_keys(connection))
    if not has_keys:
        where = "--database-url ..." if settings.database_url else f"--data-dir {settings.data_dir}"
        typer.echo(f"There is no key yet. Make one: craft-server keys create --owner me {where}")
    sys.stdout.flush()


@contextmanager
def _serving_socket(settings: Settings) -> Iterator[socket.socket]:
    """Takes the address before the model is loaded, so that a taken one is told at once."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )[0]
        # asyncio sets TCP_NODELAY only on sockets that name their protocol; without it, answers to
        # clients that keep their connection wait 40 ms for an acknowledgement.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        _fail(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}")
    with closing(listener):
        yield listener


def _stop(_signal: int, _frame: object) -> NoReturn:
    raise SystemExit(0)


def _settings(**options: Any) -> Settings:
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        _fail(f"setting {where}: {first['msg']}")


@contextmanager
def _open(settings: Settings) -> Iterator[Database]:
    try:
        database = Database.open(settings.database_url, settings.data_dir)
    except DatabaseError as error:
        _fail(str(error))
    with closing(database):
        yield database


@contextmanager
def _database(data_dir: Path | None, database_url: str | None) -> Iterator[Database]:
    with _open(_settings(data_dir=data_dir, database_url=database_url)) as database:
        yield database


@contextmanager
def _known_key(prefix: str) -> Iterator[None]:
    try:
        yield
    except ledger_keys.UnknownKey:
        _fail(f"there is no key {prefix}; 'craft-server keys list' shows all")


def _amounts(*amounts: int | None) -> dict[Unit, int]:
    return {unit: amount for unit, amount in zip(UNITS, amounts, strict=True) if amount is not None}


def _print_budgets(budgets: list[Budget], json_output: bool) -> None:
    if json_output:
        _print_json([budget.model_dump() for budget in budgets])
        return
    table = Table("unit", "limit", "spent", "reserved", "remaining")
    for budget in budgets:
        table.add_row(
            budget.unit,
            *(str(n) for n in (budget.limit, budget.spent, budget.reserved, budget.remaining)),
        )
    Console().print(table)
    if not budgets:
        typer.echo("No budget: nothing is bounded.")


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(document))


def _fail(message: str) -> NoReturn:
    typer.echo(f"Error: {' '.join(message.split())}", err=True)
    raise typer.Exit(1)
