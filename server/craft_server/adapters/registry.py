"""Names and versions: published, found, listed, retired and restored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from craft_server.adapters.sharing import move_aliases, usable_by, usable_names
from craft_server.adapters.tables import (
    ADAPTER_ALIASES,
    ADAPTER_SETTINGS,
    ADAPTER_TOTALS,
    ADAPTERS,
    NoSuchAdapter,
    Reference,
)
from craft_server.clock import now
from craft_server.database import insert_missing
from craft_server.image_sets import bound_revision, precision_of
from craft_server.ledger.keys import Caller
from craft_server.ledger.prices import Prices, list_prices
from craft_shared.adapter import Adapter
from craft_shared.counting import prediction_units
from craft_shared.units import UNITS
from craft_shared.wire import AdapterCard, Provenance
from craft_shared.wire.adapters import LATEST

_HEAVY = ("body", "text_features")
_CARD = (
    *(column for column in ADAPTERS.columns if column.name not in _HEAVY),
    ADAPTER_SETTINGS.c.payer_key_id,
    ADAPTER_SETTINGS.c.abstain_below,
)
_SETTINGS_OF_IT = sa.and_(
    ADAPTER_SETTINGS.c.owner == ADAPTERS.c.owner, ADAPTER_SETTINGS.c.name == ADAPTERS.c.name
)
_IN_ORDER = (ADAPTERS.c.owner, ADAPTERS.c.name, ADAPTERS.c.version)
_WITH_SETTINGS = (
    sa.select(*_CARD)
    .select_from(ADAPTERS.join(ADAPTER_SETTINGS, _SETTINGS_OF_IT))
    .order_by(*_IN_ORDER)
)
_LIVING = ADAPTERS.c.retired_at.is_(None)
# A statement takes each name as two parameters, of which no store allows any number.
MOST_A_PAGE = 500


@dataclass(frozen=True)
class Publication:
    """A version of an adapter."""

    id: int  # of its row
    card: AdapterCard  # what those see who may use it
    payer_key_id: int | None  # the key that pays for predictions; None where the caller does
    texts_in: str  # the precision of its stored text features


def find(connection: sa.Connection, caller: Caller, reference: str) -> Publication:
    """The version that `resolve` finds, with the aliases on its card."""
    row = _resolved(connection, caller, reference)
    (publication,) = _publications(connection, [row])
    return publication


def resolve(
    connection: sa.Connection, caller: Caller, reference: str, adapter_id: int | None = None
) -> Publication:
    """The one living version that a reference means now, if the caller may use it.

    With `adapter_id`, the version that it meant before, whatever it means now. Its card has no
    aliases and no price: they take statements of their own, which no prediction needs.

    Raises:
        NoSuchAdapter: there is none, or it is not the caller's to use; nothing tells which.
    """
    return _publication(_resolved(connection, caller, reference, adapter_id))


def _resolved(
    connection: sa.Connection, caller: Caller, reference: str, adapter_id: int | None = None
) -> Any:
    wanted = Reference.parse(reference)
    owner = caller.owner if wanted.owner is None else wanted.owner
    conditions = _named(owner, wanted) if adapter_id is None else [ADAPTERS.c.id == adapter_id]
    if owner != caller.owner:
        conditions.append(usable_by(caller))
    row = _newest(connection, *conditions)
    if row is None:
        raise NoSuchAdapter(reference)
    return row


def find_digest(
    connection: sa.Connection, owner: str, name: str, digest: str
) -> Publication | None:
    """The newest living version under `name` whose content has this digest, as `resolve` has it."""
    named = (ADAPTERS.c.owner == owner, ADAPTERS.c.name == name, ADAPTERS.c.digest == digest)
    row = _newest(connection, *named)
    return None if row is None else _publication(row)


def _newest(connection: sa.Connection, *conditions: sa.ColumnElement[bool]) -> Any:
    query = _WITH_SETTINGS.where(*conditions, _LIVING).order_by(None)
    return connection.execute(query.order_by(ADAPTERS.c.version.desc()).limit(1)).one_or_none()


@dataclass(frozen=True)
class Page:
    """A part of a list: some adapters, each with all its living versions."""

    cards: list[AdapterCard]
    next_after: tuple[str, str] | None  # owner and name, where the list continues; None at its end


def list_page(
    connection: sa.Connection,
    caller: Caller,
    *,
    after: tuple[str, str] | None = None,
    limit: int = MOST_A_PAGE,
) -> Page:
    """Up to `limit` adapters that the caller may use, after that owner's of that name.

    Its owner's own come first.
    """
    names = usable_names(connection, caller, after=after, limit=limit + 1)
    if not names:
        return Page([], None)
    rows = connection.execute(
        sa.select(*_CARD)
        .select_from(_of_names(ADAPTERS, names[:limit]).join(ADAPTER_SETTINGS, _SETTINGS_OF_IT))
        .where(_LIVING)
        .order_by(sa.case((ADAPTERS.c.owner == caller.owner, 0), else_=1), *_IN_ORDER)
    ).all()
    cards = [publication.card for publication in _publications(connection, rows)]
    return Page(cards, names[limit - 1] if len(names) > limit else None)


def list_cards(
    connection: sa.Connection, caller: Caller, *, after: tuple[str, str] | None = None
) -> list[AdapterCard]:
    """All living versions that the caller may use, its owner's own first."""
    page = list_page(connection, caller, after=after)
    cards = page.cards
    while page.next_after is not None:
        page = list_page(connection, caller, after=page.next_after)
        cards += page.cards
    return cards


