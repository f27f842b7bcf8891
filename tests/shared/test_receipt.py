"""A receipt is believed only as its server signed it."""

from __future__ import annotations

import base64
import hashlib
import json
import string
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import KeySet, OctKey, OKPKey

from craft_shared.receipt import (
    ALGORITHM,
    JWS_RULES,
    TYPE,
    Receipt,
    ReceiptError,
    ReceiptItem,
    ledger_line,
    read_keys,
    verify,
)
from craft_shared.units import Units
from craft_shared.wire import Charge

KEY = OKPKey.generate_key("Ed25519")
ITEM = ReceiptItem(
    call="predictions",
    model="pocket",
    revision="0123456789abcdef",
    calls=200,
    units=Units(queries=8000, requests=200),
    cost_micros=80,
)
RECEIPT = Receipt(
    issuer="https://clip.example.org",
    issued_at="2026-01-02T00:00:00.000Z",
    key="abcd1234",
    owner="a lab",
    run="animals",
    since=None,
    until=None,
    first_at="2026-01-01T00:00:00.000Z",
    last_at="2026-01-01T01:00:00.000Z",
    items=[ITEM],
    calls=200,
    total=ITEM.units,
    cost_micros=80,
    first_line=1,
    last_line=200,
    lines_sha256="0" * 64,
)


def key_set(*keys: OKPKey) -> KeySet:
    return read_keys(json.dumps(KeySet(list(keys)).as_dict(private=False)))


def signed(payload: str | None = None, key: OKPKey = KEY, **header: Any) -> str:
    protected = {"alg": ALGORITHM, "typ": TYPE, "kid": key.thumbprint()} | header
    text = RECEIPT.model_dump_json() if payload is None else payload
    return jws.serialize_compact(protected, text, key, registry=JWS_RULES)


def segment(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def header(**members: Any) -> str:
    return segment(json.dumps(members).encode())


KEYS = key_set(KEY)
TEXT = signed()


def test_a_signed_receipt_says_what_was_signed() -> None:
    assert verify(TEXT, KEYS) == RECEIPT
    assert verify(f"{TEXT}\n", KEYS) == RECEIPT, "a file ends with a line's end"


def test_one_changed_byte_is_refused() -> None:
    for position, byte in enumerate(TEXT):
        for other in {"A", "w", "_", ".", "=", "\n", "\0"} - {byte}:
            with pytest.raises(ReceiptError):
                verify(TEXT[:position] + other + TEXT[position + 1 :], KEYS)


def test_no_other_last_character_is_taken_for_the_signatures_last() -> None:
    """Four of its bits mean nothing in base64; still there is one text for one receipt."""
    for other in set(string.ascii_letters + string.digits + "-_") - {TEXT[-1]}:
        with pytest.raises(ReceiptError, match="signature"):
            verify(TEXT[:-1] + other, KEYS)


@pytest.mark.parametrize("alg", ["none", "None", "NONE"])
def test_an_unsigned_receipt_is_refused(alg: str) -> None:
    claim = f"{header(alg=alg, typ=TYPE, kid=KEY.thumbprint())}.{TEXT.split('.')[1]}."
    with pytest.raises(ReceiptError, match="algorithm is 'none'" if alg == "none" else "algorithm"):
        verify(claim, KEYS)


@pytest.mark.parametrize("form", ["pem", "raw"])
def test_a_receipt_under_hmac_with_the_public_key_is_refused(form: str) -> None:
    raw = base64.urlsafe_b64decode(str(KEY.as_dict(private=False)["x"]) + "=")
    secret = OctKey.import_key(KEY.as_pem(private=False).hex() if form == "pem" else raw)
    protected = {"alg": "HS256", "typ": TYPE, "kid": KEY.thumbprint()}
    claim = jws.serialize_compact(protected, RECEIPT.model_dump_json(), secret, ["HS256"])
    with pytest.raises(ReceiptError, match="algorithm is 'HS256'"):
        verify(claim, KEYS)


def test_a_receipt_that_another_key_has_signed_is_refused() -> None:
    other = OKPKey.generate_key("Ed25519")
    with pytest.raises(ReceiptError, match="no key of the server"):
        verify(signed(key=other), KEYS)
    with pytest.raises(ReceiptError, match="signature is wrong"):
        verify(signed(key=other, kid=KEY.thumbprint()), KEYS)


def test_a_key_that_the_receipt_itself_brings_along_is_not_used() -> None:
    other = OKPKey.generate_key("Ed25519")
    public = other.as_dict(private=False)
    with pytest.raises(ReceiptError, match="no key of the server"):
        verify(signed(key=other, jwk=public), KEYS)
    with pytest.raises(ReceiptError, match="signature is wrong"):
        verify(signed(key=other, jwk=public, kid=KEY.thumbprint()), KEYS)


def test_a_receipt_without_a_key_id_is_refused() -> None:
    claim = jws.serialize_compact(
        {"alg": ALGORITHM, "typ": TYPE}, RECEIPT.model_dump_json(), KEY, registry=JWS_RULES
    )
    with pytest.raises(ReceiptError, match="key id None"):
        verify(claim, KEYS)


def test_something_else_that_the_key_has_signed_is_no_receipt() -> None:
    with pytest.raises(ReceiptError, match="type is 'JWT'"):
        verify(signed(typ="JWT"), KEYS)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"version": 2}, "version"),
        ({"calls": 201}, "add up"),
        ({"total": Units(queries=8001, requests=200).model_dump()}, "add up"),
        ({"cost_micros": 81}, "add up"),
        ({"calls": "200"}, "calls"),
        ({"lines_sha256": None}, "lines_sha256"),
    ],
)
def test_a_signed_content_of_another_form_is_refused(change: dict[str, Any], named: str) -> None:
    claim = signed(json.dumps(RECEIPT.model_dump() | change))
    with pytest.raises(ReceiptError, match=named):
        verify(claim, KEYS)


