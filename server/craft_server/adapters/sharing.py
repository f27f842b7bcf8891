"""What the owner of a name has decided: who may use it, who pays, and what its aliases mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from craft_server.adapters.tables import (
    ADAPTER_ALIASES,
    ADAPTER_GRANTS,
    ADAPTER_SETTINGS,
    ADAPTER_TOTALS,
    ADAPTERS,
    PUBLIC,
    NoSuchAdapter,
)
from craft_server.ledger.account import units_of
from craft_server.ledger.keys import Caller
from craft_server.ledger.tables import KEY_SECRETS, TEAMS
from craft_server.statements import Statement, run
from craft_shared.units import UNITS, Units
from craft_shared.wire import AdapterChange, AdapterSettings, AdapterUsage, AdapterUse


class NoSuchVersion(Exception):  # noqa: N818 - reads as what it is where it is caught
    """An alias was to mean a version that is not published."""

    def __init__(self, alias: str, version: int) -> None:
        super().__init__(alias, version)
        self.alias = alias
        self.version = version


def usable_by(caller: Caller) -> sa.ColumnElement[bool]:
    """A condition on `ADAPTERS` joined to `ADAPTER_SETTINGS`: public, or granted to the caller."""
    granted = sa.exists().where(
        ADAPTER_GRANTS.c.owner == ADAPTERS.c.owner,
        ADAPTER_GRANTS.c.name == ADAPTERS.c.name,
        _granted_to(caller),
    )
    return sa.or_(ADAPTER_SETTINGS.c.public, granted)


def usable_names(
    connection: sa.Connection, caller: Caller, *, after: tuple[str, str] | None, limit: int
) -> list[tuple[str, str]]:
    """Owner and name of up to `limit` adapters in service that the caller may use.

    Its owner's own come first, then the others, each by owner and name; `after` is the last one
    that was listed. What is read grows with `limit` and with what was granted, not with how many
    adapters there are.
    """
    own: list[tuple[str, str]] = []
    if after is None or after[0] == caller.owner:
        names = ADAPTER_SETTINGS.c.name > after[1] if after else sa.true()
        of_owner = ADAPTER_SETTINGS.c.owner == caller.owner
        own = _names(connection, _in_service(ADAPTER_SETTINGS, limit).where(of_owner, names))
        after = None
    if len(own) == limit:
        return own
    public = _in_service(ADAPTER_SETTINGS, limit).where(
        PUBLIC, *_of_others(ADAPTER_SETTINGS, caller, after)
    )
    granted = _in_service(ADAPTER_GRANTS, limit).where(
        _granted_to(caller), *_of_others(ADAPTER_GRANTS, caller, after)
    )
    # SQLite limits a part of a union only where the part is a subquery.
    others = sa.union(sa.select(public.subquery()), sa.select(granted.subquery())).subquery()
    in_order = sa.select(others).order_by(others.c.owner, others.c.name)
    return own + _names(connection, in_order.limit(limit - len(own)))


def _in_service(table: sa.Table, limit: int) -> sa.Select[Any]:
    """The first names in a table of which a version is not retired."""
    names = (table.c.owner, table.c.name)
    # Not `EXISTS`, of which PostgreSQL makes a join that reads all versions.
    living = (
        sa.select(ADAPTERS.c.version)
        .where(
            ADAPTERS.c.owner == table.c.owner,
            ADAPTERS.c.name == table.c.name,
            ADAPTERS.c.retired_at.is_(None),
        )
        .limit(1)
        .scalar_subquery()
    )
    query = sa.select(*names).where(living.is_not(None))
    return query.distinct().order_by(*names).limit(limit)


def _of_others(
    table: sa.Table, caller: Caller, after: tuple[str, str] | None
) -> Iterator[sa.ColumnElement[bool]]:
    yield table.c.owner != caller.owner
    if after is not None:
        yield sa.tuple_(table.c.owner, table.c.name) > sa.tuple_(*after)


def _names(connection: sa.Connection, query: sa.Select[Any]) -> list[tuple[str, str]]:
    return [(row.owner, row.name) for row in connection.execute(query)]


def _granted_to(caller: Caller) -> sa.ColumnElement[bool]:
    """A condition on `ADAPTER_GRANTS`: to the caller's key, or to its team."""
    prefixes = sa.select(KEY_SECRETS.c.prefix).where(KEY_SECRETS.c.key_id == caller.key_id)
    to_key = sa.and_(ADAPTER_GRANTS.c.kind == "key", ADAPTER_GRANTS.c.grantee.in_(prefixes))
    if caller.team_id is None:
        return to_key
    teams = sa.select(TEAMS.c.name).where(TEAMS.c.id == caller.team_id)
    to_team = sa.and_(ADAPTER_GRANTS.c.kind == "team", ADAPTER_GRANTS.c.grantee.in_(teams))
    return sa.or_(to_key, to_team)


