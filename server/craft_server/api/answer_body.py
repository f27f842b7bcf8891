"""Answers with tensors: JSON, or safetensors where the client asks for it by `Accept`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from fastapi import Request
from fastapi.responses import Response
from numpy.typing import NDArray
from pydantic import BaseModel

from craft_server.api.middleware import JSON_TYPE, accepts
from craft_shared import codec
from craft_shared.output import DType, shown_bytes
from craft_shared.wire import Output

# The longest number as text, such as -1.1754943508222875e-38, with its comma and brackets.
_JSON_BYTES = {"float32": 28, "float16": 28, "int32": 15}
# Fields of documents that tensors take.
_TENSORS = {"log_probs", "probs", "top_classes", "abstained"}
_NUMBERS_A_PIECE = 1 << 16


async def tensor_response(
    request: Request, document: BaseModel, tensors: codec.Tensors
) -> Response:
    """The response that carries a document, whose tensors' fields the tensors take."""
    fields = document.model_dump(mode="json", exclude=_TENSORS)
    if wants_safetensors(request):
        data = await asyncio.to_thread(codec.encode, fields, tensors)
        return Response(data, media_type=codec.MEDIA_TYPE)
    parts = [json.dumps(fields, separators=(",", ":")).removesuffix("}").encode()]
    for name, tensor in tensors.items():
        parts += [f',"{name}":'.encode(), await asyncio.to_thread(_json_of, tensor)]
    return Response(b"".join((*parts, b"}")), media_type=JSON_TYPE)


def json_response(document: BaseModel, *, status: int = 200) -> Response:
    """The response that carries a document without a tensor."""
    return Response(document.model_dump_json(), status_code=status, media_type=JSON_TYPE)


def wants_safetensors(request: Request) -> bool:
    """Whether `Accept` names safetensors and does not refuse it (RFC 9110, section 12.5.1)."""
    return accepts(request.headers.get("accept", ""), codec.MEDIA_TYPE)


def answer_bytes(request: Request, *, rows: int, classes: int, output: Output, dtype: DType) -> int:
    """An upper bound of an answer's tensors, in bytes.

    Args:
        request: which media type it wants.
        rows: how many distributions are answered.
        classes: over which they are.
        output: what is answered of each.
        dtype: of numbers.
    """
    sizes = (
        {name: np.dtype(name).itemsize for name in _JSON_BYTES}
        if wants_safetensors(request)
        else _JSON_BYTES
    )
    return rows * shown_bytes(output, classes, sizes[dtype], sizes["int32"])


def _json_of(array: NDArray[Any]) -> bytes:
    return b"".join(_json_pieces(array))


def _json_pieces(array: NDArray[Any]) -> Iterator[bytes]:
    # The C encoder holds the interpreter lock: small pieces let the event loop run between them.
    if array.ndim == 1 or array.size <= _NUMBERS_A_PIECE:
        yield json.dumps(array.tolist(), separators=(",", ":")).encode()
        return
    for index, part in enumerate(array):
        yield b"," if index else b"["
        yield from _json_pieces(part)
    yield b"]"