def versions(connection: sa.Connection, owner: str, name: str) -> list[AdapterCard]:
    """All versions under an owner's name, the retired ones too.

    Raises:
        NoSuchAdapter: there is none.
    """
    rows = connection.execute(
        _WITH_SETTINGS.where(ADAPTERS.c.owner == owner, ADAPTERS.c.name == name)
    ).all()
    if not rows:
        raise NoSuchAdapter(name)
    return [publication.card for publication in _publications(connection, rows)]


def add(
    connection: sa.Connection,
    owner: str,
    name: str,
    *,
    adapter: Adapter,
    digest: str,
    body: bytes,
    text_features: NDArray[np.float32],
    texts_in: str = "float32",
    aliases: Sequence[str] = (),
) -> AdapterCard:
    """Publishes the next version under `name`; numbers of retired versions are not given again.

    `aliases` mean it from then on.
    """
    if connection.dialect.name == "postgresql":  # SQLite has one writer at a time anyway
        connection.execute(
            sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(owner, 1)))
        )
    insert_missing(connection, ADAPTER_SETTINGS, owner=owner, name=name, public=False)
    last = connection.execute(
        sa.select(sa.func.max(ADAPTERS.c.version)).where(
            ADAPTERS.c.owner == owner, ADAPTERS.c.name == name
        )
    ).scalar()
    version = (last or 0) + 1
    config = adapter.config
    adapter_id = connection.execute(
        sa.insert(ADAPTERS)
        .values(
            owner=owner,
            name=name,
            version=version,
            digest=digest,
            model=config.model,
            revision=bound_revision(config.revision, texts_in),
            access_mode=config.access_mode,
            classes=json.dumps(config.classes),
            prompts=config.prompts,
            published_at=now(),
            body=body,
            text_features=text_features.astype("<f4").tobytes(),
            provenance=config.provenance.model_dump_json(),
            visual=config.visual is not None,
        )
        .returning(ADAPTERS.c.id)
    ).scalar_one()
    nothing = dict.fromkeys(UNITS, 0)
    connection.execute(sa.insert(ADAPTER_TOTALS).values(adapter_id=adapter_id, calls=0, **nothing))
    move_aliases(connection, owner, name, dict.fromkeys(aliases, version))
    row = connection.execute(_WITH_SETTINGS.where(ADAPTERS.c.id == adapter_id)).one()
    return _publications(connection, [row])[0].card


def retire(connection: sa.Connection, owner: str, reference: str) -> None:
    """Takes one version, or without `@` all versions, of the owner's adapter out of service.

    Aliases stay: one whose version is retired means nothing until it is moved.

    Raises:
        NoSuchAdapter: there is none that lives.
    """
    _set_retired(connection, owner, reference, _LIVING, now())


def restore(connection: sa.Connection, owner: str, reference: str) -> None:
    """Takes what was retired into service again; what is in service stays there.

    Raises:
        NoSuchAdapter: there is none, retired or not.
    """
    _set_retired(connection, owner, reference, sa.true(), None)


def _set_retired(
    connection: sa.Connection,
    owner: str,
    reference: str,
    which: sa.ColumnElement[bool],
    at: str | None,
) -> None:
    wanted = Reference.parse(reference)
    if wanted.owner not in (None, owner):
        raise NoSuchAdapter(reference)
    changed = connection.execute(
        sa.update(ADAPTERS).where(*_named(owner, wanted), which).values(retired_at=at)
    )
    if changed.rowcount == 0:
        raise NoSuchAdapter(reference)


