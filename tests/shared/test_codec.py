import contextlib
import json
import struct
import time

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from craft_shared import codec
from craft_shared.codec import CodecError

DTYPES = st.sampled_from([np.float32, np.float16, np.int32, np.int64, np.uint8])
TENSORS = st.dictionaries(
    st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8),
    DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0))),
    max_size=4,
)
JSON = st.dictionaries(st.text(max_size=8), st.one_of(st.integers(), st.text(), st.none()))


@given(JSON, TENSORS)
def test_what_is_encoded_is_decoded(document: dict, tensors: dict) -> None:
    again, arrays = codec.decode(codec.encode(document, tensors))
    assert again == document
    assert arrays.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert arrays[name].dtype == tensor.dtype
        np.testing.assert_array_equal(arrays[name], tensor)


def test_files_are_ordinary_safetensors() -> None:
    data = codec.encode({"a": 1}, {"x": np.ones((2, 3), np.float32)})
    np.testing.assert_array_equal(safetensors.numpy.load(data)["x"], np.ones((2, 3)))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_only_codec_errors(data: bytes) -> None:
    with pytest.raises(CodecError):
        codec.decode(data)


@given(st.data())
def test_damaged_bodies_raise_only_codec_errors(data: st.DataObject) -> None:
    body = bytearray(codec.encode({"a": "b"}, {"x": np.arange(4), "y": np.ones(2, np.float16)}))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CodecError):
        codec.decode(bytes(body[: data.draw(st.integers(0, len(body)))]))


