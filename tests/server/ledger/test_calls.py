"""A call is answered again as it was, byte for byte, for as long as its answer is kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from craft_server.database import Database
from craft_server.ledger import calls
from craft_server.ledger.calls import Attempt, KeyReused, Made, StillRunning, StoredAnswer
from craft_server.ledger.charges import Work, reserve, settle
from craft_server.ledger.keys import Caller, authenticate, create_key
from craft_server.ledger.tables import STORED_BYTES
from craft_shared.units import Units

NOW = 1_800_000_000_000
# For statements that read the same on both stores: PostgreSQL's takes long to set up.
ON_SQLITE = pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
EVERY_BYTE = bytes(range(256)) * 3
ANSWER = StoredAnswer(201, "application/x-safetensors", EVERY_BYTE)


def make_caller(store: Database) -> Caller:
    with store.writing() as connection:
        key = create_key(connection, owner="owner", at=NOW)
        found = authenticate(connection, key, NOW)
    assert found is not None
    return found


@pytest.fixture
def caller(store: Database) -> Caller:
    return make_caller(store)


def begin(
    store: Database, caller: Caller, key: str, *, repeatable: bool = True, at: int = NOW
) -> int:
    with store.writing() as connection:
        return calls.begin(
            connection,
            caller.key_id,
            Attempt(key, "same", repeatable),
            holder="a server",
            charge_id=None,
            at=at,
        )


def answered(
    store: Database,
    caller: Caller,
    key: str,
    answer: StoredAnswer = ANSWER,
    *,
    repeatable: bool = True,
    at: int = NOW,
) -> None:
    call_id = begin(store, caller, key, repeatable=repeatable, at=at)
    with store.writing() as connection:
        calls.finish(connection, call_id, answer)


def look_up(store: Database, caller: Caller, key: str, fingerprint: str = "same") -> Made | None:
    with store.reading() as connection:
        return calls.look_up(connection, caller.key_id, key, fingerprint)


def told(store: Database, caller: Caller, key: str) -> tuple[StoredAnswer | None, int | None]:
    """What a call was answered and charged."""
    made = look_up(store, caller, key)
    assert made is not None
    return made.answer, made.record.charge_id


def kept(store: Database, caller: Caller, keys: str) -> str:
    """The keys whose answers' bytes can be given again."""
    found = [(key, look_up(store, caller, key)) for key in keys]
    return "".join(key for key, made in found if made is not None and made.answer is not None)


def known(store: Database, caller: Caller, keys: str) -> str:
    return "".join(key for key in keys if look_up(store, caller, key) is not None)


def evict(store: Database, most_bytes: int, before: int = 0) -> bool:
    with store.writing() as connection:
        assert calls.missing_bytes(connection) == 0
        return calls.evict(connection, most_bytes=most_bytes, before=before)


def test_an_answer_is_given_again_byte_for_byte(store: Database, caller: Caller) -> None:
    answered(store, caller, "k")
    answered(store, caller, "empty", StoredAnswer(204, "", b""))
    assert told(store, caller, "k") == (ANSWER, None)
    assert told(store, caller, "empty") == (StoredAnswer(204, "", b""), None)
    assert look_up(store, caller, "other") is None
    # Keys belong to the caller: another one's are not seen.
    assert look_up(store, make_caller(store), "k") is None


def test_a_call_knows_what_it_was_charged(store: Database, caller: Caller) -> None:
    with store.writing() as connection:
        work = Work("predictions", "tiny", "r1", Units(queries=1))
        reserved = reserve(connection, caller, work, holder="a server", at=NOW)
        call_id = calls.begin(
            connection,
            caller.key_id,
            Attempt("k", "same", repeatable=True),
            holder="a server",
            charge_id=reserved.charge_id,
            at=NOW,
        )
        settle(connection, reserved, NOW)
        calls.finish(connection, call_id, ANSWER)
    assert told(store, caller, "k") == (ANSWER, reserved.charge_id)
    evict(store, 0)
    assert told(store, caller, "k") == (None, reserved.charge_id)


def test_another_call_under_the_same_key_is_refused(store: Database, caller: Caller) -> None:
    begin(store, caller, "running")
    answered(store, caller, "done")
    for key in ("running", "done"):
        with pytest.raises(KeyReused):
            look_up(store, caller, key, "other")


def test_a_running_call_is_not_made_twice(store: Database, caller: Caller) -> None:
    call_id = begin(store, caller, "k")
    with pytest.raises(StillRunning):
        look_up(store, caller, "k")
    with pytest.raises(StillRunning):
        begin(store, caller, "k")
    other = make_caller(store)
    begin(store, other, "k")
    with store.writing() as connection:
        calls.finish(connection, call_id, ANSWER)
    with pytest.raises(StillRunning):
        look_up(store, other, "k")
    with pytest.raises(StillRunning), store.writing() as connection:
        calls.finish(connection, call_id, StoredAnswer(200, "", b"another"))
    assert told(store, caller, "k") == (ANSWER, None)


