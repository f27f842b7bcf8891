"""A command whose database fails says so in one line, and has changed nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
import typer

from craft_server.cli.ledger import writing


def test_a_database_that_fails_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change() -> None:
        with writing(tmp_path, None) as connection:
            connection.exec_driver_sql("PRAGMA query_only = 1")
            connection.execute(sa.text("UPDATE holders SET lease_until = 0"))

    with pytest.raises(typer.Exit) as ended:
        change()
    assert ended.value.exit_code == 1
    assert "the database has failed, and nothing was changed" in capsys.readouterr().err
