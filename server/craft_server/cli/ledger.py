"""The ledger's database, opened for one command, and its refusals as lines on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from craft_server.cli.options import settings_of
from craft_server.cli.output import fail, warn

if TYPE_CHECKING:
    import sqlalchemy as sa

    from craft_server.database import Database
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
    from craft_server.ledger.budgets import LimitBelowUse, LimitTooLarge, NoSuchBudget
    from craft_server.ledger.keys import RevokedKey, UnknownKey, UnknownTeam

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
    except NoSuchBudget as error:
        fail(
            f"there is no budget on {error.unit} ({error.window}): it is not bounded, so that "
            "there is nothing to add to"
        )
    except LimitTooLarge as error:
        fail(str(error))
    except LimitBelowUse as error:
        fail(
            f"--limit: {error.used} {error.unit} are spent or reserved already; name at least that"
        )
