"""What an operator asks for: on the command line, in a file or over the API; each one transaction.

It puts `keys` and `budgets` together and speaks the wire's messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from craft_server.clock import epoch_ms
from craft_server.ledger import budgets, keys, users
from craft_server.policy import policies, with_policy
from craft_shared.amounts import Measure, Window
from craft_shared.wire import (
    Budget,
    BudgetLimit,
    BudgetTopUp,
    KeyCreate,
    KeyPolicies,
    KeyPolicy,
    KeySecret,
)


@dataclass(frozen=True)
class Holder:
    """Whose budgets are meant: a key's or a team's."""

    key_id: int | None = None  # of the key; None for a team
    team_id: int | None = None  # of the team; None for a key
    bound_by_team: int | None = None  # the key's team, whose budgets bound it too


def key_holder(connection: sa.Connection, prefix: str) -> Holder:
    """A key as the holder of budgets.

    Raises:
        UnknownKey: there is none.
    """
    entry = keys.find_key(connection, prefix)
    return Holder(key_id=entry.key_id, bound_by_team=entry.team_id)


def team_holder(connection: sa.Connection, name: str) -> Holder:
    """A team as the holder of budgets.

    Raises:
        UnknownTeam: there is none.
    """
    return Holder(team_id=keys.find_team(connection, name))


def create(connection: sa.Connection, wanted: KeyCreate, at: int) -> KeySecret:
    """Makes a key with its budgets; its secret is shown this once."""
    secret = keys.create_key(connection, owner=wanted.owner, **_attributes(wanted), at=at)
    holder = key_holder(connection, keys.prefix_of(secret))
    set_budgets(connection, holder, wanted.budgets, at)
    return _shown(connection, secret)


def as_wanted(connection: sa.Connection, entry: keys.KeyEntry, at: int) -> KeyCreate:
    """A key as it is now: what would make another one like it."""
    end = entry.expires_at
    # Names that were made before some were refused stay.
    return KeyCreate.model_construct(
        owner=entry.owner,
        name=entry.name,
        team=entry.team,
        scopes=list(entry.scopes),
        expires_at=None if end is None else datetime.fromtimestamp(end / 1000, UTC),
        requests_per_minute=entry.rates.requests_per_minute,
        predictions_per_minute=entry.rates.predictions_per_minute,
        concurrency=entry.rates.concurrency,
        budgets=limits_of(connection, Holder(key_id=entry.key_id), at),
        require_user=entry.require_user,
        policies=policies(entry.policies),
    )


def change(connection: sa.Connection, prefix: str, wanted: KeyCreate, at: int) -> None:
    """Makes a key be as it is wanted, but for its owner, its secrets and its budgets.

    Raises:
        UnknownKey: there is none.
        RevokedKey: it was revoked.
    """
    entry = keys.find_key(connection, prefix)
    if entry.revoked_at is not None:
        raise keys.RevokedKey(prefix)
    keys.change_key(connection, entry.key_id, **_attributes(wanted), at=at)


def _attributes(wanted: KeyCreate) -> dict[str, Any]:
    return {
        "name": wanted.name,
        "team": wanted.team,
        "scopes": wanted.scopes,
        "rates": keys.Rates(
            wanted.requests_per_minute, wanted.predictions_per_minute, wanted.concurrency
        ),
        "policies": with_policy(None, wanted.policies) if wanted.policies else None,
        "require_user": wanted.require_user,
        "expires_at": None if wanted.expires_at is None else epoch_ms(wanted.expires_at),
    }


def rotate(connection: sa.Connection, prefix: str, *, overlap_ms: int, at: int) -> KeySecret:
    """Gives a key a new secret, which is shown this once.

    Raises:
        UnknownKey: there is none.
        RevokedKey: it was revoked.
    """
    return _shown(connection, keys.rotate_key(connection, prefix, overlap_ms=overlap_ms, at=at))


def show_policies(connection: sa.Connection, prefix: str) -> KeyPolicies:
    """What a key's answers may show.

    Raises:
        UnknownKey: there is none.
    """
    return KeyPolicies(policies=policies(keys.find_key(connection, prefix).policies))


def set_policy(connection: sa.Connection, prefix: str, wanted: KeyPolicy) -> KeyPolicies:
    """Sets what a key's answers of one model, or of every other, may show; all its policies.

    Raises:
        UnknownKey: there is none.
    """
    entry = keys.find_key(connection, prefix)
    stored = with_policy(entry.policies, [wanted])
    keys.set_policies(connection, entry.key_id, stored)
    return KeyPolicies(policies=policies(stored))


def set_budgets(
    connection: sa.Connection, holder: Holder, wanted: Sequence[BudgetLimit], at: int
) -> None:
    """Sets budgets; those that are not named stay as they are.

    Raises:
        LimitBelowUse: of the first that cannot be; the transaction must be undone.
        TeamHasNoUsers: end users of a team are to be bounded; likewise.
    """
    for one in wanted:
        budget = one.model_dump(exclude={"per_user"})
        if one.per_user:
            users.set_user_limit(connection, _with_users(holder), **budget)
        else:
            budgets.set_budget(
                connection, key_id=holder.key_id, team_id=holder.team_id, at=at, **budget
            )


def limits_of(connection: sa.Connection, holder: Holder, at: int) -> list[BudgetLimit]:
    """What a key's or a team's own budgets are set to, and those of a key's end users."""
    own = budgets.list_budgets(connection, holder.key_id, holder.team_id, at)
    limits = [BudgetLimit(unit=one.unit, window=one.window, limit=one.limit) for one in own]
    if holder.key_id is not None:
        limits += users.list_limits(connection, holder.key_id)
    return limits


