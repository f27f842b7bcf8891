"""`craft-server ledger`: save the ledger while servers use it, and go back to what was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from craft_server.cli.options import AsJson, DatabaseUrl, DataDir, examples, settings_of
from craft_server.cli.output import fail, note, print_json

app = typer.Typer(
    help="Copies of the ledger's database.",
    no_args_is_help=True,
    epilog=examples("craft-server ledger backup ledger.sqlite"),
)


@app.command(
    epilog=examples(
        "craft-server ledger backup ledger.sqlite",
        "craft-server ledger backup ledger.sqlite --data-dir /var/lib/craft --json",
    )
)
def backup(
    file: Annotated[Path, typer.Argument(help="The copy, which must not exist.")],
    json_output: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Copy the SQLite database into one file, while servers use it."""
    from craft_server import backup as backups

    source = _file(data_dir, database_url, "pg_dump --format=custom --file=FILE URL")
    try:
        backups.back_up(source, file)
    except backups.BackupError as error:
        fail(str(error))
    size = file.stat().st_size
    if json_output:
        print_json({"database": str(source), "file": str(file), "bytes": size})
    else:
        note(f"Backed up '{source}' to '{file}', {size} bytes")


@app.command(epilog=examples("craft-server ledger restore ledger.sqlite --data-dir new-craft-data"))
def restore(
    file: Annotated[Path, typer.Argument(help="A copy made by 'craft-server ledger backup'.")],
    json_output: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Make the database from a copy, where there is none; what was reserved in it is given back."""
    from craft_server import backup as backups

    target = _file(data_dir, database_url, "pg_restore --dbname=URL FILE into an empty database")
    try:
        released = backups.restore(file, target)
    except backups.BackupError as error:
        fail(str(error))
    if json_output:
        print_json({"database": str(target), "file": str(file), "released": released})
    else:
        note(f"Restored '{target}' from '{file}'; {released} open reservations given back")


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
