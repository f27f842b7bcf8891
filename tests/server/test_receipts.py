"""Receipts add up what the ledger holds; the key that signs them is made once and rotated."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from joserfc.jwk import ECKey, OKPKey

from craft_server.database import Database
from craft_server.ledger import account, charges
from craft_server.ledger.charges import Work
from craft_server.ledger.keys import Caller, authenticate, create_key
from craft_server.ledger.prices import set_prices
from craft_server.receipts import (
    NothingCharged,
    ReceiptKeyError,
    Selection,
    Signer,
    StillReserved,
    sum_up,
)
from craft_shared.receipt import Receipt, ReceiptItem, ledger_line, read_keys, verify
from craft_shared.units import UNITS, Units

DOCUMENT = Path(__file__).parents[2] / "docs/receipts.md"
SECOND = 1000
START = 1_767_225_600_000  # 2026-01-01T00:00:00Z


class Ledger:
    """Writes one key's charges, one a second."""

    def __init__(self, database: Database, owner: str = "a lab") -> None:
        self.database = database
        self.at = START
        with database.writing() as connection:
            secret = create_key(connection, owner=owner, at=START)
            set_prices(connection, "pocket", {"queries": 3})
            found = authenticate(connection, secret, START)
        assert found
        self.caller: Caller = found

    def reserve(
        self, run: str | None = None, call: str = "predictions", **units: int
    ) -> charges.Reservation:
        work = Work(call, "pocket", "0123", Units(requests=1, **units), run)
        self.at += SECOND
        with self.database.writing() as connection:
            return charges.reserve(connection, self.caller, work, holder="test", at=self.at)

    def settle(self, reserved: charges.Reservation) -> None:
        with self.database.writing() as connection:
            charges.settle(connection, reserved, self.at)

    def refund(self, reserved: charges.Reservation) -> None:
        with self.database.writing() as connection:
            charges.refund(connection, reserved.charge_id, self.at)

    def charge(self, run: str | None = None, call: str = "predictions", **units: int) -> None:
        self.settle(self.reserve(run, call, **units))

    def receipt(self, **selection: Any) -> Receipt:
        with self.database.reading() as connection:
            return sum_up(connection, self.caller, Selection(**selection), issuer="me", at=self.at)

    def lines(self) -> list[Any]:
        with self.database.reading() as connection:
            found = account.usage(connection, self.caller.key_id, after=0, limit=10_000)
        return [line for line in found.charges if line.state == "settled"]


@pytest.fixture
def ledger(store: Database) -> Ledger:
    return Ledger(store)


def digest(lines: list[Any]) -> str:
    return hashlib.sha256(b"".join(ledger_line(line) for line in lines)).hexdigest()


# --- what a receipt says ------------------------------------------------------------------------


def test_a_runs_receipt_adds_up_that_runs_lines_by_kind_of_call(ledger: Ledger) -> None:
    ledger.charge("other", queries=1000)
    ledger.charge("mine", "uploads", images=16)
    for _ in range(3):
        ledger.charge("mine", queries=40, predictions=640, texts=80)
    ledger.charge(queries=1000)
    ledger.refund(ledger.reserve("mine", queries=500))
    receipt = ledger.receipt(run="mine")
    scored = Units(queries=120, predictions=1920, texts=240, requests=3)
    uploaded = Units(images=16, requests=1)
    common = {"model": "pocket", "revision": "0123"}
    assert receipt.items == [
        ReceiptItem(call="predictions", calls=3, units=scored, cost_micros=360, **common),
        ReceiptItem(call="uploads", calls=1, units=uploaded, cost_micros=0, **common),
    ]
    assert (receipt.calls, receipt.total, receipt.cost_micros) == (4, scored + uploaded, 360)
    assert (receipt.first_at, receipt.last_at) == (
        "2026-01-01T00:00:02.000Z",
        "2026-01-01T00:00:05.000Z",
    )
    assert (receipt.run, receipt.key, receipt.owner) == ("mine", ledger.caller.prefix, "a lab")
    mine = [line for line in ledger.lines() if line.run == "mine"]
    assert (receipt.first_line, receipt.last_line) == (mine[0].id, mine[-1].id)
    assert receipt.lines_sha256 == digest(mine)


