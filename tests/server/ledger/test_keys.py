from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from craft_server.database import Database
from craft_server.ledger import calls, keys, leases
from craft_server.ledger.account import usage
from craft_server.ledger.budgets import set_budget
from craft_server.ledger.charges import (
    BudgetExhausted,
    Work,
    reserve,
    settle,
)
from craft_server.ledger.tables import API_KEYS, KEY_SECRETS
from craft_shared.units import Units
from craft_shared.wire import KeyCard

NOW = 1_800_000_000_000
# For statements that read the same on both stores: PostgreSQL's takes long to set up.
ON_SQLITE = pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)


def make(store: Database, owner: str = "owner") -> str:
    with store.writing() as connection:
        return keys.create_key(connection, owner=owner, name="a name", at=NOW)


def who(store: Database, key: str, at: int = NOW) -> keys.Caller | None:
    with store.reading() as connection:
        return keys.authenticate(connection, key, at)


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
        (secret_row,) = connection.execute(sa.select(KEY_SECRETS)).all()
    assert len(secret) == 43
    assert secret_row.prefix == prefix
    assert not any(secret in str(value) for value in (*row, *secret_row))


def test_a_wrong_secret_is_refused(store: Database) -> None:
    key, other = make(store), make(store)
    mixed = f"craft_{key.split('_')[1]}_{other.split('_', 2)[2]}"
    assert who(store, mixed) is None


def test_a_secret_is_found_wherever_it_stands() -> None:
    assert keys.shows_secret(b'{"key": "craft_abcdefgh_' + b"x" * 43 + b'"}')
    assert not keys.shows_secret(b'{"key": "craft_abcdefgh_' + b"x" * 42 + b'"}')


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
        first = keys.revoke_key(connection, prefix, NOW)
    assert who(store, key) is None
    assert who(store, other) is not None
    with store.writing() as connection:
        assert keys.revoke_key(connection, prefix, NOW + 1) == first
        assert [entry.revoked_at for entry in keys.list_keys(connection)] == [
            first.revoked_at,
            None,
        ]


def test_an_unknown_prefix_is_told(store: Database) -> None:
    with store.writing() as connection, pytest.raises(keys.UnknownKey):
        keys.revoke_key(connection, "abcdefgh", NOW)


def rotate(store: Database, key: str, overlap_ms: int, at: int = NOW) -> str:
    with store.writing() as connection:
        return keys.rotate_key(connection, keys.prefix_of(key), overlap_ms=overlap_ms, at=at)


def test_both_secrets_work_during_the_overlap_and_the_old_one_ends_after(store: Database) -> None:
    old = make(store)
    new = rotate(store, old, 1000)
    first, second = who(store, old, NOW + 999), who(store, new, NOW + 999)
    assert first is not None
    assert second is not None
    assert first.key_id == second.key_id
    assert (first.prefix, second.prefix) == (keys.prefix_of(old), keys.prefix_of(new))
    assert who(store, old, NOW + 1000) is None
    assert who(store, new, NOW + 10**12) is not None


def test_rotating_again_does_not_prolong_an_old_secret(store: Database) -> None:
    old = make(store)
    middle = rotate(store, old, 995, NOW + 5)
    newest = rotate(store, middle, 5000, NOW + 10)
    alive = [who(store, key, NOW + 1000) is not None for key in (old, middle, newest)]
    assert alive == [False, True, True]
    alive = [who(store, key, NOW + 5010) is not None for key in (old, middle, newest)]
    assert alive == [False, False, True]
    with store.reading() as connection:
        (entry,) = keys.list_keys(connection)
    assert entry.prefixes == tuple(keys.prefix_of(key) for key in (newest, middle, old))


@ON_SQLITE
def test_rotating_a_key_ends_no_other_keys_secret(store: Database) -> None:
    key, other = make(store), make(store)
    rotate(store, key, 0)
    assert who(store, key) is None
    assert who(store, other) is not None


@ON_SQLITE
def test_a_key_is_admitted_with_the_record_of_its_own_call(store: Database) -> None:
    key, other = make(store), make(store)
    caller = who(store, key)
    assert caller is not None
    with store.writing() as connection:
        leases.renew(connection, "a server", NOW + 1000)
        for name in ("first", "second"):
            attempt = calls.Attempt(name, f"of {name}", repeatable=True)
            calls.begin(
                connection, caller.key_id, attempt, holder="a server", charge_id=None, at=NOW
            )
    with store.reading() as connection:
        for name in ("first", "second"):
            admitted, record = keys.admit(connection, key, name, NOW)
            assert admitted == caller
            assert record is not None
            assert record.fingerprint == f"of {name}"
        assert keys.admit(connection, key, "third", NOW) == (caller, None)
        assert keys.admit(connection, other, "first", NOW)[1] is None


@ON_SQLITE
def test_a_key_pays_and_acts_for_others_while_it_lives(store: Database) -> None:
    with store.writing() as connection:
        secrets = [
            keys.create_key(connection, owner=owner, expires_at=expires_at, at=NOW)
            for owner, expires_at in (("ends", NOW + 1000), ("revoked", None), ("lives", None))
        ]
        keys.revoke_key(connection, keys.prefix_of(secrets[1]), NOW)
        keys.rotate_key(connection, keys.prefix_of(secrets[2]), overlap_ms=10**9, at=NOW + 1)
        entries = keys.list_keys(connection)
    paid = [], []
    for found, at in zip(paid, (NOW + 999, NOW + 1000), strict=True):
        with store.reading() as connection:
            for entry in entries:
                payer = keys.payer(connection, entry.key_id, at)
                living = keys.living_caller(connection, entry.prefixes[0], at)
                assert payer == living
                found.append(payer and payer.owner)
    assert paid == (["ends", None, "lives"], [None, None, "lives"])


