from __future__ import annotations

import pytest
import sqlalchemy as sa

from craft_server.database import Database, Unavailable
from craft_server.ledger.tables import TEAMS
from craft_server.statements import Statement, run

INSERT = Statement(
    sa.insert(TEAMS)
    .values(name=sa.bindparam("called"), created_at=sa.bindparam("at"))
    .returning(TEAMS.c.id, TEAMS.c.name)
)
RENAME = Statement(
    sa.update(TEAMS)
    .where(TEAMS.c.name == sa.bindparam("called"), TEAMS.c.created_at > 0)
    .values(name=sa.bindparam("new_name"))
)
FIND = Statement(sa.select(TEAMS.c.name).where(TEAMS.c.name == sa.bindparam("called")))


def names(store: Database) -> list[str]:
    with store.reading() as connection:
        return sorted(connection.execute(sa.select(TEAMS.c.name)).scalars())


def test_results_come_in_the_order_of_the_statements(store: Database) -> None:
    with store.writing() as connection:
        inserted, renamed, found = run(
            connection,
            (INSERT, {"called": "lab", "at": 1}),
            (RENAME, [{"called": "lab", "new_name": "x"}, {"called": "nobody", "new_name": "y"}]),
            (FIND, {"called": "x"}),
        )
    assert [(row.name, row.id > 0) for row in inserted.rows] == [("lab", True)]
    assert renamed.count == 1
    assert [row.name for row in found.rows] == ["x"]


def test_a_statement_without_parameters_to_run_with_changes_nothing(store: Database) -> None:
    with store.writing() as connection:
        assert run(connection, (RENAME, []))[0].count == 0


def test_an_error_is_sqlalchemys_and_undoes_what_ran_with_it(store: Database) -> None:
    one = (INSERT, {"called": "lab", "at": 1})
    with pytest.raises(sa.exc.IntegrityError), store.writing() as connection:
        run(connection, one, one)
    assert names(store) == []


def test_a_broken_connection_is_told_and_replaced(store: Database) -> None:
    if store.dialect == "sqlite":
        pytest.skip("SQLite has no connection that another could end")

    def break_and_run() -> None:
        with store.reading() as connection:
            pid = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
            with store.writing() as other:
                other.execute(sa.text(f"SELECT pg_terminate_backend({pid})"))
            run(connection, (FIND, {"called": "x"}))

    with pytest.raises(Unavailable) as caught:
        break_and_run()
    assert caught.value.disconnected
    assert names(store) == []
