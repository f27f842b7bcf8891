"""Teams, keys and prices as an operator's file wants them, and the way from what is to that.

What the file does not name stays as it is. A key is found by its owner and its name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import Field, field_validator

from craft_server.clock import epoch_ms, rfc3339
from craft_server.ledger import administration, budgets, keys, prices, users
from craft_server.ledger.administration import Holder, as_wanted
from craft_server.policy import policies, with_policy
from craft_shared.units import Unit
from craft_shared.wire import BudgetLimit, KeyCreate
from craft_shared.wire.admin import PriceMicros
from craft_shared.wire.messages import Message, NewName, NonEmptyLabel


class WantedTeam(Message):
    """A team; without `budgets` those that it has stay, with an empty list it gets none."""

    name: NewName
    budgets: list[BudgetLimit] | None = None


class WantedKey(KeyCreate):
    """A key; `key_file` is where its secret goes once it is made, beside the operator's file."""

    key_file: str = Field(min_length=1)


class Wanted(Message):
    """What the file says."""

    teams: list[WantedTeam] = Field(default_factory=list)
    keys: list[WantedKey] = Field(default_factory=list)
    prices: dict[NonEmptyLabel, dict[Unit, PriceMicros]] = Field(default_factory=dict)

    @field_validator("keys")
    @classmethod
    def _each_once(cls, wanted: list[WantedKey]) -> list[WantedKey]:
        seen: set[tuple[str, str]] = set()
        for one in wanted:
            if (one.owner, one.name) in seen:
                raise ValueError(f"{_named(one)} is there twice; give each key a name of its own")
            seen.add((one.owner, one.name))
        return wanted


class CannotProvision(Exception):  # noqa: N818 - reads as what it is where it is caught
    """What is wanted cannot be; says why in words. Nothing may be kept of what was done."""


def provision(
    connection: sa.Connection, wanted: Wanted, folder: Path, at: int, secrets: dict[Path, str]
) -> Iterator[str]:
    """Makes everything be as it is wanted; of each change, once it is made, the words.

    `secrets` gets those of keys that are made, by the files that they go into; these are found from
    the folder and not written yet.

    Raises:
        CannotProvision: a change cannot be, or two living keys have the owner and name of one that
            is wanted; the transaction must be undone.
    """
    living: dict[tuple[str, str], list[keys.KeyEntry]] = {}
    for entry in keys.list_keys(connection):
        if entry.revoked_at is None:
            living.setdefault((entry.owner, entry.name), []).append(entry)
    for team in wanted.teams:
        yield from _team(connection, team, at)
    for key in wanted.keys:
        alike = living.get((key.owner, key.name), [])
        if len(alike) > 1:
            prefixes = ", ".join(entry.prefixes[0] for entry in alike)
            raise CannotProvision(
                f"{_named(key)} is not one key but several: {prefixes}; revoke all but one, or "
                "give them other names with 'craft-server keys set'"
            )
        if alike:
            yield from _change(connection, alike[0], key, at)
        else:
            yield _make(connection, key, folder / key.key_file, at, secrets)
    now = prices.list_prices(connection)
    for model, micros in wanted.prices.items():
        for unit, price in micros.items():
            if price != (was := now.get(model, {}).get(unit, 0)):
                prices.set_prices(connection, model, {unit: price})
                yield f"change the price of {unit} on {model}: {was} -> {price}"


def write_secrets(secrets: Mapping[Path, str], on_failure: ExitStack) -> None:
    """Writes keys' secrets; the files are removed again by what `on_failure` is given.

    Raises:
        CannotProvision: one of them cannot be written.
    """
    for file, secret in secrets.items():
        try:
            write_secret(file, secret)
        except OSError as error:
            raise CannotProvision(f"cannot write '{file}': {error.strerror}") from error
        on_failure.callback(file.unlink)


def write_secret(file: Path, secret: str) -> None:
    """Writes a key's secret where no file is, for its owner and group to read.

    Raises:
        OSError: it cannot be written.
    """
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640), "w") as stream:
        stream.write(secret)