def test_what_a_later_version_adds_does_no_harm() -> None:
    assert verify(signed(json.dumps(RECEIPT.model_dump() | {"more": 1})), KEYS) == RECEIPT


HEADER, PAYLOAD, SIGNATURE = TEXT.split(".")


@given(st.text(max_size=200))
@example("")
@example("..")
@example(f"{segment(b'[]')}.{PAYLOAD}.{SIGNATURE}")
@example(f"{segment(b'null')}.{PAYLOAD}.{SIGNATURE}")
@example(f"{segment(json.dumps('alg').encode())}.{PAYLOAD}.{SIGNATURE}")
@example(f"{segment(json.dumps(['alg']).encode())}.{PAYLOAD}.{SIGNATURE}")
@example(f"{header(alg=[])}.{PAYLOAD}.{SIGNATURE}")
@example(f"{header(alg=ALGORITHM, typ=TYPE, kid=[])}.{PAYLOAD}.{SIGNATURE}")
@example(f"{header(alg=ALGORITHM, typ=TYPE, kid=KEY.thumbprint(), crit=1)}.{PAYLOAD}.{SIGNATURE}")
@example(f"{header(alg=ALGORITHM, b64=False)}.{PAYLOAD}.{SIGNATURE}")
@example(f"{header(alg=ALGORITHM, b64=False, crit=['b64'])}.{PAYLOAD}.{SIGNATURE}")
@example(f"{HEADER}..{SIGNATURE}")
@example(f"{HEADER}.{PAYLOAD}.")
@example(f"{HEADER}.{PAYLOAD}.{SIGNATURE}.")
@example("[" * 10_000)
@example("a" * 5_000_000)
def test_whatever_is_no_receipt_is_told_so_in_one_line(text: str) -> None:
    with pytest.raises(ReceiptError) as told:
        verify(text, KEYS)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 1000


# --- keys ---------------------------------------------------------------------------------------


def test_the_key_id_is_computed_never_believed() -> None:
    mine, other = KEY.as_dict(private=False), OKPKey.generate_key("Ed25519")
    posing = other.as_dict(private=False) | {"kid": KEY.thumbprint()}
    keys = read_keys(json.dumps({"keys": [posing, mine | {"kid": "mine"}]}))
    assert verify(TEXT, keys) == RECEIPT


def test_keys_of_other_kinds_are_left_out() -> None:
    others = [
        OctKey.generate_key(256).as_dict(private=True),
        OKPKey.generate_key("Ed448").as_dict(private=False),
        OKPKey.generate_key("X25519").as_dict(private=False),
        {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AA"},
        OKPKey.generate_key("Ed25519").as_dict(private=False) | {"use": "enc"},
    ]
    keys = read_keys(json.dumps({"keys": [*others, KEY.as_dict(private=False)]}))
    assert [key.kid for key in keys] == [KEY.thumbprint()]
    with pytest.raises(ReceiptError, match="no Ed25519 key"):
        read_keys(json.dumps({"keys": others}))


def test_a_private_key_in_the_set_is_read_as_its_public_half() -> None:
    keys = read_keys(json.dumps({"keys": [KEY.as_dict(private=True)]}))
    assert not any(key.is_private for key in keys)
    assert verify(TEXT, keys) == RECEIPT


@pytest.mark.parametrize(
    "document",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"keys": 1}',
        '{"keys": [1]}',
        '{"keys": [null]}',
        '{"keys": [{"kty": "OKP", "crv": "Ed25519"}]}',
        '{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": 1}]}',
        '{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "AA"}]}',
        '{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "\u00e9"}]}',
        "[" * 100_000,
        b"\xff\xfe",
        TEXT,
    ],
)
def test_whatever_is_no_key_set_is_told_so(document: str | bytes) -> None:
    with pytest.raises(ReceiptError):
        read_keys(document)


# --- the ledger's lines -------------------------------------------------------------------------


def test_the_canonical_line_is_fixed_for_good() -> None:
    """Whoever keeps a receipt must get the same digest from the same lines in ten years."""
    charge = Charge(
        id=7,
        at="2026-01-01T00:00:00.000Z",
        call="predictions",
        run='é "quoted" \\ \x1f/',
        model="pocket",
        revision="0123",
        state="settled",
        units=Units(queries=3, predictions=12, texts=6, requests=1),
        cost_micros=5,
    )
    assert ledger_line(charge).decode() == (
        '{"at":"2026-01-01T00:00:00.000Z","call":"predictions","cost_micros":5,"id":7,'
        '"model":"pocket","revision":"0123","run":"é \\"quoted\\" \\\\ \\u001f/",'
        '"units":{"images":0,"predictions":12,"queries":3,"requests":1,"texts":6}}\n'
    )
    nameless = charge.model_copy(update={"run": None})
    assert b'"run":null' in ledger_line(nameless)
    assert hashlib.sha256(ledger_line(nameless)).digest() != hashlib.sha256(b"").digest()
