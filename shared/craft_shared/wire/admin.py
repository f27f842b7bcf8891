"""`/v1/admin`: keys, their budgets and policies, prices, and the exported ledger."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from craft_shared.amounts import MAX_AMOUNT, MAX_PRICE_MICROS, Measure, Unit, Window
from craft_shared.wire.messages import (
    Answer,
    Many,
    Message,
    ModelName,
    Moment,
    NewLabel,
    NewName,
    NonEmptyLabel,
    Owner,
    Revision,
    Time,
)
from craft_shared.wire.models import EVERYTHING, Output

Scope = Literal["predict", "publish", "admin"]

MAX_OVERLAP_SECONDS = 90 * 86_400

Amount = Annotated[int, Field(ge=0, le=MAX_AMOUNT)]
PriceMicros = Annotated[int, Field(ge=0, le=MAX_PRICE_MICROS)]
PerMinute = Annotated[int, Field(ge=1, le=MAX_AMOUNT)]
Prefix = Annotated[str, Field(examples=["k3v9x2ma"])]


class TeamBudgetLimit(Message):
    """What one budget is to be: at most `limit` of `unit` in each `window`."""

    unit: Measure
    window: Window = "lifetime"
    limit: Amount = Field(examples=[8000])


class BudgetLimit(TeamBudgetLimit):
    """What one budget of a key is to be: at most `limit` of `unit` in each `window`.

    With `per_user` it bounds each of the key's end users (the header `Craft-User`).
    """

    per_user: bool = False


class TeamBudgetLimits(Message):
    """Body of `PUT /v1/admin/teams/{name}/budgets`: budgets that it does not name stay."""

    budgets: list[TeamBudgetLimit] = Field(min_length=1, max_length=100)


class BudgetLimits(Message):
    """Body of `PUT /v1/admin/keys/{prefix}/budgets`: budgets that it does not name stay."""

    budgets: list[BudgetLimit] = Field(min_length=1, max_length=100)


class BudgetTopUp(Message):
    """By how much the limit of one budget is to grow."""

    unit: Measure
    window: Window = "lifetime"
    amount: Amount = Field(examples=[1000])


class BudgetTopUps(Message):
    """Body of `POST /v1/admin/keys/{prefix}/budgets/top-up`, and of the same of a team."""

    budgets: list[BudgetTopUp] = Field(min_length=1, max_length=100)


class KeyPolicy(Message):
    """What a key's answers may show: body of `PUT /v1/admin/keys/{prefix}/policy`.

    Attributes:
        model: whose answers; null means every model without a policy of its own.
        output: the most that an answer shows.
        prompts_per_image_set: how many different prompts the key's owner may ask about one image
            set, or one image that is sent along; null is not bounded.
    """

    model: NonEmptyLabel | None = None
    output: Output = Field(
        default=EVERYTHING, examples=[{"level": "probs", "decimals": 2, "noise": 0.5}]
    )
    prompts_per_image_set: Annotated[int, Field(ge=1, le=MAX_AMOUNT)] | None = Field(
        default=None, examples=[512]
    )


class KeyPolicies(Answer):
    """A key's policies; the one without a model comes first. None means: everything is shown."""

    policies: Many[KeyPolicy]


class KeyCreate(Message):
    """Body of `POST /v1/admin/keys`.

    Attributes:
        owner: whose image sets and adapters the key sees.
        name: what the key is for.
        team: whose budgets bound it too; made if there is none of that name.
        scopes: what it may do.
        expires_at: from when on it is useless, RFC 3339; null is never.
        requests_per_minute: HTTP calls; null is not bounded.
        predictions_per_minute: prompts scored against one image; null is not bounded.
        concurrency: charged calls at a time; null is not bounded.
        budgets: the key's own; what has none is not bounded.
        policies: what its answers may show; everything when there is none.
        require_user: whether calls have to name the end user for whom they are made.
    """

    owner: NewName = Field(examples=["digits-app"])
    name: NewLabel = Field(default="", examples=["phones"])
    team: NewName | None = Field(default=None, examples=["research"])
    scopes: list[Scope] = Field(default=["predict", "publish"], min_length=1)
    expires_at: Time | None = None
    requests_per_minute: PerMinute | None = Field(default=None, examples=[600])
    predictions_per_minute: PerMinute | None = None
    concurrency: PerMinute | None = Field(default=None, examples=[4])
    budgets: list[BudgetLimit] = Field(
        default_factory=list, max_length=100, examples=[[{"unit": "queries", "limit": 8000}]]
    )
    policies: list[KeyPolicy] = Field(default_factory=list, max_length=100)
    require_user: bool = False