def test_a_receipt_without_a_run_covers_all_the_keys_lines_and_no_other_keys(
    ledger: Ledger,
) -> None:
    other = Ledger(ledger.database)
    for run in ("one", None, "two"):
        ledger.charge(run, queries=1)
        other.charge(run, queries=2)
    receipt = ledger.receipt()
    assert receipt.calls == 3
    assert receipt.run is None
    assert (receipt.first_line, receipt.last_line) == (1, 3)
    assert receipt.lines_sha256 == digest(ledger.lines())
    assert receipt.lines_sha256 != other.receipt().lines_sha256


def test_a_period_begins_with_its_first_moment_and_ends_before_its_last(ledger: Ledger) -> None:
    for _ in range(4):
        ledger.charge(queries=1)
    receipt = ledger.receipt(since=START + 2 * SECOND, until=START + 4 * SECOND)
    assert (receipt.first_at, receipt.last_at) == (
        "2026-01-01T00:00:02.000Z",
        "2026-01-01T00:00:03.000Z",
    )
    assert (receipt.since, receipt.until) == (
        "2026-01-01T00:00:02.000Z",
        "2026-01-01T00:00:04.000Z",
    )
    assert receipt.total == Units(queries=2, requests=2)
    assert receipt.lines_sha256 == digest(ledger.lines()[1:3])


def test_there_is_no_receipt_while_a_call_that_it_would_cover_runs(ledger: Ledger) -> None:
    ledger.charge("mine", queries=1)
    before = ledger.at + 1
    running = ledger.reserve("mine", queries=1)
    for selection in ({"run": "mine"}, {}, {"since": before}):
        with pytest.raises(StillReserved):
            ledger.receipt(**selection)
    assert ledger.receipt(run="mine", until=before).calls == 1
    ledger.charge("other", queries=1)
    assert ledger.receipt(run="other").calls == 1
    ledger.settle(running)
    assert ledger.receipt(run="mine").calls == 2


def test_there_is_no_receipt_over_nothing(ledger: Ledger) -> None:
    ledger.refund(ledger.reserve("mine", queries=1))
    for selection in ({}, {"run": "mine"}, {"run": "no such"}, {"until": START}):
        with pytest.raises(NothingCharged):
            ledger.receipt(**selection)


def test_lines_that_are_settled_meanwhile_are_in_neither_the_sums_nor_the_digest(
    ledger: Ledger,
) -> None:
    for _ in range(3):
        ledger.charge(queries=1)
    before = ledger.lines()

    def charge_meanwhile(*arguments: Any) -> None:
        if "count(*)" not in arguments[2] and arguments[2].startswith("SELECT charges.id"):
            ledger.charge(queries=1)

    with ledger.database.reading() as connection:
        sa.event.listen(connection, "before_cursor_execute", charge_meanwhile)
        receipt = sum_up(connection, ledger.caller, Selection(), issuer="me", at=ledger.at)
    assert len(ledger.lines()) == 4, "the digest's statement was not noticed"
    assert receipt.calls == 3
    assert receipt.lines_sha256 == digest(before)


def test_more_lines_than_are_fetched_at_a_time_are_all_in_the_digest(ledger: Ledger) -> None:
    ledger.charge("mine", queries=2)
    columns = ", ".join(f'"{unit}"' for unit in (*UNITS, "cost_micros"))
    names = f"key_id, at, call, run, model, revision, state, holder, holds, {columns}"
    with ledger.database.writing() as connection:
        for i in range(12):  # 1 line becomes 4,096
            connection.execute(
                sa.text(
                    f"INSERT INTO charges (line, {names}) "
                    f"SELECT line + {2**i}, {names} FROM charges ORDER BY id"
                )
            )
    receipt = ledger.receipt(run="mine")
    assert (receipt.calls, receipt.total.queries, receipt.cost_micros) == (4096, 8192, 24576)
    assert receipt.lines_sha256 == digest(ledger.lines())


# --- the key that signs -------------------------------------------------------------------------