def _team(connection: sa.Connection, team: WantedTeam, at: int) -> Iterator[str]:
    try:
        holder = administration.team_holder(connection, team.name)
    except keys.UnknownTeam:
        holder = Holder(team_id=keys.team_id_of(connection, team.name, at))
        yield f"make team {team.name}"
    if team.budgets is not None:
        yield from _budgets(connection, f"team {team.name}", holder, team.budgets, at)


def _make(
    connection: sa.Connection, wanted: WantedKey, file: Path, at: int, secrets: dict[Path, str]
) -> str:
    what = f"make {_named(wanted)}, its secret in '{file}'"
    if os.path.lexists(file) or file in secrets:
        raise CannotProvision(
            f"cannot {what}: the file is there, or another key's; move it away, or name another"
        )
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise CannotProvision(f"cannot {what}: '{file.parent}' is no folder that can be written to")
    secrets[file] = str(administration.create(connection, wanted, at).key)
    return what


def _change(
    connection: sa.Connection, entry: keys.KeyEntry, wanted: WantedKey, at: int
) -> Iterator[str]:
    now = as_wanted(connection, entry, at)
    named = wanted.model_fields_set - {"key_file", "budgets"}
    then = now.model_copy(update={field: getattr(wanted, field) for field in named})
    key = f"key {entry.prefixes[0]} ({_named(wanted)})"
    before, after = _shown(now), _shown(then)
    differing = [field for field in before if before[field] != after[field]]
    if differing:
        administration.change(connection, entry.prefixes[0], then, at)
        words = ", ".join(f"{field} {before[field]} -> {after[field]}" for field in differing)
        yield f"change {key}: {words}"
    if "budgets" in wanted.model_fields_set:
        yield from _budgets(connection, key, Holder(key_id=entry.key_id), wanted.budgets, at)


def _budgets(
    connection: sa.Connection,
    whose: str,
    holder: Holder,
    wanted: Sequence[BudgetLimit],
    at: int,
) -> Iterator[str]:
    now = administration.limits_of(connection, holder, at)
    before = {(one.unit, one.window, one.per_user): one.limit for one in now}
    after = {(one.unit, one.window, one.per_user): one for one in wanted}
    for place, one in after.items():
        if before.get(place) == one.limit:
            continue
        was = f"{before[place]} -> " if place in before else ""
        whom = _whom(whose, one.per_user)
        what = f"set the budget on {one.unit} ({one.window}) of {whom}: {was}{one.limit}"
        try:
            administration.set_budgets(connection, holder, [one], at)
        except users.TeamHasNoUsers as error:
            why = "end users are a key's; set it for each of the team's keys"
            raise CannotProvision(f"cannot {what}: {why}") from error
        except budgets.LimitBelowUse as error:
            why = f"{error.used} are spent or reserved already; name at least that"
            raise CannotProvision(f"cannot {what}: {why}") from error
        yield what
    for unit, window, per_user in [place for place in before if place not in after]:
        what = f"remove the budget on {unit} ({window}) of {_whom(whose, per_user)}"
        try:
            administration.remove_budget(connection, holder, unit, window, at, per_user=per_user)
        except budgets.BudgetInUse as error:
            raise CannotProvision(f"cannot {what}: {error}") from error
        yield what


def _whom(whose: str, per_user: bool) -> str:
    return f"each end user of {whose}" if per_user else whose


def _shown(wanted: KeyCreate) -> dict[str, Any]:
    """What is compared, in an order and a form that do not depend on who wrote it."""
    expires_at = wanted.expires_at
    return {
        **wanted.model_dump(exclude={"owner", "budgets", "scopes", "policies", "expires_at"}),
        "scopes": " ".join(scope for scope in keys.SCOPES if scope in wanted.scopes),
        "expires_at": "never" if expires_at is None else rfc3339(epoch_ms(expires_at)),
        "policies": _in_order(wanted),
    }


def _in_order(wanted: KeyCreate) -> str:
    stored = with_policy(None, wanted.policies)
    return " ".join(one.model_dump_json(exclude_defaults=True) for one in policies(stored))


def _named(wanted: KeyCreate) -> str:
    return f"{wanted.owner}/{wanted.name}" if wanted.name else f"{wanted.owner}'s unnamed key"