def remove_budget(
    connection: sa.Connection,
    holder: Holder,
    unit: Measure,
    window: Window,
    at: int,
    *,
    per_user: bool = False,
) -> None:
    """Removes one budget, of the holder itself or of each of its end users.

    Raises:
        NoSuchBudget: there is none.
        BudgetInUse: calls that run hold some of the holder's own; the transaction must be undone.
        TeamHasNoUsers: end users of a team are meant.
    """
    if per_user:
        key_id = _with_users(holder)
        users.remove_user_limit(connection, key_id, unit=unit, window=window)
        return
    budgets.remove_budget(
        connection, key_id=holder.key_id, team_id=holder.team_id, unit=unit, window=window, at=at
    )


def top_up(connection: sa.Connection, holder: Holder, wanted: Sequence[BudgetTopUp]) -> None:
    """Adds to budgets' limits.

    Raises:
        NoSuchBudget: the first that there is not; the transaction must be undone.
        LimitTooLarge: of the first that would be; the transaction must be undone.
    """
    for one in wanted:
        budgets.top_up(connection, key_id=holder.key_id, team_id=holder.team_id, **one.model_dump())


def show_budgets(
    connection: sa.Connection, holder: Holder, at: int, user: str | None = None
) -> list[Budget]:
    """The budgets that bound the key (its own and its team's), or the team's.

    Those of a key's end users are shown as what bounds a new one, or a `user`.

    Raises:
        TeamHasNoUsers: a team's is meant.
    """
    team_id = holder.team_id or holder.bound_by_team
    shown = budgets.list_budgets(connection, holder.key_id, team_id, at)
    if holder.key_id is None and user is None:
        return shown
    of_users = users.list_user_budgets(connection, _with_users(holder), user, at)
    return budgets.in_order(shown + of_users)


def _with_users(holder: Holder) -> int:
    if holder.key_id is None:
        raise users.TeamHasNoUsers
    return holder.key_id


def _shown(connection: sa.Connection, secret: str) -> KeySecret:
    prefix = keys.prefix_of(secret)
    card = keys.as_card(keys.find_key(connection, prefix))
    return KeySecret(key=secret, prefix=prefix, card=card)
