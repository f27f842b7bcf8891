"""`craft-server ledger`: save the ledger while servers use it, and go back to what was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from craft_server import backup as backups
from craft_server.cli.options import DatabaseUrl, DataDir, settings_of
from craft_server.cli.output import fail

app = typer.Typer(help="Copies of the ledger's database.", no_args_is_help=True)


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="The copy, which must not exist.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Copy the SQLite database into one file, while servers use it."""
    source = _file(data_dir, database_url, "pg_dump --format=custom --file=FILE URL")
    try:
        backups.back_up(source, file)
    except backups.BackupError as error:
        fail(str(error))
    typer.echo(f"Backed up '{source}' to '{file}', {file.stat().st_size} bytes")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A copy made by 'craft-server ledger backup'.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Make the database from a copy, where there is none; what was reserved in it is given back."""
    target = _file(data_dir, database_url, "pg_restore --dbname=URL FILE into an empty database")
    try:
        released = backups.restore(file, target)
    except backups.BackupError as error:
        fail(str(error))
    typer.echo(f"Restored '{target}' from '{file}'; {released} open reservations given back")


def _file(data_dir: Path | None, database_url: str | None, instead: str) -> Path:
    from craft_server.database import DatabaseError, sqlite_file

    settings = settings_of(data_dir=data_dir, database_url=database_url)
    try:
        file = sqlite_file(settings.database_url, settings.data_dir)
    except DatabaseError as error:
        fail(str(error))
    if file is None:
        fail(f"the database is PostgreSQL's, which has its own commands: {instead}")
    return file
