"""`craft-server apply`: teams, keys, budgets, policies and prices from a file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from craft_server.cli import options
from craft_server.cli.ledger import writing
from craft_server.cli.output import fail, misuse, note, print_json, print_lines
from craft_shared.commands import Typer, examples

if TYPE_CHECKING:
    from craft_server.ledger.provisioning import Wanted

app = Typer()


@app.command(
    epilog=examples(
        "craft-server apply provider.toml --dry-run", "craft-server apply provider.toml"
    ),
    rich_help_panel="Keys and the ledger",
)
def apply(
    file: Annotated[Path, typer.Argument(help="TOML file: teams, keys and prices.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the changes without making them.")
    ] = False,
    json_output: options.AsJson = False,
    data_dir: options.DataDir = None,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Bring teams, keys, budgets, policies and prices to what a file says, all or nothing.

    What the file does not name stays as it is.
    """
    from craft_server.clock import now_ms
    from craft_server.ledger import provisioning

    wanted, at = _read(file), now_ms()
    secrets: dict[Path, str] = {}
    with ExitStack() as on_failure:
        with writing(data_dir, database_url) as connection:
            steps = list(provisioning.provision(connection, wanted, file.parent, at, secrets))
            if dry_run:
                connection.rollback()
            else:
                provisioning.write_secrets(secrets, on_failure)
        on_failure.pop_all()
    if json_output:
        print_json({"steps": steps, "applied": not dry_run})
        return
    print_lines(steps)
    if not steps:
        note("Everything is as the file says.")
    elif dry_run:
        note("Nothing was done: --dry-run.")


def _read(file: Path) -> Wanted:
    from pydantic import ValidationError

    from craft_server.ledger.provisioning import Wanted
    from craft_shared.problems import first_error

    values: dict[str, Any] = {}
    try:
        values = tomllib.loads(file.read_text("utf-8"))
        return Wanted.model_validate(values)
    except OSError as error:
        fail(f"'{file}' cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        misuse(f"'{file}' is no text in UTF-8")
    except tomllib.TOMLDecodeError as error:
        misuse(f"'{file}' is no TOML: {error}")
    except ValidationError as error:
        misuse(f"'{file}': {first_error(error)}{_whose(values, error.errors()[0]['loc'])}")


def _whose(values: Mapping[str, Any], place: Sequence[int | str]) -> str:
    """Which key or team has a fault: among twenty of them nobody finds `keys[11]`."""
    match place:
        case ["keys" | "teams" as kind, int(index), *_]:
            entry = values[kind][index]
            named = isinstance(entry, dict)
            names = [repr(entry[each]) for each in ("owner", "name") if named and each in entry]
            return f" (of {', '.join(names)})" if names else ""
    return ""
