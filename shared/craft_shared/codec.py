"""The tensor codec: a JSON document and named tensors in one safetensors file, and back.

The document travels under the metadata key `craftbox`. Nothing is ever unpickled.

Source: the safetensors format, https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from craft_shared.strict_json import MAX_VALUES, JsonError, parse_object, with_whole_numbers

MEDIA_TYPE = "application/x-safetensors"
DOCUMENT_KEY = "craftbox"
MAX_HEADER_BYTES = 8 * 2**20
MAX_TENSORS = 1024
MAX_AXES = 8

_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "U8": np.dtype(np.uint8),
}

Tensors = dict[str, NDArray[Any]]


class CodecError(ValueError):
    """The bytes are not a safetensors file that the codec accepts; the message says why."""


def encode(document: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Packs a JSON-able document and tensors (float16, float32, int32, int64, uint8)."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES.values():
            raise CodecError(f"tensor '{name}' has dtype {tensor.dtype}, which does not travel")
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return safetensors.numpy.save(
        {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()},
        metadata={DOCUMENT_KEY: text},
    )


def decode(
    data: bytes | memoryview,
    *,
    max_header_bytes: int = MAX_HEADER_BYTES,
    max_values: int = MAX_VALUES,
) -> tuple[dict[str, Any], Tensors]:
    """Unpacks what `encode` packed.

    The header is bounded, in bytes, values and tensors, and checked before it is used: no duplicate
    names, known dtypes, and each tensor's shape, offsets and the file's length agree. Tensors are
    read-only views of `data`, not copies.

    Raises:
        CodecError: the bytes are not such a file.
    """
    view = memoryview(data)
    if len(view) < 8:
        raise CodecError("the body is shorter than a safetensors header")
    header_length = int.from_bytes(view[:8], "little")
    if header_length > max_header_bytes:
        raise CodecError(f"the header claims {header_length} bytes; {max_header_bytes} are allowed")
    if 8 + header_length > len(view):
        raise CodecError("the header is longer than the body")
    header = _parse(bytes(view[8 : 8 + header_length]), "the header", max_values)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not isinstance(metadata.get(DOCUMENT_KEY), str):
        raise CodecError(f"the metadata has no '{DOCUMENT_KEY}' document")
    if len(header) > MAX_TENSORS:
        raise CodecError(f"the header names {len(header)} tensors; {MAX_TENSORS} are allowed")
    payload = view[8 + header_length :]
    tensors = {name: _tensor(name, entry, payload) for name, entry in header.items()}
    if sum(tensor.nbytes for tensor in tensors.values()) != len(payload):
        raise CodecError("the tensors do not fill the body exactly")
    return _parse_document(metadata[DOCUMENT_KEY].encode(), max_values), tensors


def pack_files(files: Sequence[bytes]) -> Tensors:
    """Several files as two tensors: `files` (uint8, all bytes) and `file_sizes` (int64, [n])."""
    return {
        "files": np.frombuffer(b"".join(files), dtype=np.uint8),
        "file_sizes": np.array([len(file) for file in files], dtype=np.int64),
    }


def unpack_files(tensors: Mapping[str, NDArray[Any]]) -> list[bytes]:
    """The files that `pack_files` packed.

    Raises:
        CodecError: a tensor is missing, or the sizes do not add up to the bytes.
    """
    if "files" not in tensors or "file_sizes" not in tensors:
        raise CodecError("pictures travel as the tensors 'files' and 'file_sizes'")
    data, sizes = tensors["files"], tensors["file_sizes"]
    if data.dtype != np.uint8 or sizes.dtype != np.int64 or data.ndim != 1 or sizes.ndim != 1:
        raise CodecError("'files' is a flat uint8 tensor and 'file_sizes' a flat int64 tensor")
    if (sizes < 0).any() or sum(sizes.tolist()) != data.size:
        raise CodecError("'file_sizes' do not add up to the length of 'files'")
    ends = np.cumsum(sizes).tolist()
    return [
        data[end - size : end].tobytes() for end, size in zip(ends, sizes.tolist(), strict=True)
    ]


def _parse(text: bytes, what: str, max_values: int) -> dict[str, Any]:
    try:
        return parse_object(text, max_values=max_values)
    except JsonError as error:
        raise CodecError(f"{what} is not valid JSON: {error}") from error


def _parse_document(text: bytes, max_values: int) -> dict[str, Any]:
    document = _parse(text, "the document", max_values)
    try:
        whole: dict[str, Any] = with_whole_numbers(document)
    except JsonError as error:
        raise CodecError(f"the document: {error}") from error
    return whole


def _tensor(name: str, entry: Any, payload: memoryview) -> NDArray[Any]:
    shown = f"tensor '{name[:100]}'"
    try:
        dtype = _DTYPES[entry["dtype"]]
        shape = list(entry["shape"])
        begin, end = entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise CodecError(f"{shown} has an unknown dtype or an incomplete entry") from error
    # Before anything is multiplied: numbers may have thousands of digits.
    if len(shape) > MAX_AXES:
        raise CodecError(f"{shown} has {len(shape)} axes; {MAX_AXES} are allowed")
    if not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, begin, end)):
        raise CodecError(f"{shown} has a shape or offset that is no natural number below 2^63")
    if not begin <= end <= len(payload) or end - begin != math.prod(shape) * dtype.itemsize:
        raise CodecError(f"{shown} does not fit its offsets")
    try:
        return np.frombuffer(payload[begin:end], dtype=dtype).reshape(shape)
    except ValueError as error:  # an empty tensor whose other axes no array can have
        raise CodecError(f"{shown} has a shape that is too large") from error
