import contextlib
import json
import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craft_shared.strict_json import (
    MAX_PARTS,
    MAX_VALUES,
    JsonError,
    TooManyValues,
    parse_object,
    with_whole_numbers,
)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
)
DOCUMENTS = st.dictionaries(
    st.text(),
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    ),
)


def values_in(value: Any) -> int:
    """How many stand in it, its own and theirs."""
    if isinstance(value, dict):
        value = [*value.values()]
    return sum(1 + values_in(item) for item in value) if isinstance(value, list) else 0


@given(DOCUMENTS, st.sampled_from([None, 1]), st.booleans())
def test_what_is_written_is_read(document: dict, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only)
    assert parse_object(text.encode()) == document


@given(DOCUMENTS, st.sampled_from([None, 1]))
def test_no_value_is_hidden_from_the_count(document: dict, indent: int | None) -> None:
    text = json.dumps(document, indent=indent).encode()
    if values := values_in(document):
        with pytest.raises(TooManyValues):
            parse_object(text, max_values=values - 1)


@pytest.mark.parametrize("text", [b"[],", b"{},", b"1,", b'"",', b"[[]],", b'{"a":1},', b"[ ] ,"])
def test_too_many_values_are_refused_without_being_parsed(text: bytes) -> None:
    body = b'{"a":[' + text * (2**24 // len(text)) + b"0]}"
    began = time.thread_time()
    with pytest.raises(TooManyValues, match="more than 262144 values"):
        parse_object(body)
    assert time.thread_time() - began < 0.5  # looking through it; to parse it takes seconds


@pytest.mark.parametrize(
    "parts",
    [
        [b'"n%d":1' % i for i in range(MAX_PARTS)],
        [b'"x":[' + b",".join([b"[" * 190 + b"]" * 190] * 90) + b"]"],
    ],
    ids=["names", "deep lists"],
)
def test_what_takes_long_to_read_is_refused_though_its_values_are_few(parts: list[bytes]) -> None:
    body = b"{" + b",".join(parts) + b"}"
    with pytest.raises(TooManyValues, match="more than 16384 members, lists and objects"):
        parse_object(body)


def test_as_many_values_as_allowed_are_read() -> None:
    body = b'{"a":[' + b"1," * (MAX_VALUES - 3) + b"1]}"
    assert len(parse_object(body)["a"]) == MAX_VALUES - 2
    with pytest.raises(TooManyValues):
        parse_object(body.replace(b"[1,", b"[1,1,1,"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "EOF"),
        (b"[1]", "not a JSON object"),
        (b"{} x", "trailing"),
        (b"\xef\xbb\xbf{}", "expected value"),
        ('{"a":1}'.encode("utf-16"), "expected value"),
        (b'{"a":1,"a":1}', 'uplicate key "a"'),
        (rb'{"a":1,"\u0061":2}', 'uplicate key "a"'),
        (b'{"a":[{"b":1,"c":2,"b":1}]}', 'uplicate key "b"'),
        (b'{"a":NaN}', "expected value"),
        (b'{"a":Infinity}', "expected value"),
        (b'{"a":-Infinity}', "invalid number"),
        (b'{"a":01}', "invalid number"),
        (b'{"a":1' + b"0" * 5000 + b"}", "out of range"),
        (b'{"a":"\xff"}', "unicode"),
        (rb'{"a":"\ud800"}', "hex escape"),
        (rb'{"a":"\udc00\ud800"}', "surrogate"),
        (b'{"a":"\x00"}', "control character"),
        (b'{"a":' + b"[" * 1_000, "recursion"),
        (b'{"a":' * 1_000, "recursion"),
    ],
)
def test_what_is_no_strict_json_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(JsonError, match=message):
        parse_object(text)


def test_damaged_objects_raise_only_json_errors() -> None:
    chance = random.Random(1)
    whole = json.dumps({"a": [1, 2.5, None, True, "ü\\u00fc"], "b": {"c": "\ud83d\ude00"}}).encode()
    for _ in range(20_000):
        text = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            text[chance.randrange(len(text))] = chance.choice(b'\x00\x80\xff{}[]",:\\u1eE+-.0d8 ')
        with contextlib.suppress(JsonError):
            assert isinstance(with_whole_numbers(parse_object(bytes(text))), dict)


def test_8_0_is_an_integer_and_8_5_is_not() -> None:
    whole = with_whole_numbers(parse_object(b'{"a":[8.0,-0.0,{"b":1e18},1e19,8.5,"8.0",true]}'))
    assert whole == {"a": [8, 0, {"b": 10**18}, 1e19, 8.5, "8.0", True]}
    kinds = [type(item) for item in whole["a"]]
    assert kinds == [int, int, dict, float, float, str, bool]
    assert type(whole["a"][2]["b"]) is int


def test_a_number_past_double_precision_is_refused() -> None:
    with pytest.raises(JsonError, match="too large"):
        with_whole_numbers(parse_object(b'{"a":[[1e999]]}'))