def _named(owner: str, wanted: Reference) -> list[sa.ColumnElement[bool]]:
    """Conditions on the versions that a reference may mean: one, or all where it names none."""
    conditions = [ADAPTERS.c.owner == owner, ADAPTERS.c.name == wanted.name]
    if wanted.version is not None:
        conditions.append(ADAPTERS.c.version == wanted.version)
    if wanted.alias is not None:
        meant = sa.select(ADAPTER_ALIASES.c.version).where(
            ADAPTER_ALIASES.c.owner == owner,
            ADAPTER_ALIASES.c.name == wanted.name,
            ADAPTER_ALIASES.c.alias == wanted.alias,
        )
        conditions.append(ADAPTERS.c.version.in_(meant))
    return conditions


def _of_names(table: sa.Table, names: Sequence[tuple[str, str]]) -> sa.Join:
    """The rows of a table that have one of these pairs of owner and name.

    Not `IN`, for which SQLite reads the whole table, and PostgreSQL where the list is long.
    """
    columns = (sa.column("owner", sa.Text), sa.column("name", sa.Text))
    wanted = sa.values(*columns, name="wanted").data(list(names)).cte("wanted")
    return wanted.join(
        table, sa.and_(table.c.owner == wanted.c.owner, table.c.name == wanted.c.name)
    )


def _publications(connection: sa.Connection, rows: Sequence[Any]) -> list[Publication]:
    """The rows of `_WITH_SETTINGS` with their aliases and prices."""
    prices = list_prices(connection)
    names = list({(row.owner, row.name) for row in rows})
    newest = {
        (row.owner, row.name): row.version
        for row in connection.execute(
            sa.select(
                ADAPTERS.c.owner, ADAPTERS.c.name, sa.func.max(ADAPTERS.c.version).label("version")
            )
            .select_from(_of_names(ADAPTERS, names))
            .where(_LIVING)
            .group_by(ADAPTERS.c.owner, ADAPTERS.c.name)
        )
    }
    aliases: dict[tuple[str, str, int], list[str]] = {}
    for row in connection.execute(
        sa.select(ADAPTER_ALIASES)
        .select_from(_of_names(ADAPTER_ALIASES, names))
        .order_by(ADAPTER_ALIASES.c.alias)
    ):
        aliases.setdefault((row.owner, row.name, row.version), []).append(row.alias)
    return [
        _publication(
            row,
            [
                *([LATEST] if newest.get((row.owner, row.name)) == row.version else []),
                *aliases.get((row.owner, row.name, row.version), []),
            ],
            prices,
        )
        for row in rows
    ]


def _publication(
    row: Any, aliases: Sequence[str] = (), prices: Prices | None = None
) -> Publication:
    revision, texts_in = precision_of(row.revision)
    one_image = prediction_units(row.prompts, 1, sent=1)
    micros = (prices or {}).get(row.model, {})
    card = AdapterCard(
        owner=row.owner,
        name=row.name,
        version=row.version,
        aliases=list(aliases),
        digest=row.digest,
        model=row.model,
        revision=revision,
        access_mode=row.access_mode,
        classes=json.loads(row.classes),
        prompts=row.prompts,
        visual=row.visual,
        image_units=one_image,
        image_cost_micros=sum(one_image[unit] * price for unit, price in micros.items()),
        published_at=row.published_at,
        retired_at=row.retired_at,
        pays="caller" if row.payer_key_id is None else "publisher",
        abstain_below=row.abstain_below,
        provenance=Provenance.model_validate_json(row.provenance),
    )
    return Publication(row.id, card, row.payer_key_id, texts_in)


@dataclass(frozen=True)
class ServableAdapter:
    """What a prediction needs: the head, and the prompts' text features [P, C + M, width]."""

    adapter: Adapter
    text_features: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """About how much memory it takes."""
        head = sum(tensor.nbytes for tensor in self.adapter.head.tensors().values())
        visual = 0 if self.adapter.visual is None else self.adapter.visual.nbytes
        return head + visual + self.adapter.codes.nbytes + self.text_features.nbytes


def read_content(connection: sa.Connection, adapter_id: int) -> tuple[bytes, bytes]:
    """The adapter's body and its text features, both as they were stored."""
    row = connection.execute(
        sa.select(ADAPTERS.c.body, ADAPTERS.c.text_features).where(ADAPTERS.c.id == adapter_id)
    ).one()
    return row.body, row.text_features


def servable(body: bytes, text_features: bytes) -> ServableAdapter:
    """Parses what `read_content` read."""
    adapter = Adapter.from_bytes(body)
    shape = (adapter.config.prompts, len(adapter.config.scored), -1)
    flat = np.frombuffer(bytearray(text_features), np.float32)  # writable, as torch wants it
    return ServableAdapter(adapter, flat.reshape(shape))