def settings(connection: sa.Connection, owner: str, name: str) -> AdapterSettings:
    """What holds for a name of the owner.

    Raises:
        NoSuchAdapter: nothing was ever published under it.
    """
    row = connection.execute(
        sa.select(ADAPTER_SETTINGS).where(*_of_name(ADAPTER_SETTINGS, owner, name))
    ).one_or_none()
    if row is None:
        raise NoSuchAdapter(name)
    grants: dict[str, list[str]] = {"key": [], "team": []}
    for grant in connection.execute(
        sa.select(ADAPTER_GRANTS)
        .where(*_of_name(ADAPTER_GRANTS, owner, name))
        .order_by(ADAPTER_GRANTS.c.grantee)
    ):
        grants[grant.kind].append(grant.grantee)
    aliases = connection.execute(
        sa.select(ADAPTER_ALIASES.c.alias, ADAPTER_ALIASES.c.version)
        .where(*_of_name(ADAPTER_ALIASES, owner, name))
        .order_by(ADAPTER_ALIASES.c.alias)
    )
    return AdapterSettings(
        owner=owner,
        name=name,
        public=row.public,
        keys=grants["key"],
        teams=grants["team"],
        pays="caller" if row.payer_key_id is None else "publisher",
        abstain_below=row.abstain_below,
        aliases={alias.alias: alias.version for alias in aliases},
    )


def change(
    connection: sa.Connection, caller: Caller, name: str, wanted: AdapterChange
) -> AdapterSettings:
    """Changes what `wanted` names, for the caller's owner; what holds after it.

    Where `wanted` says that the publisher pays, the caller's key does.

    Raises:
        NoSuchAdapter: nothing was ever published under the name.
        NoSuchVersion: of an alias.
    """
    owner, named = caller.owner, wanted.model_fields_set
    values: dict[str, object] = {
        field: getattr(wanted, field) for field in ("public", "abstain_below") if field in named
    }
    if "pays" in named:
        values["payer_key_id"] = caller.key_id if wanted.pays == "publisher" else None
    # Names are locked by their settings, so that two changes do not mix.
    locked = connection.execute(
        sa.update(ADAPTER_SETTINGS)
        .where(*_of_name(ADAPTER_SETTINGS, owner, name))
        .values(values or {"owner": owner})
    )
    if locked.rowcount == 0:
        raise NoSuchAdapter(name)
    if "keys" in named:
        _grant(connection, owner, name, "key", wanted.keys)
    if "teams" in named:
        _grant(connection, owner, name, "team", wanted.teams)
    if "aliases" in named:
        move_aliases(connection, owner, name, wanted.aliases)
    return settings(connection, owner, name)


def move_aliases(
    connection: sa.Connection, owner: str, name: str, aliases: Mapping[str, int | None]
) -> None:
    """Makes each alias mean a version, or nothing any more.

    Raises:
        NoSuchVersion: there is none that lives.
    """
    for alias, version in sorted(aliases.items()):
        connection.execute(
            sa.delete(ADAPTER_ALIASES).where(
                *_of_name(ADAPTER_ALIASES, owner, name), ADAPTER_ALIASES.c.alias == alias
            )
        )
        if version is None:
            continue
        living = connection.execute(
            sa.select(ADAPTERS.c.id).where(
                *_of_name(ADAPTERS, owner, name),
                ADAPTERS.c.version == version,
                ADAPTERS.c.retired_at.is_(None),
            )
        ).one_or_none()
        if living is None:
            raise NoSuchVersion(alias, version)
        connection.execute(
            sa.insert(ADAPTER_ALIASES).values(owner=owner, name=name, alias=alias, version=version)
        )


def _grant(
    connection: sa.Connection, owner: str, name: str, kind: str, grantees: Sequence[str]
) -> None:
    connection.execute(
        sa.delete(ADAPTER_GRANTS).where(
            *_of_name(ADAPTER_GRANTS, owner, name), ADAPTER_GRANTS.c.kind == kind
        )
    )
    if grantees:
        connection.execute(
            sa.insert(ADAPTER_GRANTS),
            [
                {"owner": owner, "name": name, "kind": kind, "grantee": grantee}
                for grantee in dict.fromkeys(grantees)
            ],
        )


def _of_name(table: sa.Table, owner: str, name: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (table.c.owner == owner, table.c.name == name)


_ADD = Statement(
    sa.update(ADAPTER_TOTALS)
    .where(ADAPTER_TOTALS.c.adapter_id == sa.bindparam("of_adapter"))
    .values(
        calls=ADAPTER_TOTALS.c.calls + sa.literal_column("1"),
        **{unit: ADAPTER_TOTALS.c[unit] + sa.bindparam(f"add_{unit}") for unit in UNITS},
    )
)


def count_use(connection: sa.Connection, adapter_id: int, units: Units) -> None:
    """Adds one charged call."""
    amounts = {f"add_{unit}": amount for unit, amount in units.model_dump().items()}
    run(connection, (_ADD, {"of_adapter": adapter_id, **amounts}))


def usage(connection: sa.Connection, owner: str, name: str) -> AdapterUsage:
    """What was classified with all versions under the owner's name, the retired ones too.

    Raises:
        NoSuchAdapter: there is none.
    """
    rows = connection.execute(
        sa.select(ADAPTERS.c.version, ADAPTER_TOTALS)
        .join(ADAPTER_TOTALS, ADAPTER_TOTALS.c.adapter_id == ADAPTERS.c.id)
        .where(ADAPTERS.c.owner == owner, ADAPTERS.c.name == name)
        .order_by(ADAPTERS.c.version)
    ).all()
    if not rows:
        raise NoSuchAdapter(name)
    return AdapterUsage(
        owner=owner,
        name=name,
        versions=[
            AdapterUse(
                version=row.version,
                calls=row.calls,
                units=units_of(row),
            )
            for row in rows
        ],
    )
