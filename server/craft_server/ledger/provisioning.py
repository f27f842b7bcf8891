"""Teams, keys and prices as an operator's file wants them, and the steps from what is to that.

What the file does not name stays as it is. A key is found by its owner and its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import Field, field_validator

from craft_server.clock import epoch_ms, rfc3339
from craft_server.ledger import administration, budgets, keys, prices
from craft_server.ledger.administration import Holder, as_wanted, limit_of
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


@dataclass(frozen=True)
class Step:
    """A change, in words, and what makes it; that returns the file that it has made, if any."""

    what: str
    do: Callable[[sa.Connection], Path | None]


def steps(connection: sa.Connection, wanted: Wanted, folder: Path, at: int) -> list[Step]:
    """What is to be done, in this order; key files are found from the folder.

    Raises:
        CannotProvision: two living keys have the owner and name of one that is wanted, or the file
            of a key that is to be made is there.
    """
    living: dict[tuple[str, str], list[keys.KeyEntry]] = {}
    for entry in keys.list_keys(connection):
        if entry.revoked_at is None:
            living.setdefault((entry.owner, entry.name), []).append(entry)
    found: list[Step] = []
    for team in wanted.teams:
        found += _team_steps(connection, team, at)
    for key in wanted.keys:
        alike = living.get((key.owner, key.name), [])
        if len(alike) > 1:
            prefixes = ", ".join(entry.prefixes[0] for entry in alike)
            raise CannotProvision(
                f"{_named(key)} is not one key but several: {prefixes}; revoke all but one, or "
                "give them other names with 'craft-server keys set'"
            )
        found += _changes(connection, alike[0], key, at) if alike else [_making(key, folder, at)]
    now = prices.list_prices(connection)
    for model, micros in wanted.prices.items():
        changed = {
            unit: price for unit, price in micros.items() if price != _price(now, model, unit)
        }
        found += [
            Step(
                f"change the price of {unit} on {model}: {_price(now, model, unit)} -> {price}",
                partial(prices.set_prices, model=model, micros={unit: price}),
            )
            for unit, price in changed.items()
        ]
    return found


def take(connection: sa.Connection, wanted: Sequence[Step], on_failure: ExitStack) -> None:
    """Takes all steps; the files that they make are removed again by what `on_failure` is given.

    Raises:
        CannotProvision: one of them cannot be; the transaction must be undone.
    """
    for step in wanted:
        try:
            if (file := step.do(connection)) is not None:
                on_failure.callback(file.unlink)
        except budgets.LimitBelowUse as error:
            why = f"{error.used} are spent or reserved already; name at least that"
            raise CannotProvision(f"cannot {step.what}: {why}") from error
        except budgets.BudgetInUse as error:
            raise CannotProvision(f"cannot {step.what}: {error}") from error
        except OSError as error:
            raise CannotProvision(f"cannot {step.what}: {error.strerror}") from error


def write_secret(file: Path, secret: str) -> None:
    """Writes a key's secret where no file is, for its owner and group to read.

    Raises:
        OSError: it cannot be written.
    """
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640), "w") as stream:
        stream.write(secret)


def _team_steps(connection: sa.Connection, team: WantedTeam, at: int) -> Iterator[Step]:
    try:
        holder = administration.team_holder(connection, team.name)
        now = budgets.list_budgets(connection, None, holder.team_id, at)
    except keys.UnknownTeam:
        yield Step(
            f"make team {team.name}", partial(administration.make_team, name=team.name, at=at)
        )
        now = []
    holder_of = partial(administration.team_holder, name=team.name)
    if team.budgets is not None:
        limits = [limit_of(budget) for budget in now]
        yield from _budget_steps(f"team {team.name}", holder_of, limits, team.budgets, at)


def _making(wanted: WantedKey, folder: Path, at: int) -> Step:
    file = folder / wanted.key_file
    what = f"make {_named(wanted)}, its secret in '{file}'"
    if os.path.lexists(file):
        raise CannotProvision(f"cannot {what}: the file is there; move it away, or name another")

    def make(connection: sa.Connection) -> Path:
        made = administration.create(connection, wanted, at)
        write_secret(file, str(made.key))
        return file

    return Step(what, make)


def _changes(
    connection: sa.Connection, entry: keys.KeyEntry, wanted: WantedKey, at: int
) -> Iterator[Step]:
    now = as_wanted(connection, entry, at)
    named = wanted.model_fields_set - {"key_file", "budgets"}
    then = now.model_copy(update={field: getattr(wanted, field) for field in named})
    key = f"key {entry.prefixes[0]} ({_named(wanted)})"
    before, after = _shown(now), _shown(then)
    differing = [field for field in before if before[field] != after[field]]
    if differing:
        words = ", ".join(f"{field} {before[field]} -> {after[field]}" for field in differing)
        change = partial(administration.change, prefix=entry.prefixes[0], wanted=then, at=at)
        yield Step(f"change {key}: {words}", change)
    if "budgets" in wanted.model_fields_set:
        holder_of = partial(administration.key_holder, prefix=entry.prefixes[0])
        yield from _budget_steps(key, holder_of, now.budgets, wanted.budgets, at)


def _budget_steps(
    whose: str,
    holder_of: Callable[[sa.Connection], Holder],
    now: Sequence[BudgetLimit],
    wanted: Sequence[BudgetLimit],
    at: int,
) -> Iterator[Step]:
    before = {(one.unit, one.window): one.limit for one in now}
    after = {(one.unit, one.window): one for one in wanted}
    for place, one in after.items():
        if before.get(place) == one.limit:
            continue
        was = f"{before[place]} -> " if place in before else ""
        yield Step(
            f"set the budget on {one.unit} ({one.window}) of {whose}: {was}{one.limit}",
            partial(_set_budget, holder_of=holder_of, wanted=one, at=at),
        )
    for one in now:
        if (one.unit, one.window) not in after:
            yield Step(
                f"remove the budget on {one.unit} ({one.window}) of {whose}",
                partial(_remove_budget, holder_of=holder_of, unwanted=one, at=at),
            )


def _set_budget(
    connection: sa.Connection,
    holder_of: Callable[[sa.Connection], Holder],
    wanted: BudgetLimit,
    at: int,
) -> None:
    administration.set_budgets(connection, holder_of(connection), [wanted], at)


def _remove_budget(
    connection: sa.Connection,
    holder_of: Callable[[sa.Connection], Holder],
    unwanted: BudgetLimit,
    at: int,
) -> None:
    holder = holder_of(connection)
    administration.remove_budget(connection, holder, unwanted.unit, unwanted.window, at)


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


def _price(now: prices.Prices, model: str, unit: Unit) -> int:
    return now.get(model, {}).get(unit, 0)


def _named(wanted: KeyCreate) -> str:
    return f"{wanted.owner}/{wanted.name}" if wanted.name else f"{wanted.owner}'s unnamed key"