@ON_SQLITE
def test_a_keys_policies_are_its_own(store: Database) -> None:
    key, other = make(store), make(store)
    caller = who(store, key)
    assert caller is not None
    with store.writing() as connection:
        keys.set_policies(connection, caller.key_id, "[]")
    policies = [entry.policies for entry in (who(store, key), who(store, other)) if entry]
    assert policies == ["[]", None]


def test_a_rotated_key_keeps_its_budgets_and_totals(store: Database) -> None:
    old = make(store)
    caller = who(store, old)
    assert caller is not None
    with store.writing() as connection:
        set_budget(
            connection, key_id=caller.key_id, unit="queries", window="lifetime", limit=2, at=NOW
        )
        leases.renew(connection, "a server", NOW + 1000)
        work = Work("predictions", "tiny", "r1", Units(queries=2))
        settle(connection, reserve(connection, caller, work, holder="a server", at=NOW), NOW)
    rotated = who(store, rotate(store, old, 0))
    assert rotated is not None
    with store.writing() as connection:
        assert usage(connection, rotated.key_id, after=0, limit=1).total == Units(queries=2)
        with pytest.raises(BudgetExhausted):
            reserve(connection, rotated, work, holder="a server", at=NOW)


def test_revocation_ends_all_secrets_at_once_and_for_good(store: Database) -> None:
    old = make(store)
    new = rotate(store, old, 1000)
    with store.writing() as connection:
        keys.revoke_key(connection, keys.prefix_of(old), NOW + 1)
    assert (who(store, old, NOW + 1), who(store, new, NOW + 1)) == (None, None)
    with pytest.raises(keys.RevokedKey):
        rotate(store, new, 1000)
    with pytest.raises(keys.UnknownKey):
        rotate(store, "craft_abcdefgh_", 1000)


def test_an_expired_key_is_refused_whatever_its_secrets(store: Database) -> None:
    with store.writing() as connection:
        key = keys.create_key(connection, owner="owner", expires_at=NOW + 1000, at=NOW)
    rotated = rotate(store, key, 10**9)
    for secret in (key, rotated):
        assert who(store, secret, NOW + 999) is not None
        assert who(store, secret, NOW + 1000) is None


def test_a_key_has_the_scopes_rates_and_team_that_it_was_made_with(store: Database) -> None:
    rates = keys.Rates(60, 1000, 4)
    with store.writing() as connection:
        key = keys.create_key(
            connection, owner="owner", team="lab", scopes=["admin", "predict"], rates=rates, at=NOW
        )
        plain = keys.create_key(connection, owner="owner", team="lab", at=NOW)
    caller, other = who(store, key), who(store, plain)
    assert caller is not None
    assert other is not None
    assert (caller.scopes, caller.rates) == ({"predict", "admin"}, rates)
    assert (other.scopes, other.rates) == ({"predict", "publish"}, keys.Rates())
    assert caller.team_id == other.team_id is not None
    with store.reading() as connection:
        assert keys.list_keys(connection)[0].scopes == ("predict", "admin")
        assert keys.find_team(connection, "lab") == caller.team_id
        with pytest.raises(keys.UnknownTeam):
            keys.find_team(connection, "Lab")


@ON_SQLITE
def test_a_card_shows_a_key_as_it_is(store: Database) -> None:
    with store.writing() as connection:
        rates = keys.Rates(60, 1000, 4)
        full = keys.create_key(
            connection,
            owner="me",
            name="mine",
            team="lab",
            scopes=["admin"],
            rates=rates,
            expires_at=NOW + 1000,
            at=NOW,
        )
        bare = keys.create_key(connection, owner="you", at=NOW)
        keys.revoke_key(connection, keys.prefix_of(full), NOW + 2000)
        cards = [keys.as_card(entry) for entry in keys.list_keys(connection)]
    first, second = keys.prefix_of(full), keys.prefix_of(bare)
    at = "2027-01-15T08:00:0{}.000Z".format
    assert cards == [
        KeyCard(
            id=1,
            prefix=first,
            prefixes=[first],
            owner="me",
            name="mine",
            team="lab",
            scopes=["admin"],
            requests_per_minute=60,
            predictions_per_minute=1000,
            concurrency=4,
            created_at=at(0),
            expires_at=at(1),
            revoked_at=at(2),
        ),
        KeyCard(
            id=2,
            prefix=second,
            prefixes=[second],
            owner="you",
            name="",
            team=None,
            scopes=["predict", "publish"],
            requests_per_minute=None,
            predictions_per_minute=None,
            concurrency=None,
            created_at=at(0),
            expires_at=None,
            revoked_at=None,
        ),
    ]


def test_keys_of_a_new_team_made_at_once_share_it(store: Database) -> None:
    def make_one(_number: int) -> str:
        with store.writing() as connection:
            return keys.create_key(connection, owner="owner", team="lab", at=NOW)

    with ThreadPoolExecutor(6) as threads:
        made = list(threads.map(make_one, range(12)))
    callers = [who(store, key) for key in made]
    assert len({caller.team_id for caller in callers if caller}) == 1
