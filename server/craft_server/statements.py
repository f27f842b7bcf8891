"""Statements that every call waits for: written by SQLAlchemy, run by the driver itself.

A `Statement` is compiled once for each store and from then on costs what its driver costs. Those
that are run together, because none needs another's result, travel to PostgreSQL and back as one
(psycopg's pipeline mode); SQLite, which is no journey away, runs them one after the other. Errors
are SQLAlchemy's, as of any other statement.

Sources: SQLAlchemy 2, "Working with Driver SQL and Raw DBAPI Connections"; psycopg 3, "Pipeline
mode support".
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.sql.base import Executable

Parameters = Mapping[str, Any]

# What takes arrays would be planned anew each time, because they are shorter than a plan expects.
_ONE_PLAN = "SET LOCAL plan_cache_mode = force_generic_plan"
IDLE = 0  # PostgreSQL's PQTRANS_IDLE: no transaction has begun


@dataclass(frozen=True)
class Result:
    """What a statement brought."""

    rows: Sequence[Any]  # named tuples, of a statement that returns rows
    count: int  # rows changed or found


@dataclass(frozen=True)
class _Compiled:
    """A statement as a driver takes it: text, constants, the order of values where it counts."""

    text: str
    constants: Parameters
    order: Sequence[str] | None

    def values(self, parameters: Parameters) -> Any:
        values = {**self.constants, **parameters}
        return values if self.order is None else [values[name] for name in self.order]


class Statement:
    """A statement that is run often, with a named parameter for each of its values.

    Args:
        construct: the same on both stores, or one for each by the dialect's name.
        arrays: whether on PostgreSQL each parameter is an array, of the values that the statement
            is run for: once for all of them.
    """

    def __init__(
        self, construct: Executable | Mapping[str, Executable], *, arrays: bool = False
    ) -> None:
        self._construct = construct
        self.arrays = arrays
        self._compiled: dict[str, _Compiled] = {}

    def compiled(self, dialect: Dialect) -> _Compiled:
        """The statement as the dialect's driver takes it."""
        found = self._compiled.get(dialect.name)
        if found is None:
            construct: Any = self._construct
            if isinstance(construct, Mapping):
                construct = construct[dialect.name]
            compiled = construct.compile(dialect=dialect)
            constants = {
                name: bind.value for name, bind in compiled.binds.items() if not bind.required
            }
            found = _Compiled(str(compiled), constants, compiled.positiontup)
            self._compiled[dialect.name] = found
        return found


Asked = tuple[Statement, Parameters | Sequence[Parameters]]


def run(connection: sa.Connection, *asked: Asked, last: bool = False) -> list[Result]:
    """Runs statements none of which needs the result of another; their results, in order.

    The `last` ones of a transaction are committed with the same journey.

    One with several sets of parameters runs once for each of them; its result is all of theirs.

    Raises:
        sqlalchemy.exc.DBAPIError: one failed; the transaction must be undone.
    """
    driver: Any = connection.connection.driver_connection
    dialect = connection.dialect
    try:
        if dialect.name == "sqlite":
            return [_on_sqlite(driver, dialect, *one) for one in asked]
        # A transaction's BEGIN travels with its first statements, too.
        with nullcontext() if driver.autocommit else driver.pipeline():
            if not driver.autocommit and driver.pgconn.transaction_status == IDLE:
                driver.execute(_ONE_PLAN)
            cursors = [_on_postgresql(driver, dialect, *one) for one in asked]
            if last:
                driver.commit()
        return [_sum([_result(cursor) for cursor in one]) for one in cursors]
    except connection.dialect.loaded_dbapi.Error as error:
        broken = dialect.name == "postgresql" and driver.closed
        if broken:
            connection.invalidate(error)
        raise sa.exc.DBAPIError.instance(
            None, None, error, dialect.loaded_dbapi.Error, connection_invalidated=broken
        ) from error


def _on_sqlite(driver: Any, dialect: Dialect, statement: Statement, parameters: Any) -> Result:
    compiled = statement.compiled(dialect)
    return _sum(
        [
            _result(driver.execute(compiled.text, compiled.values(values)))
            for values in _each(parameters)
        ]
    )


def _on_postgresql(
    driver: Any, dialect: Dialect, statement: Statement, parameters: Any
) -> list[Any]:
    compiled, each = statement.compiled(dialect), _each(parameters)
    if statement.arrays and each:
        each = [{name: [values[name] for values in each] for name in each[0]}]
    return [driver.execute(compiled.text, compiled.values(values)) for values in each]


def _each(parameters: Any) -> Sequence[Parameters]:
    return [parameters] if isinstance(parameters, Mapping) else parameters


def _result(cursor: Any) -> Result:
    if cursor.description is None:
        return Result((), cursor.rowcount)
    row = _row_type(tuple(column[0] for column in cursor.description))
    rows = [row(*values) for values in cursor.fetchall()]
    return Result(rows, len(rows))


def _sum(results: Sequence[Result]) -> Result:
    if len(results) == 1:
        return results[0]
    rows = [row for result in results for row in result.rows]
    return Result(rows, sum(result.count for result in results))


@lru_cache
def _row_type(names: tuple[str, ...]) -> type[Any]:
    return namedtuple("Row", names)