def test_of_16_attempts_at_once_one_begins(store: Database, caller: Caller) -> None:
    def attempt(_number: int) -> bool:
        try:
            begin(store, caller, "k")
        except StillRunning:
            return False
        return True

    with ThreadPoolExecutor(16) as threads:
        assert sum(threads.map(attempt, range(16))) == 1


def test_a_call_that_failed_may_be_made_again(store: Database, caller: Caller) -> None:
    begin(store, caller, "running")
    call_id = begin(store, caller, "k")
    with store.writing() as connection:
        calls.abandon(connection, call_id)
    assert look_up(store, caller, "k") is None
    with pytest.raises(StillRunning):
        look_up(store, caller, "running")
    answered(store, caller, "k")
    with store.writing() as connection:
        calls.abandon(connection, call_id + 1)
    assert told(store, caller, "k") == (ANSWER, None)
    with pytest.raises(StillRunning), store.writing() as connection:
        calls.finish(connection, call_id, ANSWER)


def test_an_acknowledged_answers_bytes_go_and_the_record_stays(
    store: Database, caller: Caller
) -> None:
    other = make_caller(store)
    for each in (caller, other):
        answered(store, each, "p")
        answered(store, each, "q")
    answered(store, caller, "u", repeatable=False)
    begin(store, caller, "r")
    with store.writing() as connection:
        for key in ("p", "u", "r", "nothing"):
            calls.acknowledge(connection, caller.key_id, key)
    assert kept(store, caller, "pqu") == "qu"
    assert known(store, caller, "pqu") == "pqu"
    assert kept(store, other, "pq") == "pq"
    with pytest.raises(StillRunning):
        look_up(store, caller, "r")


def test_past_the_bound_the_oldest_bytes_go_first(store: Database, caller: Caller) -> None:
    answered(store, caller, "e", StoredAnswer(204, "", b""))  # takes no room
    # What changes something is never evicted for its bytes, nor counted among them.
    answered(store, caller, "t", StoredAnswer(201, "", b"x" * 1000), repeatable=False)
    for key in "abcd":
        answered(store, caller, key, StoredAnswer(200, "", b"x"))
    answered(store, caller, "u", StoredAnswer(201, "", b"x" * 1000), repeatable=False)
    answered(store, caller, "acknowledged")
    with store.writing() as connection:
        calls.acknowledge(connection, caller.key_id, "acknowledged")
    evict(store, 4)
    assert kept(store, caller, "etabcdu") == "etabcdu"
    evict(store, 3)
    assert kept(store, caller, "etabcdu") == "etbcdu"
    evict(store, 2)
    assert kept(store, caller, "etabcdu") == "etcdu"
    evict(store, 0)
    assert kept(store, caller, "etabcdu") == "etu"
    assert known(store, caller, "etabcdu") == "etabcdu"


def test_an_eviction_takes_short_steps(
    store: Database, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in "abcdef":
        answered(store, caller, key, StoredAnswer(200, "", b"xy"))
    for bound, first, second in (("_STEP_CALLS", "bcdef", "cdef"), ("_STEP_BYTES", "def", "ef")):
        with monkeypatch.context() as narrow:
            narrow.setattr(calls, bound, 1)
            most_bytes = 2 * len(second)
            assert evict(store, most_bytes)
            assert kept(store, caller, "abcdef") == first
            assert not evict(store, most_bytes)
            assert kept(store, caller, "abcdef") == second
    monkeypatch.setattr(calls, "_STEP_CALLS", 4)
    assert evict(store, 4, before=NOW + 1)
    assert len(known(store, caller, "abcdef")) == 2
    assert not evict(store, 4, before=NOW + 1)
    assert known(store, caller, "abcdef") == ""


@ON_SQLITE
def test_what_an_older_server_stored_is_counted_once(store: Database, caller: Caller) -> None:
    answered(store, caller, "a")
    with store.writing() as connection:
        connection.execute(sa.update(STORED_BYTES).values(bytes=3))
        missing = calls.missing_bytes(connection)
        calls.correct_sums(connection, missing)
        assert (missing, calls.missing_bytes(connection)) == (len(EVERY_BYTE) - 3 * calls.SHARDS, 0)


@ON_SQLITE
def test_bytes_that_went_are_not_counted_again(store: Database, caller: Caller) -> None:
    slow = begin(store, caller, "slow")
    answered(store, caller, "fast")
    evict(store, 0)
    with store.writing() as connection:
        calls.finish(connection, slow, StoredAnswer(200, "", b"x"))
    evict(store, 1)
    assert told(store, caller, "slow") == (StoredAnswer(200, "", b"x"), None)


def test_records_go_by_age_and_running_calls_stay(store: Database, caller: Caller) -> None:
    for age, key in enumerate("abc"):
        answered(store, caller, key, at=NOW + age, repeatable=key != "b")
    begin(store, caller, "r", at=NOW)
    evict(store, 10**9, before=NOW + 2)
    assert known(store, caller, "abc") == "c"
    with pytest.raises(StillRunning):
        look_up(store, caller, "r")
    answered(store, caller, "a", StoredAnswer(200, "", b"anew"))
    assert told(store, caller, "a") == (StoredAnswer(200, "", b"anew"), None)
