"""Each earlier version's database, with rows in it, becomes one of this version."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.engine import make_url

from craft_server import migrations
from craft_server.adapters import registry, sharing, tables
from craft_server.clock import now_ms
from craft_server.database import Database
from craft_server.ledger import leases
from craft_server.ledger.account import usage
from craft_server.ledger.budgets import list_budgets
from craft_server.ledger.charges import BudgetExhausted, Work, reserve, settle
from craft_server.ledger.keys import Caller, Rates, authenticate, create_key, list_keys
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import Unrefined
from craft_shared.units import UNITS, Units

SECRETS = {1: "craft_aaaaaaaa_" + "A" * 43, 7: "craft_bbbbbbbb_" + "B" * 43}
SAID = "2026-03-04T05:06:07.089Z"
SAID_MS = 1_772_600_767_089


def at_revision(bare_url: str, revision: str) -> sa.Engine:
    """An engine on the store, whose schema is that of a revision."""
    url = make_url(bare_url)
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    engine = sa.create_engine(url)
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    return engine


def insert(engine: sa.Engine, table: str, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(sa.table(table, *map(sa.column, values))).values(**values))


def insert_charge(engine: sa.Engine, key_id: int, state: str, **columns: Any) -> None:
    insert(
        engine,
        "charges",
        key_id=key_id,
        call="predictions",
        model="tiny",
        state=state,
        **{"at": SAID, **dict.fromkeys(UNITS, 0), **columns},
    )


@pytest.fixture
def migrated(bare_url: str, tmp_path: Path) -> Any:
    """A database of revision 0001 with two keys, opened by this version."""
    engine = at_revision(bare_url, "0001")
    for key_id, secret in SECRETS.items():
        _, prefix, rest = secret.split("_", 2)
        insert(
            engine,
            "api_keys",
            id=key_id,
            owner=f"owner {key_id}",
            name="laptop",
            prefix=prefix,
            secret_hash=hashlib.sha256(rest.encode()).hexdigest(),
            created_at=SAID,
            revoked_at=SAID if key_id == 7 else None,
        )
    for unit, limit, spent, reserved in (("queries", 10, 5, 3), ("texts", 99, 40, 0)):
        insert(engine, "budgets", key_id=1, unit=unit, limit=limit, spent=spent, reserved=reserved)
    insert_charge(engine, 1, "settled", queries=2, texts=40)
    insert_charge(engine, 1, "refunded", queries=9)
    insert_charge(engine, 1, "settled", queries=3, images=4)
    insert_charge(engine, 1, "reserved", queries=3)
    insert_charge(engine, 7, "settled", queries=8)
    engine.dispose()
    database = Database.open(bare_url, tmp_path)
    yield database
    database.close()


def test_keys_of_0001_still_authenticate_unless_revoked(migrated: Database) -> None:
    with migrated.reading() as connection:
        caller = authenticate(connection, SECRETS[1], now_ms())
        assert authenticate(connection, SECRETS[7], now_ms()) is None
        first, second = list_keys(connection)
    assert caller is not None
    assert (caller.key_id, caller.owner) == (1, "owner 1")
    assert caller.scopes == {"predict", "publish"}
    assert (first.created_at, first.revoked_at) == (SAID_MS, None)
    assert second.revoked_at == SAID_MS


def test_budgets_totals_and_usage_of_0001_are_what_they_were(migrated: Database) -> None:
    with migrated.reading() as connection:
        budgets = list_budgets(connection, 1, None, now_ms())
        first = usage(connection, 1, after=0, limit=10)
        second = usage(connection, 7, after=0, limit=10)
    assert [(b.unit, b.window, b.limit, b.spent) for b in budgets] == [
        ("queries", "lifetime", 10, 5),
        ("texts", "lifetime", 99, 40),
    ]
    assert first.total == Units(queries=5, texts=40, images=4)
    assert [(line.id, line.at, line.units) for line in first.charges] == [
        (1, SAID, Units(queries=2, texts=40)),
        (3, SAID, Units(queries=3, images=4)),
    ]
    assert [(line.id, line.units) for line in second.charges] == [(1, Units(queries=8))]
    assert second.total == Units(queries=8)


def test_open_reservations_of_0001_are_given_back(migrated: Database) -> None:
    with migrated.reading() as connection:
        budgets = list_budgets(connection, 1, None, now_ms())
        rows = connection.execute(sa.text("SELECT id, state FROM charges ORDER BY id")).all()
    assert [budget.reserved for budget in budgets] == [0, 0]
    assert [tuple(row) for row in rows] == [
        (1, "settled"),
        (2, "refunded"),
        (3, "settled"),
        (4, "refunded"),
        (5, "settled"),
    ]


def test_a_database_of_0001_goes_on_where_it_stopped(migrated: Database) -> None:
    at = now_ms()
    with migrated.writing() as connection:
        leases.renew(connection, "a server", at + 60_000)
        caller = authenticate(connection, SECRETS[1], at)
        assert caller is not None
        work = Work("predictions", "tiny", "r1", Units(queries=5))
        reserved = reserve(connection, caller, work, holder="a server", at=at)
        settle(connection, reserved, at)
        assert reserved.charge_id == 6
    with migrated.writing() as connection:
        told = usage(connection, 1, after=3, limit=10)
        assert told.total.queries == 10
        assert [line.id for line in told.charges] == [5]
        other = authenticate(connection, create_key(connection, owner="new", at=at), at)
        assert other is not None
        assert other.key_id == 8
    with pytest.raises(BudgetExhausted), migrated.writing() as connection:
        reserve(
            connection,
            caller,
            Work("predictions", "tiny", "r1", Units(queries=1)),
            holder="a server",
            at=at,
        )


def test_an_empty_database_of_0001_is_migrated(bare_url: str, tmp_path: Path) -> None:
    at_revision(bare_url, "0001").dispose()
    database = Database.open(bare_url, tmp_path)
    with database.writing() as connection:
        key = create_key(connection, owner="new", at=0)
        caller = authenticate(connection, key, 1)
    database.close()
    assert caller is not None
    assert caller.key_id == 1


def test_adapters_of_0002_stay_private_and_are_counted(bare_url: str, tmp_path: Path) -> None:
    engine = at_revision(bare_url, "0002")
    for version in (1, 2):
        insert(
            engine,
            "adapters",
            owner="ann",
            name="pets",
            version=version,
            digest="0" * 64,
            model="tiny",
            revision="r1",
            access_mode="strict",
            classes='["cat"]',
            prompts=1,
            published_at=SAID,
            body=b"",
            text_features=b"",
        )
    engine.dispose()
    database = Database.open(bare_url, tmp_path)
    with database.writing() as connection:
        callers = []
        for owner in ("ann", "bob"):
            secret = create_key(connection, owner=owner, at=now_ms())
            callers.append(authenticate(connection, secret, now_ms()))
        ann, bob = callers
        assert ann is not None
        assert bob is not None
        found = registry.find(connection, ann, "pets")
        assert (found.card.version, found.card.aliases, found.payer_key_id) == (2, ["latest"], None)
        sharing.count_use(connection, found.id, Units(queries=1))
        uses = sharing.usage(connection, "ann", "pets").versions
        assert [(use.version, use.calls) for use in uses] == [(1, 0), (2, 1)]
        with pytest.raises(tables.NoSuchAdapter):
            registry.find(connection, bob, "ann/pets")
    database.close()


def test_lines_of_0005_are_numbered_key_by_key(bare_url: str, tmp_path: Path) -> None:
    engine = at_revision(bare_url, "0005")
    columns = {
        "holder": "",
        "holds": "[]",
        "revision": "r1",
        "cost_micros": 0,
        "closed_at": SAID_MS,
    }
    for key_id in (1, 7, 9):
        insert(
            engine,
            "api_keys",
            id=key_id,
            owner=f"owner {key_id}",
            name="",
            scopes="predict",
            created_at=SAID_MS,
        )
        insert(engine, "totals", key_id=key_id, **dict.fromkeys((*UNITS, "cost_micros"), 0))
    for key_id, state in ((7, "settled"), (1, "settled"), (7, "refunded"), (7, "settled")):
        insert_charge(engine, key_id, state, at=SAID_MS, **columns)
    engine.dispose()
    database = Database.open(bare_url, tmp_path)
    with database.writing() as connection:
        for key_id in (7, 9):
            caller = Caller(key_id, "", "", None, frozenset(), Rates())
            work = Work("predictions", "tiny", "r1", Units(queries=1))
            reserve(connection, caller, work, holder="a server", at=SAID_MS)
        lines = {
            key_id: [line.id for line in usage(connection, key_id, after=0, limit=9).charges]
            for key_id in (1, 7, 9)
        }
    database.close()
    assert lines == {1: [1], 7: [1, 3, 4], 9: [1]}


def test_adapters_of_0009_with_a_visual_prompt_say_so(bare_url: str, tmp_path: Path) -> None:
    engine = at_revision(bare_url, "0009")
    config = AdapterConfig(
        model="tiny", revision="r1", classes=["cat"], templates=["a {}."], head="none"
    )
    none = np.zeros((0, 0), np.float32)
    prompted = config.model_copy(update={"visual": 2})
    bodies = {
        "plain": Adapter(config, none, Unrefined()).to_bytes(),
        "prompted": Adapter(prompted, none, Unrefined(), np.ones((2, 2, 3), np.float32)).to_bytes(),
        "damaged": b"",
    }
    for number, (name, body) in enumerate(bodies.items(), start=1):
        insert(engine, "adapter_settings", owner="ann", name=name, public=False)
        insert(
            engine,
            "adapters",
            id=number,
            owner="ann",
            name=name,
            version=1,
            digest="d",
            model="tiny",
            revision="r1",
            access_mode="strict",
            classes='["cat"]',
            prompts=1,
            published_at=SAID,
            body=body,
            text_features=b"",
        )
    engine.dispose()
    database = Database.open(bare_url, tmp_path)
    with database.writing() as connection:
        secret = create_key(connection, owner="ann", at=now_ms())
        ann = authenticate(connection, secret, now_ms())
        assert ann is not None
        cards = {card.name: card.visual for card in registry.list_cards(connection, ann)}
    database.close()
    assert cards == {"plain": False, "prompted": True, "damaged": False}