RECEIPT = Receipt(
    issuer="me",
    issued_at="2026-01-01T00:00:00.000Z",
    key="abcd1234",
    owner="a lab",
    run=None,
    since=None,
    until=None,
    first_at="2026-01-01T00:00:00.000Z",
    last_at="2026-01-01T00:00:00.000Z",
    items=[
        ReceiptItem(
            call="predictions",
            model="pocket",
            revision="0123",
            calls=1,
            units=Units(queries=1),
            cost_micros=0,
        )
    ],
    calls=1,
    total=Units(queries=1),
    cost_micros=0,
    first_line=1,
    last_line=1,
    lines_sha256="0" * 64,
)


def verified(text: str, signer: Signer) -> Receipt:
    return verify(text, read_keys(json.dumps(signer.public_keys)))


def test_the_key_is_made_once_for_its_owners_eyes_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "receipt-key.pem"
    first = Signer.open(path, make=True)
    made = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    second = Signer.open(path, make=True)
    assert path.read_bytes() == made
    assert verified(second.sign(RECEIPT), first) == RECEIPT


def test_what_is_published_holds_nothing_private(tmp_path: Path) -> None:
    (key,) = Signer.open(tmp_path / "key.pem", make=True).public_keys["keys"]
    assert set(key) == {"kty", "crv", "x", "kid", "use", "alg"}
    public = OKPKey.import_key({name: key[name] for name in ("kty", "crv", "x")})
    assert key["kid"] == public.thumbprint()


def test_processes_that_start_at_once_agree_on_one_key(tmp_path: Path) -> None:
    path = tmp_path / "receipt-key.pem"
    code = (
        "import sys; from pathlib import Path; from craft_server.receipts import Signer\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(Signer.open(Path(sys.argv[1]), make=True).thumbprint_uri)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    names = {process.communicate(timeout=60)[0].splitlines()[-1] for process in processes}
    assert names == {Signer.open(path, make=False).thumbprint_uri}


def test_a_key_that_another_process_makes_meanwhile_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The narrowest race, forced: the file appears between the look and the making."""
    path = tmp_path / "receipt-key.pem"
    theirs = Signer.open(path, make=True)
    monkeypatch.setattr(Path, "exists", lambda _: False)
    assert Signer.open(path, make=True).thumbprint_uri == theirs.thumbprint_uri
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_key_of_the_operators_own_is_never_made(tmp_path: Path) -> None:
    with pytest.raises(ReceiptKeyError, match="No such file"):
        Signer.open(tmp_path / "missing.pem", make=False)
    assert list(tmp_path.iterdir()) == []


ENCRYPTED = OKPKey.generate_key("Ed25519").as_pem(private=True, password="secret")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "0 private keys"),
        (b"not a key", "0 private keys"),
        (OKPKey.generate_key("Ed25519").as_pem(private=False), "0 private keys"),
        (OKPKey.generate_key("Ed25519").as_pem(private=True) * 2, "2 private keys"),
        (OKPKey.generate_key("Ed448").as_pem(private=True), "key 1 is not"),
        (OKPKey.generate_key("X25519").as_pem(private=True), "key 1 is not"),
        (ECKey.generate_key("P-256").as_pem(private=True), "key 1 is not"),
        (ENCRYPTED, "key 1 is not"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "key 1 is not"),
    ],
)
def test_a_file_that_holds_something_else_is_told_in_one_line_without_its_content(
    tmp_path: Path, content: bytes, told: str
) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    with pytest.raises(ReceiptKeyError, match=told) as error:
        Signer.open(path, make=True)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == content


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_documented_rotation_keeps_every_earlier_receipt_valid(tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (rotation,) = [block for block in blocks if "mv next.pem" in block]
    path = tmp_path / "receipt-key.pem"
    signers = [Signer.open(path, make=True)]
    for _ in range(2):
        subprocess.run(["bash", "-euc", rotation], cwd=tmp_path, check=True, capture_output=True)
        signers.append(Signer.open(path, make=False))
    assert len({signer.thumbprint_uri for signer in signers}) == 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    newest = signers[-1]
    for signer in signers:
        assert verified(signer.sign(RECEIPT), newest) == RECEIPT
    published = [key["kid"] for key in newest.public_keys["keys"]]
    assert len(published) == 3
    assert newest.thumbprint_uri.endswith(str(published[0])), "the signing key comes first"