class KeyRotate(Message):
    """Body of `POST /v1/admin/keys/{prefix}/rotate`: for how long the old secrets still work."""

    overlap_seconds: int = Field(default=86_400, ge=0, le=MAX_OVERLAP_SECONDS)


class KeyCard(Answer):
    """A key, without its secrets. Times are RFC 3339.

    Attributes:
        id: names the key in exported usage, whatever becomes of its secrets.
        prefix: of the newest secret; names the key in calls and commands.
        prefixes: of all its secrets, the newest first.
    """

    id: int = Field(examples=[3])
    prefix: Prefix
    prefixes: Many[Prefix]
    owner: Owner
    name: str = Field(examples=["phones"])
    team: str | None = Field(examples=["research"])
    scopes: Many[Scope]
    requests_per_minute: int | None = Field(examples=[600])
    predictions_per_minute: int | None = Field(examples=[None])
    concurrency: int | None = Field(examples=[4])
    require_user: bool = False
    created_at: Moment
    expires_at: str | None = Field(examples=[None])
    revoked_at: str | None = Field(examples=[None])


class KeyList(Answer):
    """Answer of `GET /v1/admin/keys?after=ID&limit=N`: a page of keys, or all.

    `next_after` continues the listing; null at its end.
    """

    keys: Many[KeyCard]
    next_after: int | None = Field(default=None, examples=[100])


class KeySecret(Answer):
    """A new secret of a key.

    Attributes:
        key: the secret. It is shown once: null where the answer is given again.
        prefix: of the secret.
        card: the key.
    """

    key: str | None = Field(examples=["craft_k3v9x2ma_shown-once"])
    prefix: Prefix
    card: KeyCard


class PriceList(Message):
    """Body of `PUT /v1/admin/prices/{model}`, and its answer: micros a unit.

    A unit that it does not name stays as it is.
    """

    micros: dict[Unit, PriceMicros] = Field(examples=[{"queries": 500, "images": 20}])


class PriceLists(Answer):
    """Answer of `GET /v1/admin/prices`: every model's prices; a unit without one is free."""

    models: dict[str, dict[Unit, int]] = Field(examples=[{"pocket": {"queries": 500}}])


class UsageLine(Answer):
    """One line of exported usage: what `GET /v1/usage` lists, and whose it is.

    `id` counts the lines of all keys; `line` is the id under which the key itself sees it.
    `closed_at` is when the call was settled, RFC 3339; null while it runs.
    """

    id: int = Field(examples=[7])
    line: int = Field(examples=[2])
    at: Moment
    closed_at: str | None = Field(examples=["2026-11-26T12:08:44.012Z"])
    key_id: int = Field(examples=[3])
    key: Prefix
    owner: Owner
    team: str | None = Field(examples=["research"])
    call: str = Field(examples=["predictions"])
    run: str | None = Field(examples=["digits-16-shots"])
    model: ModelName
    revision: Revision
    state: Literal["reserved", "settled"] = Field(examples=["settled"])
    queries: int = Field(examples=[32])
    predictions: int = Field(examples=[1280])
    images: int = Field(examples=[0])
    texts: int = Field(examples=[320])
    requests: int = Field(examples=[1])
    cost_micros: int = Field(examples=[0])
    adapter: str | None = Field(default=None, examples=["research/digits@3"])
    user: str | None = Field(default=None, examples=["user-4711"])