def _body(header: str, payload: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + payload


META = json.dumps({codec.DOCUMENT_KEY: "{}"})
MANY_TENSORS = ",".join(f'"{number}":0' for number in range(codec.MAX_TENSORS + 1))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\x01", "shorter"),
        (struct.pack("<Q", 10 * 2**30), "claims 10737418240 bytes"),
        (struct.pack("<Q", 100) + b"{}", "longer than the body"),
        (_body("[]"), "not a JSON object"),
        (_body("{}"), "has no 'craftbox' document"),
        (_body(f'{{"__metadata__":{META},"__metadata__":{META}}}'), 'uplicate key "__metadata__"'),
        (_body('{"__metadata__":{"craftbox":"{\\"a\\":NaN}"}}'), "the document is not valid JSON"),
        (_body("[" * 100_000), "not valid JSON"),
        (
            _body(
                f'{{"__metadata__":{META},"x":{{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}}}',
                b"12345678",
            ),
            "unknown dtype",
        ),
        (
            _body(
                f'{{"__metadata__":{META},"x":{{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}}}',
                b"1234",
            ),
            "does not fit",
        ),
        (
            _body(
                f'{{"__metadata__":{META},"x":{{"dtype":"U8","shape":[-1],"data_offsets":[0,4]}}}}',
                b"1234",
            ),
            "no natural number",
        ),
        *(
            (
                _body(f'{{"__metadata__":{META},"x":{{"dtype":"F32",{entry}}}}}', bytes(size)),
                message,
            )
            for entry, size, message in [
                ('"shape":[true,2],"data_offsets":[0,8]', 8, "no natural number"),
                ('"shape":[1],"data_offsets":[false,4]', 4, "no natural number"),
                ('"shape":[2.0],"data_offsets":[0,8]', 8, "no natural number"),
                ('"shape":[0],"data_offsets":[0,1e999]', 0, "no natural number"),
                (f'"shape":[0,1{"0" * 30}],"data_offsets":[0,0]', 0, "no natural number"),
                (f'"shape":[0,{2**62},8],"data_offsets":[0,0]', 0, "too large"),
                (f'"shape":{[1] * 70},"data_offsets":[0,4]', 4, "70 axes"),
                ('"shape":[1],"data_offsets":[4,0]', 4, "does not fit"),
            ]
        ),
        (_body(r'{"__metadata__":{"craftbox":"\ud800"}}'), "not valid JSON"),
        (_body(r'{"__metadata__":{"craftbox":"{\"a\":\"\\ud800\"}"}}'), "not valid JSON"),
        (_body(r'{"__metadata__":{"craftbox":"{\"a\":1e999}"}}'), "too large"),
        (_body(f'{{"__metadata__":{META},{MANY_TENSORS}}}'), "1025 tensors"),
        (_body(f'{{"__metadata__":[{"[]," * 2**18}[]]}}'), "more than 262144 values"),
        (
            # Commas that only unescaping shows.
            _body(r'{"__metadata__":{"craftbox":"{\"a\":[' + r"1\u002c" * 2**18 + '1]}"}}'),
            "the document is not valid JSON: more than 262144 values",
        ),
        (_body(f'{{"__metadata__":{META}}}', b"trailing"), "do not fill"),
    ],
)
def test_hostile_bodies_are_refused_with_their_own_message(body: bytes, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        codec.decode(body)


@pytest.mark.parametrize(
    "tensors",
    [
        {"files": np.zeros(3, np.uint8)},
        {"file_sizes": np.array([3])},
        {"files": np.zeros(3, np.int32), "file_sizes": np.array([3])},
        {"files": np.zeros(3, np.uint8), "file_sizes": np.array([3], np.int32)},
        {"files": np.zeros((1, 3), np.uint8), "file_sizes": np.array([3])},
        {"files": np.zeros(3, np.uint8), "file_sizes": np.array([[3]])},
        {"files": np.zeros(3, np.uint8), "file_sizes": np.array([4, -1])},
        {"files": np.zeros(3, np.uint8), "file_sizes": np.array([2])},
    ],
)
def test_tensors_that_are_no_files_are_refused(tensors: codec.Tensors) -> None:
    with pytest.raises(codec.CodecError):
        codec.unpack_files(tensors)


def test_a_header_may_be_as_long_as_the_bound_and_no_longer() -> None:
    data = codec.encode({}, {})
    length = int.from_bytes(data[:8], "little")
    assert codec.decode(data, max_header_bytes=length) == ({}, {})
    with pytest.raises(codec.CodecError, match="are allowed"):
        codec.decode(data, max_header_bytes=length - 1)
    assert codec.MAX_HEADER_BYTES == 8 * 2**20


def test_a_number_of_thousands_of_digits_is_refused_before_it_is_multiplied() -> None:
    shape = ",".join(["1" + "0" * 4000] * 300)
    entry = f'{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,0]}}'
    began = time.process_time()
    with pytest.raises(CodecError, match="300 axes"):
        codec.decode(_body(f'{{"__metadata__":{META},"x":{entry}}}'))
    assert time.process_time() - began < 1


def test_an_integer_of_a_document_may_be_written_as_a_float() -> None:
    document, _ = codec.decode(_body(r'{"__metadata__":{"craftbox":"{\"a\":[8.0,0.5]}"}}'))
    assert document == {"a": [8, 0.5]}
    assert type(document["a"][0]) is int


def test_a_tensor_of_another_dtype_does_not_travel() -> None:
    with pytest.raises(codec.CodecError, match="'x' has dtype float64"):
        codec.encode({}, {"x": np.zeros(1)})


def test_numbers_that_are_not_json_do_not_travel() -> None:
    with pytest.raises(ValueError, match="JSON"):
        codec.encode({"a": float("nan")}, {})


def test_names_travel_in_their_own_letters() -> None:
    assert "Füchse".encode() in codec.encode({"class": "Füchse"}, {})


@given(st.lists(st.binary(max_size=20)))
def test_files_are_packed_and_unpacked(files: list[bytes]) -> None:
    assert codec.unpack_files(codec.pack_files(files)) == files


@pytest.mark.parametrize("sizes", [[3], [5], [-1, 5], [2**62, 2**62, 2**62, 2**62, 4]])
def test_file_sizes_that_do_not_add_up_are_refused(sizes: list[int]) -> None:
    tensors = codec.pack_files([b"1234"]) | {"file_sizes": np.array(sizes)}
    with pytest.raises(CodecError, match="add up"):
        codec.unpack_files(tensors)
