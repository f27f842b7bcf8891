from __future__ import annotations

import pytest
import sqlalchemy as sa

from craft_server.database import Database
from craft_server.ledger import keys
from craft_server.ledger.tables import API_KEYS


def make(store: Database, owner: str = "owner") -> str:
    with store.writing() as connection:
        return keys.create_key(connection, owner=owner, name="a name", limits={})


def who(store: Database, key: str) -> keys.Caller | None:
    with store.reading() as connection:
        return keys.authenticate(connection, key)


def test_a_key_names_its_owner(store: Database) -> None:
    key, other = make(store, "first"), make(store, "second")
    assert [caller.owner for caller in (who(store, key), who(store, other)) if caller] == [
        "first",
        "second",
    ]


def test_the_database_does_not_hold_the_secret(store: Database) -> None:
    key = make(store)
    _, prefix, secret = key.split("_", 2)
    with store.reading() as connection:
        (row,) = connection.execute(sa.select(API_KEYS)).all()
    assert len(secret) == 43
    assert row.prefix == prefix
    assert not any(secret in str(value) for value in row)


def test_a_wrong_secret_is_refused(store: Database) -> None:
    key, other = make(store), make(store)
    mixed = f"craft_{key.split('_')[1]}_{other.split('_', 2)[2]}"
    assert who(store, mixed) is None


@pytest.mark.parametrize(
    "key", ["", "craft_", "craft_abcdefgh_", "craft_abcdefgh_" + "x" * 43, "x" * 10_000, "\0"]
)
def test_what_is_no_key_is_refused(store: Database, key: str) -> None:
    make(store)
    assert who(store, key) is None


def test_a_secret_is_compared_in_constant_time_even_without_a_key(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []

    def compare(shown: str, expected: str) -> bool:
        compared.append((len(shown), len(expected)))
        return shown == expected

    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    assert who(store, make(store)) is not None
    assert who(store, "craft_abcdefgh_" + "x" * 43) is None
    assert compared == [(64, 64), (64, 64)]


def test_a_revoked_key_is_refused_and_stays_listed(store: Database) -> None:
    key, other = make(store), make(store)
    prefix = key.split("_")[1]
    with store.writing() as connection:
        first = keys.revoke_key(connection, prefix)
    assert who(store, key) is None
    assert who(store, other) is not None
    with store.writing() as connection:
        assert keys.revoke_key(connection, prefix) == first
        assert [entry.revoked_at for entry in keys.list_keys(connection)] == [
            first.revoked_at,
            None,
        ]


def test_an_unknown_prefix_is_told(store: Database) -> None:
    with store.writing() as connection, pytest.raises(keys.UnknownKey):
        keys.revoke_key(connection, "abcdefgh")
